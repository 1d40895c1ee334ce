# SPDX-License-Identifier: GPL-2.0-only
"""What was injected where, over a whole search: counted in the native runtime where an
event is delivered or tried, and put together here by boundary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from atomicist.machine.target import Target
from atomicist.search.result import Boundary, Finding
from atomicist.search.schedule import ScheduleError, parse
from atomicist.spec.events import EVENTS

Counts = Iterable[tuple[int, int, int, int]]
"""As `native.engine.NativeResult.injected`."""


class Injected:
    """The sums."""

    def __init__(self) -> None:
        self._delivered: Counter[tuple[int, int]] = Counter()
        self._offered: Counter[tuple[int, int]] = Counter()
        self.contexts: Mapping[int, int] = {}

    def add(self, counts: Counts) -> None:
        """Add what one exploration injected."""
        for rip, event, delivered, offered in counts:
            self._delivered[rip, event] += delivered
            self._offered[rip, event] += offered

    def boundaries(self, target: Target, vectors: Sequence[int]) -> tuple[Boundary, ...]:
        """For each instruction of ``target``, and each handler, what came before it."""
        made = []
        for rip in sorted(target.insns):
            function, _, offset = target.symbolize(rip).partition("+")
            events = range(len(EVENTS))
            delivered = tuple(self._delivered[rip, e] for e in events)
            covered = tuple(max(0, self._offered[rip, e] - self._delivered[rip, e]) for e in events)
            contexts = tuple(self.contexts.get(rip, 0) if e in vectors else 0 for e in events)
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
