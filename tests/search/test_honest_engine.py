# SPDX-License-Identifier: GPL-2.0-only
"""What the native search says of itself can be relied on."""

from __future__ import annotations

from itertools import pairwise

import pytest

from atomicist.isa.ir import Code
from atomicist.machine.target import Place, Target
from atomicist.native import engine as native
from atomicist.native.build import runtime_sources
from atomicist.native.engine import NativeResult
from atomicist.search.replay import find_context
from atomicist.search.workers import new_engine


def test_an_end_without_a_reason_is_an_error(entry: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that broke off comes with a finding, or with the table that was too small."""
    context = find_context(entry, "user")
    with new_engine(entry) as engine:
        engine.certify(context.registers, 0, expect_df=False, no_stack=False)
        monkeypatch.setattr(engine._lib, "atomicist_certify", lambda *_: 2)
        with pytest.raises(AssertionError, match="does not say why"):
            engine.certify(context.registers, 0, expect_df=False, no_stack=False)


def test_a_deliberate_double_fault_ends_with_its_push(entry: Target) -> None:
    """Code behind it, up to the next symbol, may not fault with impunity."""
    deliberate = sorted(va for va, place in entry.places.items() if place & Place.DELIBERATE)
    starts = [va for name, va in entry.symbols.items() if name.startswith("atomic_ist_double_fault_")]
    assert len(starts) == 12
    pushes = [va for va in deliberate if any(op.code is Code.STORE for op in entry.insns[va].ops)]
    assert len(pushes) == len(starts)
    for start in starts:
        end = min(va for va in pushes if va >= start)
        inside = [va for va in deliberate if start <= va <= end]
        assert inside[0] == start
        assert all(a + entry.insns[a].size == b for a, b in pairwise(inside))
        assert entry.insns[end].next not in deliberate


JOURNAL = "m->journal[m->clock] = loc;"


def checked(entry: Target, name: str) -> NativeResult:
    context = find_context(entry, name)
    with new_engine(entry) as engine:
        return engine.certify(context.registers, 2, expect_df=False, no_stack=False, checked=True)


@pytest.mark.parametrize("name", ["user", "kernel-main-0x8"])
def test_what_has_changed_is_all_that_can_differ(entry: Target, name: str) -> None:
    """A class that is met again is asked what was written since; asking everything says the same."""
    asked, context = checked(entry, name), find_context(entry, name)
    with new_engine(entry) as engine:
        usual = engine.certify(context.registers, 2, expect_df=False, no_stack=False)
    assert asked.overflow == 0
    assert asked.interleavings == usual.interleavings
    assert asked.hits == usual.hits > 10_000


def test_a_write_that_is_not_noted_is_noticed(entry: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test before can fail: here every write is noted as one of RAX."""
    sources = runtime_sources()
    assert sources["model.h"].count(JOURNAL) == 1
    broken = sources | {"model.h": sources["model.h"].replace(JOURNAL, "m->journal[m->clock] = 0;")}
    monkeypatch.setattr(native, "runtime_sources", lambda: broken)
    assert checked(entry, "user").overflow


def test_a_chain_that_is_too_long_ends_the_search_and_finds_nothing(entry: Target) -> None:
    """Deeper than there are instances: an overflow, not a finding of what was never there."""
    context = find_context(entry, "kernel-task")
    with new_engine(entry) as engine:
        result = engine.enumerate(context.registers, budget=14, offered=0b1111, first=1, limit=3000)
    assert not result.findings
    assert result.overflow
