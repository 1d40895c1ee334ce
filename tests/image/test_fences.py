# SPDX-License-Identifier: GPL-2.0-only
"""Fences behind a SWAPGS that may be skipped: there in kernel/, missed where they are taken out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.image.fences import Unfenced, unfenced
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir


def looked(target: Target) -> tuple[Unfenced, ...]:
    entries = [g.offset for g in target.gates.values() if g.offset in target.insns]
    return unfenced(target.insns, entries, target.handlers)


CONFIGS = [BareConfig(pti=pti, fsgsbase=fsgsbase) for pti in (True, False) for fsgsbase in (True, False)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(c.names()[1:]))
def test_nothing_is_missing(config: BareConfig) -> None:
    assert looked(load(build(kernel_source(), config, cache_dir()), config)) == ()


@pytest.mark.parametrize(
    ("config", "skipped"),
    [
        # a write of CR3 follows, which is a fence as well
        (BareConfig(), set()),
        # from user mode; the way from kernel mode writes GSBASE
        (BareConfig(pti=False), {False}),
        # and there are two that may be skipped from kernel mode
        (BareConfig(pti=False, fsgsbase=False), {False, True}),
    ],
)
def test_without_fences(tmp_path: Path, config: BareConfig, skipped: set[bool]) -> None:
    kernel = shutil.copytree(kernel_source(), tmp_path / "kernel")
    calling = kernel / "bare" / "calling.h"
    text = calling.read_text()
    assert text.count("\tlfence\n") >= 2
    calling.write_text(text.replace("\tlfence\n", ""))
    found = looked(load(build(kernel, config, tmp_path), config))
    assert {u.skipped for u in found} == skipped


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paths", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["IST026"], shown["IST027"], shown["mitigation"]) == ([], [], "none")
    assert main(["paths", "--no-fsgsbase", "--no-pti"]) == 0
    assert "0 paths to an early call or return" in capsys.readouterr().out
