# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel under the same ruler: its entries work, and lose what they are known
to lose."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from atomicist.image.vmlinux import load
from atomicist.machine.target import Target
from atomicist.search.progress import silent
from atomicist.search.replay import replay
from atomicist.search.schedule import parse
from atomicist.search.verify import enumerate_all, reproduce
from atomicist.spec.events import EVENTS

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "build" / "kernel-image" / "vmlinuz"


@pytest.fixture(scope="module")
def kernel() -> Target:
    if not IMAGE.exists():
        subprocess.run([ROOT / "tools" / "kernel-image"], check=True, cwd=ROOT)
    return load(IMAGE)


@pytest.mark.parametrize("context", ["user", "kernel-task"])
@pytest.mark.parametrize("vector", EVENTS)
def test_each_entry_restores_the_context(kernel: Target, context: str, vector: str) -> None:
    shown = replay(kernel, parse(f"{context}:{vector}", kernel))
    assert shown.verdict.property == "", shown.verdict
    assert shown.verdict.outcome == "resumed"


@pytest.mark.parametrize("context", ["user", "kernel-task"])
def test_one_nested_event_is_survived(kernel: Target, context: str) -> None:
    """An NMI with one #MC anywhere in it, and the other way round."""
    result, raw = enumerate_all(
        kernel, vectors=(0, 2), budget=2, names=(context,), workers=1, listener=silent
    )
    assert result.coverage.executed > 200
    assert {tuple(EVENTS[e.vector] for e in r.finding.events) for r in raw} <= {("MC", "MC")}


@pytest.mark.parametrize("context", ["user", "kernel-task"])
def test_the_known_hole(kernel: Target, context: str) -> None:
    """A #MC in the first instructions of the NMI entry returns by IRET, which unmasks NMIs;
    a second NMI then overwrites the first one's frame.  It is lost at each boundary from
    the delivery on, without a gap, up to where the frame has been copied, and at none
    behind: from kernel mode that is where the kernel says so itself (repeat_nmi, behind the copying of
    first_nmi), from user mode the switch to the task's stack is over by then."""
    _, raw = enumerate_all(kernel, vectors=(0, 2), budget=3, names=(context,), workers=1, listener=silent)
    lost = [r for r in raw if tuple(EVENTS[e.vector] for e in r.finding.events) == ("NMI", "MC", "NMI")]
    boundaries = sorted({r.finding.events[1].steps for r in lost})
    assert boundaries == list(range(len(boundaries)))
    assert len(lost) == len(boundaries) * (len(boundaries) + 1) // 2, "each with every later one as well"
    assert 20 <= len(boundaries) <= 40
    if context == "kernel-task":
        last = max(lost, key=lambda r: r.finding.events[1].steps).finding.events[1]
        assert kernel.symbols["first_nmi"] <= last.rip < kernel.symbols["repeat_nmi"]
    shown = reproduce(kernel, lost[0])
    assert shown.verdict.property in ("IST001", "IST013")
