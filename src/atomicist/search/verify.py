# SPDX-License-Identifier: GPL-2.0-only
"""Verifies a target: certificates where it says where it commits, else enumeration;
every finding is replayed on the reference interpreter before anybody sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from atomicist.isa.registers import BY_SLOT, REGISTERS, SLOTS
from atomicist.machine.target import Place, Target
from atomicist.native.codegen import compiled
from atomicist.native.engine import NativeEvent, NativeFinding, NativeResult
from atomicist.search.certificate import Raw, certify
from atomicist.search.injected import Injected
from atomicist.search.progress import Listener, Progress, silent
from atomicist.search.reach import Origin
from atomicist.search.replay import Replay, Timed, find_context, replay_timed
from atomicist.search.result import Coverage, Finding, Result
from atomicist.search.schedule import Injection, Schedule, ScheduleError
from atomicist.search.workers import Workers, compiled_code, default_workers, engine
from atomicist.spec.contexts import Context, contexts
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES

BUDGET: Final = 3
"""Events in one schedule, where an image gives no commit labels to close it by."""

KEPT: Final = 4096
"""Findings of one exploration that the native model keeps."""

SHRINK_LIMIT: Final = 300_000
"""Schedules that are walked at most to find a shorter counterexample."""

EXPLORED: Final = ("user", "kernel-task")
"""Start contexts of an enumeration, of any image."""


def explored(target: Target) -> tuple[str, ...]:
    """Start contexts of an enumeration: also those where it is wrong to go on."""
    inside = int(Place.LEA_LEFT | Place.RET_LEFT)
    rip = REGISTERS["RIP"].slot
    there = (c.name for c in contexts(target) if int(target.places.get(c.registers[rip], 0)) & inside)
    return (*EXPLORED, *there)


class Disagreement(Exception):  # noqa: N818 - said of the engines, not of the user
    """The two engines disagree about a finding: one of them has a bug."""


@dataclass(frozen=True, slots=True)
class _Task:
    context: Context
    vector: int
    offered: int
    budget: int


def _enumerate(task: _Task) -> NativeResult:
    c = task.context
    return engine().enumerate(
        c.registers, budget=task.budget, offered=task.offered, first=1 << task.vector, expect_df=c.expect_df,
        no_stack=c.no_stack, stop=KEPT, run=compiled_code(),
    )  # fmt: skip


def enumerate_all(
    target: Target,
    *,
    vectors: Sequence[int],
    budget: int,
    names: Sequence[str],
    workers: int,
    listener: Listener,
) -> tuple[Result, tuple[Raw, ...]]:
    """Every schedule of at most ``budget`` events from the contexts ``names``.

    KeyboardInterrupt ends it cleanly with what was covered."""
    started = time.monotonic()
    present = [v for v in vectors if EVENTS[v] in target.gates]
    offered = sum(1 << v for v in present)
    tasks = [_Task(find_context(target, n), v, offered, budget) for n in names for v in present]
    coverage, raw, because = Coverage(contexts=len(names)), [], ""
    injected = Injected()
    interrupted = False
    # once, here: workers that were forked before would each compile it
    compiled(target, CODES, EVENTS, ERROR_TOKEN)
    with Workers(target, workers or default_workers()) as pool:
        try:
            for done, (task, r) in enumerate(zip(tasks, pool.map(_enumerate, tasks), strict=True), start=1):
                coverage += Coverage(r.boundaries, r.executed, r.executed, 0, 0, 0, r.guest_insns)
                injected.add(r.injected)
                raw += [Raw(Origin(task.context.name), task.context, f) for f in r.findings]
                if r.overflow:
                    because = f"a table of the search overflowed (line {r.overflow})"
                listener(Progress("enumerating schedules", done, len(tasks), coverage.executed, len(raw)))
        except KeyboardInterrupt:
            interrupted = True
    because = "interrupted" if interrupted else because or f"schedules are bounded at {budget} events"
    return Result(
        target.name, target.build_id, target.config, "native (enumeration)", coverage, False, because, (),
        0, 0, time.monotonic() - started, interrupted, injected.boundaries(target, present),
    ), tuple(raw)  # fmt: skip


def timed(origin: Origin, events: Sequence[NativeEvent]) -> list[Timed]:
    """The injections of a native finding, from its start context on."""
    result: list[Timed] = []
    steps, depth = 0, 0
    for leg in [*((leg.events, leg.steps, leg.depth) for leg in origin.legs), (tuple(events), 0, 0)]:
        for e in leg[0]:
            result.append(Timed(EVENTS[e.vector], steps + e.steps, depth))
            steps = depth = 0
        steps, depth = leg[1], leg[2]
    return result


def reproduce(target: Target, raw: Raw) -> Replay:
    """Replay a native finding on the reference interpreter.

    Raises `Disagreement` if the reference does not violate the same property."""
    start = find_context(target, raw.origin.name)
    try:
        shown = replay_timed(target, start, timed(raw.origin, raw.finding.events))
    except ScheduleError as e:
        raise Disagreement(f"from {start.name}: {e}") from e
    wanted = f"IST{raw.finding.property:03d}"
    if shown.verdict.property != wanted:
        raise Disagreement(
            f"{shown.schedule.text(target)}: the native model says {wanted}, "
            f"the reference {shown.verdict.property or shown.verdict.outcome}"
        )
    return shown


def shrink(target: Target, raw: Raw, *, assumed: bool = False) -> Raw:
    """The same violation with the fewest events, at the earliest boundaries.

    With ``assumed`` the finding rests on an event that is not in its schedule: what a
    certificate takes as overwritten, because an event could come there and overwrite it.
    Then any violation within two events, or with one more event, will do.

    Smaller budgets are enumerated exhaustively from the finding's start context; the
    order of the enumeration makes the first hit the earliest."""
    events = timed(raw.origin, raw.finding.events)
    start = find_context(target, raw.origin.name)
    offered = sum(1 << v for v in {EVENTS.index(t.vector) for t in events})
    last = len(events) + 1 if assumed else len(events) - 1
    if assumed:
        offered = (1 << len(EVENTS)) - 1
    with Workers(target, 1):
        for budget in range(1, min(last, 2) + 1):
            result = engine().enumerate(
                start.registers, budget=budget, offered=offered, first=offered, expect_df=start.expect_df,
                no_stack=start.no_stack, stop=KEPT, limit=SHRINK_LIMIT,
            )  # fmt: skip
            for f in result.findings:
                if assumed or f.property == raw.finding.property:
                    return Raw(Origin(start.name), start, f)
    return raw


def _shown(target: Target, raw: Raw) -> Replay:
    """The replay of a finding, or of one that has the event in it which the finding assumes."""
    try:
        return reproduce(target, raw)
    except Disagreement:
        other = shrink(target, raw, assumed=True) if target.claims else raw
        if other is raw:
            raise
        return reproduce(target, other)


def finding_of(target: Target, shown: Replay) -> Finding:
    """The finding that a replay shows."""
    v = shown.verdict
    return Finding(
        v.property, shown.schedule.text(target), v.subject, v.expected, v.found, target.symbolize(v.rip)
    )


def _order(rank: Mapping[str, int], raw: Raw) -> tuple[int, int, int, bool, int, tuple[int, ...]]:
    """The fewest events first, then plain start contexts (``rank``: place in their table);
    of equals a loss rather than a run without end, the first property, the earliest."""
    f = raw.finding
    endless = f.property == CODES["ENDLESS"]
    steps = tuple(e.steps for e in f.events)
    return (
        len(raw.origin.legs),
        len(f.events),
        rank.get(raw.origin.name, len(rank)),
        endless,
        f.property,
        steps,
    )


def verify(
    target: Target,
    *,
    vectors: Sequence[int] = (0, 1, 2, 3),
    budget: int = BUDGET,
    names: Sequence[str] = (),
    workers: int = 0,
    listener: Listener = silent,
) -> tuple[Result, Replay | None]:
    """Verify ``target``; the result, and the replay of its shortest counterexample.

    Raises `Disagreement` if a finding does not reproduce on the reference interpreter,
    and `native.build.BuildError` if there is no compiler."""
    started = time.monotonic()
    if target.claims:
        result, raw = certify(target, vectors=tuple(vectors), workers=workers, listener=listener)
    else:
        result, raw = enumerate_all(
            target,
            vectors=vectors,
            budget=budget,
            names=names or explored(target),
            workers=workers,
            listener=listener,
        )
    if not raw:
        return replace(result, seconds=time.monotonic() - started), None
    rank = {c.name: i for i, c in enumerate(contexts(target))}
    shortest = min(raw, key=lambda r: _order(rank, r))
    if target.claims:
        first = min(raw, key=lambda r: (len(r.origin.legs), *_order(rank, r)[2:]))
        shortest = min(shrink(target, first), shortest, key=lambda r: _order(rank, r))
    shown = _shown(target, shortest)
    rest = [_as_finding(target, r) for r in raw if r is not shortest]
    findings = tuple(dict.fromkeys([finding_of(target, shown), *rest]))
    return replace(result, findings=findings, seconds=time.monotonic() - started), shown


def _as_finding(target: Target, raw: Raw) -> Finding:
    """A finding by its native notes; its schedule by places, without replaying it.

    Places are exact where no instruction repeats between two events; where one does,
    the replay of the string stops at its first time."""
    f = raw.finding
    from_events = [e for leg in raw.origin.legs for e in leg.events] + list(f.events)
    injections = tuple(Injection(EVENTS[e.vector], e.rip if i else None) for i, e in enumerate(from_events))
    schedule = Schedule(raw.origin.name, injections)
    subject = f.text or _subject(f)
    return Finding(
        f"IST{f.property:03d}", schedule.text(target), subject, f.expected, f.found, target.symbolize(f.rip)
    )


def _subject(f: NativeFinding) -> str:
    return BY_SLOT[f.register] if f.register < SLOTS else f"{f.address:#x}"
