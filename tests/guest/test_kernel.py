# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with both entries, built, booted and attacked; with $QUICK only what takes minutes.

It is built in build/linux, anew when what goes into it has changed; $TREE names another tree, which is
taken as it is.  What is wanted of `inject` is said in its result, not by its exit status: the legacy
entry loses contexts, and the model says the same of every one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atomicist.cli.main import main
from atomicist.guest import obituary
from atomicist.guest.boots import BOOTS, ENTRIES
from atomicist.guest.inject import CONTEXTS, ORDERS
from atomicist.guest.inject import QUICK as INJECT_QUICK
from atomicist.image.bare import kernel_source
from atomicist.tree.apply import Tables, applied
from atomicist.tree.errors import TreeError
from atomicist.tree.prepare import FRAGMENT
from tests.debian_kernel import fetched

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).resolve().parents[2]
GIVEN = os.environ.get("TREE", "")
TREE = Path(GIVEN or ROOT / "build" / "linux").absolute()
QUICK = bool(os.environ.get("QUICK"))
in_full = pytest.mark.skipif(QUICK, reason="QUICK=1")
SOAK = 600
FRAME_IS_COPIED = 40
"""Behind this boundary the legacy entry has copied its frame, or left its stack, and loses nothing."""


def start(*words: str) -> subprocess.Popen[str]:
    """A verb; what it says of its progress goes where our stderr goes."""
    command = [sys.executable, "-m", "atomicist", "linux", *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


def result(verb: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, _ = verb.communicate()
    assert verb.returncode in (0, 1), "see what it says on stderr"
    return verb.returncode, json.loads(out)


def run(*words: str) -> tuple[int, dict[str, Any]]:
    return result(start(*words))


@pytest.mark.skipif(bool(GIVEN), reason="TREE is taken as it is")
def test_build() -> None:
    fragment, mark = kernel_source() / FRAGMENT, TREE / ".configured-by"
    try:
        made_of_this = mark.read_bytes() == fragment.read_bytes() and applied(TREE, Tables(kernel_source()))
    except (OSError, TreeError):
        made_of_this = False
    if not made_of_this:
        shutil.rmtree(TREE, ignore_errors=True)
        TREE.parent.mkdir(exist_ok=True)
        status, found = run("prepare", str(TREE))
        assert (status, found["not_taken"]) == (0, [])
        assert run("apply", str(TREE))[0] == 0
        shutil.copy(fragment, mark)
    status, found = run("build", str(TREE))
    assert (status, found["atomic"], found["warnings"]) == (0, True, [])


@pytest.mark.parametrize("entry", ENTRIES)
def test_boot(entry: str) -> None:
    names = ["default"] if QUICK else [b.name for b in BOOTS]
    boots = [word for name in names for word in ("--boot", name)]
    status, found = run("boot", str(TREE), "--entry", entry, *boots)
    assert status == 0
    assert [b["problems"] for b in found["boots"]] == [[]] * len(names)
    assert all(b["stacks"] for b in found["boots"])


@in_full
def test_traces() -> None:
    status, found = run("traces", str(TREE), "--entry", "atomic")
    assert [t["problems"] for t in found["traces"]] == [[]] * 5
    assert all(t["samples"] for t in found["traces"])
    assert status == 0


@pytest.fixture(scope="module")
def soak() -> Iterator[subprocess.Popen[str] | None]:
    """All events at random for ten minutes, on one core, while others use the other."""
    if QUICK:
        yield None
        return
    with start("stress", str(TREE), "--entry", "atomic", "--seconds", str(SOAK)) as verb:
        yield verb
        verb.kill()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.usefixtures("soak")
def test_inject(entry: str) -> None:
    # What the legacy entry loses, it loses to the first of the orders.
    orders = INJECT_QUICK if QUICK or entry == "legacy" else ORDERS
    quick = ["--quick"] if orders is INJECT_QUICK else []
    verbs = [start("inject", str(TREE), "--entry", entry, "--context", c, *quick) for c in CONTEXTS]
    results = [result(verb) for verb in verbs]
    attacks = [a for _, found in results for a in found["attacks"]]
    assert [a["disagreements"] for a in attacks] == [[]] * len(attacks)
    lost = {(a["context"], *a["events"]): a["lost"] for a in attacks}
    assert set(lost) == {(c, *o) for c in CONTEXTS for o in orders}
    if entry == "atomic":
        assert [status for status, _ in results] == [0, 0]
        assert not any(lost.values())
    else:
        assert all(lost[c, "NMI", "MC", "NMI"][:20] == list(range(20)) for c in CONTEXTS)
        assert all(max(numbers, default=0) < FRAME_IS_COPIED for numbers in lost.values())


@in_full
def test_cost() -> None:
    status, found = run("cost", str(TREE), "--entry", "atomic", "--entry", "legacy")
    assert status == 0
    for row in found["cost"]:
        assert all(p["total"] == sum(count for _, count in p["stages"]) > 0 for p in row["paths"])
        assert all(row["nmis_per_cpu_second"])


@in_full
def test_soak(soak: subprocess.Popen[str]) -> None:
    status, found = result(soak)
    (report,) = found["boots"]
    assert (status, report["problems"]) == (0, [])
    assert report["seconds"] >= SOAK
    assert report["stacks"] > SOAK


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
