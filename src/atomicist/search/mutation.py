# SPDX-License-Identifier: GPL-2.0-only
"""Runs the mutants of an image through the checker, the cheapest way to find each first.

1. The unchanged image is closed once, and it is noted which instructions were executed
   and which branches went which way.  A mutant of what no interleaving reaches behaves
   as the original does on all of them.
2. *Probes* look at parts of the search, each mutant alone: one event from every start
   context, and from some another one early in its entry.  Of each probe it is known which
   instructions it executes, so a mutant meets only those that meet it, first those that
   found its neighbours.  The first finding kills it.
3. What is left is put into images of many mutants (`grouped`), and those are given every
   certificate that closing the unchanged image took, if it executes one of them.  Where
   there is a finding, halves are tried, and halves of these, until it is shown by mutants alone.
   A certificate that holds for what it held for in the unchanged image, and meets nothing else,
   serves in its place; so if all do, the image with these mutants is closed.
4. Mutants with which a certificate holds for less, or meets something new, are closed from the start,
   again many in one image.  Where an image is closed without a finding, none of its mutants has one
   of its own.  A mutant that passes needs an argument besides (`equivalence`, or a named exception),
   since others in the image might hide it.
5. What is left without an argument is compared with the original, certificate by certificate (`alike`):
   the same ways and the same ends are one.

Every step is in the order of the image, so the result does not depend on the workers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from atomicist.image.mutate import Change, Mutant, Mutator
from atomicist.isa.ir import Flow, Insn
from atomicist.machine.target import Target
from atomicist.native.engine import NativeFinding, NativeResult
from atomicist.native.patch import PatchableEngine, PatchError
from atomicist.search.equivalence import Liveness, same
from atomicist.search.schedule import Injection, Schedule
from atomicist.search.workers import MAX_RUN
from atomicist.spec.contexts import Context, contexts
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES

PAIRS_FROM: Final = ("kernel-task", "user")
"""Start contexts from which two events are tried."""

EARLY: Final = 64
"""Boundaries behind the first event at which the second is tried: save 2, and a little more."""

IMAGES: Final = 12
"""Images that many mutants are dealt to, at least, ..."""
FEW: Final = 20
"""... if there are as many for each."""

CHUNK: Final = 64
"""Mutants that are worked on together; also what an interrupted run loses at most, per worker."""

_EXECUTED, _FELL, _WENT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Held:
    """What a certificate holds for, and the contexts that it meets (`NativeResult`)."""

    covers: bytes
    covers_rsp: bytes
    covers_key: tuple[frozenset[int], ...]
    cells: tuple[tuple[tuple[int, bool], ...] | None, ...]
    shapes: frozenset[bytes]
    holds: tuple[bool, ...] = ()

    def serves_for(self, other: Held) -> bool:
        """Whether it holds for all that ``other`` holds for, and meets nothing that ``other``
        does not: a closed search that has ``other`` is closed with this one in its place."""
        return (
            _no_less(self.covers, other.covers)
            and _no_less(self.covers_rsp, other.covers_rsp)
            and all(a >= b for a, b in zip(self.covers_key, other.covers_key, strict=True))
            and self.cells == other.cells
            and len(self.holds) == len(other.holds)
            and all(a >= b for a, b in zip(self.holds, other.holds, strict=True))
            and self.shapes <= other.shapes
        )


def held(result: NativeResult) -> Held:
    """What the certificate ``result`` holds for."""
    return Held(
        result.covers, result.covers_rsp, result.covers_key, result.cells,
        frozenset(result.emitted.shapes()), result.holds,
    )  # fmt: skip


def _no_less(a: bytes, b: bytes) -> bool:
    """Whether ``a`` has a flag wherever ``b`` has one."""
    return int.from_bytes(b, "little") & ~int.from_bytes(a, "little") == 0


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the search: from ``context``, ``first`` first: that one event alone, with
    ``second`` another one at each of the first boundaries behind it, or with ``closed`` a
    certificate, which has them all.  ``ran``: what the unchanged image executes;
    ``held`` and ``ends``: what that certificate holds for there, and what it leaves behind
    (`NativeResult`); ``others``: the contexts that it was asked for; ``cost``: the instructions
    that it took, each in one state."""

    context: Context
    first: int
    closed: bool = False
    ran: bytes = b""
    second: int | None = None
    held: Held | None = None
    ends: tuple[int, int] = (0, 0)
    others: tuple[tuple[int, ...], ...] = ()
    cost: int = 0

    @property
    def step(self) -> str:
        """What kind of part it is."""
        return "certificate" if self.closed else "one event" if self.second is None else "two events"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: ``status`` is killed, equivalent, passed (nothing was found
    yet, and no argument) or survived; ``by`` the step of the search that decided;
    ``property`` and ``schedule`` are the finding's, ``reason`` the argument."""

    name: str
    status: str
    by: str
    property: str = ""
    schedule: str = ""
    reason: str = ""
    seconds: float = 0.0


def probes(target: Target) -> tuple[Part, ...]:
    """Each event from each start context of ``target``, and two from those of `PAIRS_FROM`."""
    single = [
        Part(c, v)
        for c in contexts(target)
        for v, name in enumerate(EVENTS)
        if c.only in ("", name) and name in target.gates
    ]
    pairs = [
        replace(p, second=v)
        for p in single
        for v, name in enumerate(EVENTS)
        if p.context.name in PAIRS_FROM and v != p.first and name in target.gates
    ]
    return (*single, *pairs)


def look(engine: PatchableEngine, part: Part) -> NativeResult:
    """What ``part`` of the search finds in the engine's present target."""
    c = part.context
    if part.closed:
        return engine.certify(
            c.registers, part.first, expect_df=c.expect_df, no_stack=c.no_stack, others=part.others
        )
    offered = 1 << part.first | (0 if part.second is None else 1 << part.second)
    return engine.enumerate(
        c.registers, budget=1 if part.second is None else 2, offered=offered, first=1 << part.first,
        expect_df=c.expect_df, no_stack=c.no_stack, stop=1, limit=0 if part.second is None else EARLY,
    )  # fmt: skip


class Quick:
    """Steps 1 and 2 for one target: decides most of its mutants; and what the others need."""

    def __init__(self, target: Target, ran: bytes) -> None:
        """``ran``: what closing the unchanged target executed (`PatchableEngine.ran`)."""
        self.mutator = Mutator(target)
        self.engine = PatchableEngine(target, CODES, EVENTS, ERROR_TOKEN, MAX_RUN)
        self._target = target
        self._ran = ran
        self._live = Liveness(target)
        self.index = {va: i for i, va in enumerate(sorted(target.insns))}
        self._probes: list[Part] = []
        for probe in probes(target):
            self.engine.ran()
            result = look(self.engine, probe)
            if result.findings:
                raise RuntimeError(f"the unchanged image has a finding from {probe.context.name}")
            self._probes.append(replace(probe, ran=self.engine.ran()))

    def chunk(self, mutants: Sequence[Mutant]) -> list[Outcome]:
        """The outcomes of neighbouring mutants."""
        kills: Counter[int] = Counter()
        return [self._decide(m, kills) for m in mutants]

    def _decide(self, mutant: Mutant, kills: Counter[int]) -> Outcome:
        started = time.monotonic()
        change = self.mutator.lift(mutant.edits)
        outcome = self._unreached(mutant, change) or self._probed(mutant, change, kills)
        return replace(outcome, seconds=round(time.monotonic() - started, 4))

    def look(self, changes: Iterable[Change], part: Part) -> tuple[NativeResult, bytes]:
        """What ``part`` finds with ``changes`` in the target, and what it executes
        (`PatchableEngine.ran`). Raises `PatchError`."""
        with self.patched(changes):
            self.engine.ran()
            result = look(self.engine, part)
        return result, self.engine.ran()

    def follows(self, changes: Iterable[Change], part: Part, finding: NativeFinding) -> int | None:
        """The property that the schedule of ``finding`` violates from the context of ``part`` with
        ``changes`` in the target, as `Engine.follow` says it."""
        c = part.context
        events = [(e.vector, e.steps) for e in finding.events]
        with self.patched(changes):
            return self.engine.follow(c.registers, events, expect_df=c.expect_df, no_stack=c.no_stack)

    def touched(self, change: Change) -> tuple[int, ...]:
        """The numbers of the target's instructions, by address, that ``change`` changes."""
        known = self._target.insns
        return tuple(self.index[va] for va, insn in change.insns.items() if va in known and insn != known[va])

    def _unreached(self, mutant: Mutant, change: Change) -> Outcome | None:
        touched = self.touched(change)
        if not any(self._ran[i] & _EXECUTED for i in touched):
            return Outcome(mutant.name, "equivalent", "closed", reason="never executed")
        at = self.index[mutant.va]
        alone = mutant.kind in ("branch", "delete") and touched == (at,)
        branch = self._target.insns[mutant.va].flow is Flow.BRANCH
        if alone and branch and not self._ran[at] & _WENT:
            return Outcome(mutant.name, "equivalent", "closed", reason="the branch is never taken")
        return None

    def _probed(self, mutant: Mutant, change: Change, kills: Counter[int]) -> Outcome:
        touched = self.touched(change)
        relevant = [n for n, p in enumerate(self._probes) if executes(p, touched)]
        relevant.sort(key=lambda n: (self._probes[n].second is not None, -kills[n], n))
        try:
            with self.patched([change]):
                for n in relevant:
                    found = look(self.engine, self._probes[n]).findings
                    if found:
                        kills[n] += 1
                        return killed(self._target, mutant, self._probes[n], found[0])
        except PatchError as e:
            return Outcome(mutant.name, "survived", "not run", reason=str(e))
        reason = self.argument(mutant, change)
        if reason:
            return Outcome(mutant.name, "equivalent", "argued", reason=reason)
        return Outcome(mutant.name, "passed", "two events")

    def argument(self, mutant: Mutant, change: Change) -> str:
        """Why the mutant does the same, by the IR alone; "" if that cannot be said."""
        insn = self._target.insns[mutant.va]
        end = self._target.insns[insn.next].next if mutant.kind == "swap" else insn.next
        return same(self._target, self._live, change, (mutant.va, end))

    @contextmanager
    def patched(self, changes: Iterable[Change]) -> Iterator[None]:
        """Within it, the engine's target has all of ``changes``. Raises `PatchError`."""
        insns: dict[int, Insn | None] = {}
        places: dict[int, int] = {}
        for change in changes:
            insns |= change.insns
            places |= {va: int(p) for va, p in change.places.items()}
        with self.engine.patched(insns, places):
            yield


def executes(part: Part, touched: Iterable[int]) -> bool:
    """Whether ``part`` executes one of the instructions ``touched`` of the unchanged image."""
    return any(part.ran[i] & _EXECUTED for i in touched)


def killed(target: Target, mutant: Mutant, part: Part, finding: NativeFinding, by: str = "") -> Outcome:
    """The outcome of a mutant with a ``finding`` in ``part``."""
    events = tuple(
        Injection(EVENTS[e.vector], e.rip if i else None) for i, e in enumerate(finding.events)
    )  # fmt: skip
    schedule = Schedule(part.context.name, events).text(target)
    return Outcome(mutant.name, "killed", by or part.step, f"IST{finding.property:03d}", schedule)


def chunks(mutants: Sequence[Mutant]) -> list[tuple[Mutant, ...]]:
    """The mutants in portions, in order."""
    return [tuple(mutants[i : i + CHUNK]) for i in range(0, len(mutants), CHUNK)]


def batches(mutator: Mutator, mutants: Sequence[Mutant], most: int) -> list[tuple[Mutant, ...]]:
    """Portions of mutants that can be in one image: no byte is changed by one and executed, as
    part of an instruction that was not there before, by another.

    They are dealt like cards: neighbours, which may undo each other, come into different images."""
    found: list[tuple[list[Mutant], set[int]]] = [
        ([], set()) for _ in range(max(min(IMAGES, -(-len(mutants) // FEW)), -(-len(mutants) // most)))
    ]
    place = {m.name: number for number, m in enumerate(sorted(mutants, key=lambda m: m.va))}
    for mutant in mutants:
        change = mutator.lift(mutant.edits)
        taken = {va + k for va, new in mutant.edits for k in range(len(new))}
        for va, insn in change.insns.items():
            taken |= set(range(va, va + (insn.size if insn is not None else 1)))
        at = place[mutant.name] % len(found)
        for members, used in found[at:] + found[:at]:
            if len(members) < most and not used & taken:
                members.append(mutant)
                used.update(taken)
                break
        else:
            found.append(([mutant], taken))
    return [tuple(members) for members, _ in found if members]


def by_name(outcomes: Iterable[Outcome]) -> Mapping[str, Outcome]:
    """The outcomes by the names of their mutants."""
    return {o.name: o for o in outcomes}
