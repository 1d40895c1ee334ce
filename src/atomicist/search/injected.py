# SPDX-License-Identifier: GPL-2.0-only
"""What was injected where, over a whole search: counted in the native runtime where an
event is delivered or tried, and put together here by boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atomicist.machine.target import Target
from atomicist.search.result import Boundary, Finding
from atomicist.search.schedule import ScheduleError, parse
from atomicist.spec.events import EVENTS


class Injected:
    """The sums: numbers of 64 bits side by side in two long ones, to be added at once."""

    def __init__(self) -> None:
        self._delivered = 0
        self._offered = 0
        self.contexts: Mapping[int, int] = {}

    def add(self, counts: tuple[bytes, bytes]) -> None:
        """Add what one exploration injected, as `native.engine.NativeResult.injected` has it."""
        delivered, offered = counts
        self._delivered += int.from_bytes(delivered, "little")
        self._offered += int.from_bytes(offered, "little")

    def boundaries(self, target: Target, vectors: Sequence[int]) -> tuple[Boundary, ...]:
        """For each instruction of ``target``, and each handler, what came before it."""
        events = len(EVENTS)
        size = len(target.insns) * events
        all_delivered, all_offered = (
            memoryview(n.to_bytes(8 * size, "little")).cast("Q") for n in (self._delivered, self._offered)
        )
        made = []
        for i, rip in enumerate(sorted(target.insns)):
            function, _, offset = target.symbolize(rip).partition("+")
            here = range(i * events, (i + 1) * events)
            delivered = tuple(all_delivered[k] for k in here)
            covered = tuple(max(0, all_offered[k] - all_delivered[k]) for k in here)
            contexts = tuple(self.contexts.get(rip, 0) if e in vectors else 0 for e in range(events))
            text = "the handler" if rip in target.handlers else target.insns[rip].text
            made.append(Boundary(rip, function, int(offset or "0", 0), text, delivered, covered, contexts))
        return tuple(made)


def hits(target: Target, findings: Sequence[Finding]) -> dict[tuple[int, int], list[int]]:
    """(address, event) -> the indices of the findings in whose schedules that event comes
    there."""
    found: dict[tuple[int, int], list[int]] = {}
    for index, finding in enumerate(findings):
        try:
            schedule = parse(finding.schedule, target)
        except ScheduleError:
            continue  # a place that its text does not name exactly
        for injection in schedule.injections:
            if injection.rip is not None:
                known = found.setdefault((injection.rip, EVENTS.index(injection.vector)), [])
                if not known or known[-1] != index:
                    known.append(index)
    return found
