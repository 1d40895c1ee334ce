# SPDX-License-Identifier: GPL-2.0-only
"""The kernel that was built in $TREE, booted and attacked; with $QUICK only what takes minutes.

What is wanted of `inject` is said in its result, not by its exit status: the legacy entry loses contexts, and
the model says the same of every one.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from atomicist.cli.main import main
from atomicist.guest import obituary
from atomicist.guest.boots import BOOTS, ENTRIES
from tests.debian_kernel import fetched

pytestmark = pytest.mark.kernel
TREE = os.environ.get("TREE", "")
QUICK = bool(os.environ.get("QUICK"))
needs_tree = pytest.mark.skipif(not TREE, reason="TREE names no tree with a kernel that has both entries")
in_full = pytest.mark.skipif(QUICK, reason="QUICK=1")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["linux", *words, "--json"])
    out, err = capsys.readouterr()
    assert status in (0, 1), err
    return status, json.loads(out)


@needs_tree
@pytest.mark.parametrize("entry", ENTRIES)
def test_boot(capsys: pytest.CaptureFixture[str], entry: str) -> None:
    names = ["default"] if QUICK else [b.name for b in BOOTS]
    boots = [word for name in names for word in ("--boot", name)]
    status, found = run(capsys, "boot", TREE, "--entry", entry, *boots)
    assert status == 0
    assert [b["problems"] for b in found["boots"]] == [[]] * len(names)


@needs_tree
@pytest.mark.parametrize("entry", ENTRIES)
def test_inject(capsys: pytest.CaptureFixture[str], entry: str) -> None:
    quick = ["--quick"] if QUICK else []
    status, found = run(capsys, "inject", TREE, "--entry", entry, *quick)
    assert [a["disagreements"] for a in found["attacks"]] == [[]] * len(found["attacks"])
    lost = {(a["context"], *a["events"]): a["lost"] for a in found["attacks"]}
    if entry == "atomic":
        assert status == 0
        assert not any(lost.values())
    else:
        # Up to the end of copying the frame, or of leaving the stack; never behind it.
        assert all(lost[c, "NMI", "MC", "NMI"][:20] == list(range(20)) for c in ("kernel", "user"))
        assert all(max(numbers, default=0) < 40 for numbers in lost.values())


@needs_tree
@in_full
def test_cost(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run(capsys, "cost", TREE, "--entry", "atomic", "--entry", "legacy")
    assert status == 0
    assert all(p["total"] > 0 for row in found["cost"] for p in row["paths"])


class TestBadInput:
    """One line, exit status 2, and what to do."""

    def line(self, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        assert main(["linux", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    def test_no_kernel(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "there is no such file" in self.line(capsys, "boot", "--kernel", str(tmp_path / "x"))
        assert "atomicist linux build" in self.line(capsys, "boot", str(tmp_path))

    def test_no_qemu(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        image = tmp_path / "image"
        image.write_bytes(b"x")
        for tool in ("setpriv", "gcc"):
            (tmp_path / tool).write_text("")
            (tmp_path / tool).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "qemu-system-x86_64 is not installed" in self.line(capsys, "boot", "--kernel", str(image))

    def test_a_panic_is_decoded(self, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.line(
            capsys,
            "boot",
            "--kernel",
            str(fetched()),
            "--boot",
            "default",
            "--append",
            "rdinit=/none init=/none",
        )
        assert re.search(r"the guest panicked: .*; log: \S+", line)


def test_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "[    1.0] BUG: unable to handle page fault\n[    1.1] RIP: 0010:exc_nmi+0x5/0x10\n"
        "[    1.2] Call Trace:\n[    1.3]  <NMI>\n[    1.4]  nmi_restore+0x1/0x2\n"
        "[    1.5] Kernel panic - not syncing: Fatal exception\n[    1.6] RETBleed: WARNING: leaks\n"
    )
    death = obituary.read(log)
    assert death is not None
    assert (death.why, death.rip, death.trace) == (
        "Fatal exception",
        "exc_nmi+0x5/0x10",
        ("nmi_restore+0x1/0x2",),
    )
    assert len(obituary.trouble(log)) == 2
