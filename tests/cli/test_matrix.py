# SPDX-License-Identifier: GPL-2.0-only
"""The verb matrix: its rows, what it keeps, and what makes it do a row again."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.image import bare
from atomicist.image.bare import VARIANTS, BareConfig
from atomicist.isa.predictions import MITIGATIONS
from atomicist.search.matrix import checker_id, row_id, rows

RESULT = {"findings": [], "open_because": "", "contexts": 3, "seconds": 1.0}
BROKEN = {**RESULT, "findings": [{"property": "IST001", "schedule": "user:NMI"}]}


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["matrix", *words])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Rows end at once: those of variant 2 with a finding; what was run is noted."""
    ran: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        ran.append(command)
        broken = command[command.index("--variant") + 1] == "2"
        status, result = (1, BROKEN) if broken else (0, RESULT)
        script = f"print({json.dumps(result)!r}); raise SystemExit({status})"
        return popen([sys.executable, "-c", script], **options)  # type: ignore[call-overload]

    image = tmp_path / "image"
    image.write_bytes(b"x")
    monkeypatch.setattr("atomicist.cli.matrix.subprocess.Popen", start)
    monkeypatch.setattr(bare, "build", lambda *_: image)
    return ran


def test_all_combinations_are_rows() -> None:
    every = rows()
    assert len(every) == len(set(every)) == 8 * len(VARIANTS) * len(MITIGATIONS)
    seen = {(c.pti, c.pcid, c.fsgsbase, c.mitigation, c.variant) for c in every}
    assert seen == set(itertools.product(*([(False, True)] * 3), MITIGATIONS, VARIANTS))
    assert {c.variant for c in every[: len(VARIANTS)]} == set(VARIANTS)


def test_a_row_is_known_by_image_configuration_vectors_and_checker() -> None:
    config, other = BareConfig(), BareConfig(pcid=False)
    ids = {
        row_id(b"a", config, "", "c"), row_id(b"b", config, "", "c"), row_id(b"a", other, "", "c"),
        row_id(b"a", config, "nmi", "c"), row_id(b"a", config, "", "d"),
    }  # fmt: skip
    assert len(ids) == 5
    assert checker_id() == checker_id()


def test_goes_on_where_it_was(fake: list[list[str]], tmp_path: Path) -> None:
    words = ("--variant", "1c", "--mitigation", "none", "--keep", str(tmp_path / "keep"))
    assert run(*words, "--first", "1")[0] == 0
    assert len(fake) == 1
    status, out, _ = run(*words, "--json", str(tmp_path / "x.json"))
    assert (status, len(fake)) == (0, 8)
    assert "8 of 8 rows closed" in out
    written = json.loads((tmp_path / "x.json").read_text())
    assert len(written) == 8
    assert {row["status"] for row in written} == {0}
    assert run(*words)[0] == 0
    assert len(fake) == 8
    assert run(*words, "--again")[0] == 0
    assert len(fake) == 16


def test_a_finding_fails_and_names_the_next_command(fake: list[list[str]], tmp_path: Path) -> None:
    status, out, _ = run("--first", "5", "--mitigation", "unret", "--keep", str(tmp_path / "keep"))
    assert status == 1
    assert "FAILED IST001: user:NMI" in out
    assert "verify --variant 2 --mitigation unret --cc gcc" in out
    assert len(fake) == 5


@pytest.mark.parametrize(
    "words", [("--variant", "1d"), ("--cc", "icc"), ("--vector", "smi"), ("--first", "-1")]
)
def test_bad_usage(words: tuple[str, ...]) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("atomicist: ")
