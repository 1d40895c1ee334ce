# SPDX-License-Identifier: GPL-2.0-only
"""The counts of what was injected where agree with the sums that the search gives."""

from __future__ import annotations

from atomicist.image import specimens
from atomicist.image.bare import BareConfig
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.search.injected import Injected, hits
from atomicist.search.progress import silent
from atomicist.search.replay import find_context
from atomicist.search.verify import enumerate_all, verify
from atomicist.search.workers import Workers, engine
from atomicist.spec.events import EVENTS


def test_each_delivery_is_counted_where_it_came() -> None:
    target = specimens.load(specimens.find("naive"), BareConfig(), cache_dir())
    result, _ = enumerate_all(target, vectors=(0, 2), budget=2, names=("user",), workers=1, listener=silent)
    inside = sum(sum(b.delivered) for b in result.boundaries)
    # each schedule has one event that is its last; the first ones come in user mode
    assert inside == result.coverage.executed - 2
    assert {e for b in result.boundaries for e in range(4) if b.delivered[e]} == {0, 2}
    assert not any(any(b.contexts) for b in result.boundaries)


def test_findings_are_found_at_their_boundaries() -> None:
    target = specimens.load(specimens.find("naive"), BareConfig(), cache_dir())
    result, _ = verify(target, vectors=(0, 2), names=("user",), workers=1)
    found = hits(target, result.findings)
    by_rip = {b.rip: b for b in result.boundaries}
    assert found
    for (rip, event), some in found.items():
        assert by_rip[rip].delivered[event]
        for index in some:
            assert f"{EVENTS[event]}@{target.symbolize(rip)}" in result.findings[index].schedule


def test_a_certificate_counts_what_it_tries(entry: Target) -> None:
    context = find_context(entry, "user")
    with Workers(entry, 1):
        r = engine().certify(context.registers, 0, expect_df=False, no_stack=False)
    tried = sum(memoryview(r.injected[1]).cast("Q"))
    delivered = sum(memoryview(r.injected[0]).cast("Q"))
    assert tried == r.hits + r.misses
    assert delivered == r.misses
    injected = Injected()
    injected.add(r.injected)
    boundaries = injected.boundaries(entry, (0,))
    assert sum(sum(b.delivered) + sum(b.covered) for b in boundaries) == tried
    commit = entry.symbols["atomic_ist_commit_nmi"]
    assert next(b for b in boundaries if b.rip == commit).reached
