# SPDX-License-Identifier: GPL-2.0-only
"""Runs the mutants of an image through the checker, the cheapest way to find each first.

1. The unchanged image is closed once, and it is noted which instructions were executed
   and which branches went which way.  A mutant of what no interleaving reaches behaves
   as the original does on all of them.
2. *Probes* look at parts of the search: one event from every start context, every second
   event behind it from some, then certificates.  Of each probe it is known which instructions it
   executes, so a mutant meets only those that meet it, first those that found its
   neighbours.  The first finding kills it.
3. What is left is closed, many mutants in one image (`close`): where the image has no
   finding, none of its mutants has one of its own; where it has, the mutants are tried
   one by one in the context that shows it, those that are found are taken out, and the
   rest is closed again.  A mutant that passes needs an argument besides (`equivalence`,
   or a named exception), since others in the image might hide it.

Every step is in the order of the image, so the result does not depend on the workers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from atomicist.image.mutate import Change, Mutant, Mutator
from atomicist.isa.ir import Flow
from atomicist.machine.target import Target
from atomicist.native.engine import NativeFinding, NativeResult
from atomicist.native.patch import PatchableEngine, PatchError
from atomicist.search.equivalence import Liveness, same
from atomicist.search.schedule import Injection, Schedule
from atomicist.search.workers import MAX_RUN
from atomicist.spec.contexts import Context, contexts
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES

PAIRS_FROM: Final = (
    "kernel-task", "user-rsp-nmi_stack", "kernel-main-0xb8", "user", "gap-entry_SYSCALL_64-hostile",
    "kernel-main-full-0x1d50",
)  # fmt: skip
"""Start contexts from which two events are tried, in this order."""

CERTIFIED: Final = ("contradiction-rsp-nmi_stack", "contradiction-rip-asm_exc_nmi", "kernel-main-full-0x1ca0")
"""Start contexts that are certified for a mutant alone."""

CHUNK: Final = 64
"""Mutants that are worked on together; also what an interrupted run loses at most, per worker."""

_EXECUTED, _FELL, _WENT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Probe:
    """A part of the search: from ``context``, ``first`` first.  ``budget`` is how many
    events there are, from the bit set ``offered``; 0: a certificate, which has them all."""

    context: Context
    first: int
    offered: int
    budget: int

    @property
    def step(self) -> str:
        """What kind of probe it is."""
        return ("certificate", "one event", "two events")[self.budget]


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


def probes(target: Target) -> tuple[Probe, ...]:
    """All probes of ``target``, the cheapest first."""
    start = {c.name: c for c in contexts(target)}
    allowed = {
        n: [v for v, e in enumerate(EVENTS) if c.only in ("", e) and e in target.gates]
        for n, c in start.items()
    }
    found = [Probe(c, v, 1 << v, 1) for n, c in start.items() for v in allowed[n]]
    for name in PAIRS_FROM:
        for v in allowed.get(name, ()):
            found += [Probe(start[name], v, 1 << v | 1 << w, 2) for w in allowed[name] if w != v]
    for name in CERTIFIED:
        found += [Probe(start[name], v, 0, 0) for v in allowed.get(name, ())]
    return tuple(found)


def run_probe(engine: PatchableEngine, probe: Probe) -> NativeResult:
    """What ``probe`` finds in the engine's present target."""
    c = probe.context
    if not probe.budget:
        return engine.certify(c.registers, probe.first, expect_df=c.expect_df, no_stack=c.no_stack)
    return engine.enumerate(
        c.registers, budget=probe.budget, offered=probe.offered, first=1 << probe.first,
        expect_df=c.expect_df, no_stack=c.no_stack, stop=1,
    )  # fmt: skip


class Quick:
    """Steps 1 and 2 for one target: decides most of its mutants."""

    def __init__(self, target: Target, ran: bytes) -> None:
        """``ran``: what closing the unchanged target executed (`PatchableEngine.ran`)."""
        self.mutator = Mutator(target)
        self._target = target
        self._ran = ran
        self._live = Liveness(target)
        self._index = {va: i for i, va in enumerate(sorted(target.insns))}
        self._engine = PatchableEngine(target, CODES, EVENTS, ERROR_TOKEN, MAX_RUN)
        self._probes = probes(target)
        self._reaches: list[bytes] = []
        for probe in self._probes:
            self._engine.ran()
            result = run_probe(self._engine, probe)
            if result.findings:
                raise RuntimeError(f"the unchanged image has a finding from {probe.context.name}")
            self._reaches.append(self._engine.ran())

    def chunk(self, mutants: Sequence[Mutant]) -> list[Outcome]:
        """The outcomes of neighbouring mutants."""
        kills: Counter[int] = Counter()
        return [self._decide(m, kills) for m in mutants]

    def _decide(self, mutant: Mutant, kills: Counter[int]) -> Outcome:
        started = time.monotonic()
        change = self.mutator.lift(mutant.edits)
        outcome = self._unreached(mutant, change) or self._probed(mutant, change, kills)
        return replace(outcome, seconds=round(time.monotonic() - started, 4))

    def _touched(self, change: Change) -> list[int]:
        known = self._target.insns
        return [self._index[va] for va, insn in change.insns.items() if va in known and insn != known[va]]

    def _unreached(self, mutant: Mutant, change: Change) -> Outcome | None:
        touched = self._touched(change)
        if not any(self._ran[i] & _EXECUTED for i in touched):
            return Outcome(mutant.name, "equivalent", "closed", reason="never executed")
        at = self._index[mutant.va]
        alone = mutant.kind in ("branch", "delete") and touched == [at]
        branch = self._target.insns[mutant.va].flow is Flow.BRANCH
        if alone and branch and not self._ran[at] & _WENT:
            return Outcome(mutant.name, "equivalent", "closed", reason="the branch is never taken")
        return None

    def _probed(self, mutant: Mutant, change: Change, kills: Counter[int]) -> Outcome:
        touched = self._touched(change)
        relevant = [
            n for n, ran in enumerate(self._reaches) if any(ran[i] & _EXECUTED for i in touched)
        ]  # fmt: skip
        relevant.sort(key=lambda n: (self._probes[n].budget == 0, self._probes[n].budget, -kills[n], n))
        cheap = [n for n in relevant if self._probes[n].budget]
        outcome = self._try(mutant, change, cheap, kills)
        if outcome is not None:
            return outcome
        reason = self.argument(mutant, change)
        if reason:
            return Outcome(mutant.name, "equivalent", "argued", reason=reason)
        outcome = self._try(mutant, change, [n for n in relevant if not self._probes[n].budget], kills)
        return outcome or Outcome(mutant.name, "passed", "certificate")

    def argument(self, mutant: Mutant, change: Change) -> str:
        """Why the mutant does the same, by the IR alone; "" if that cannot be said."""
        insn = self._target.insns[mutant.va]
        end = self._target.insns[insn.next].next if mutant.kind == "swap" else insn.next
        return same(self._target, self._live, change, (mutant.va, end))

    def _try(
        self, mutant: Mutant, change: Change, numbers: Iterable[int], kills: Counter[int]
    ) -> Outcome | None:
        try:
            with self._engine.patched(change.insns, {va: int(p) for va, p in change.places.items()}):
                for n in numbers:
                    probe = self._probes[n]
                    found = run_probe(self._engine, probe).findings
                    if found:
                        kills[n] += 1
                        return killed(self._target, mutant, probe.step, probe.context.name, found[0])
        except PatchError as e:
            return Outcome(mutant.name, "survived", "not run", reason=str(e))
        return None

    def find_in(self, mutant: Mutant, context: Context, vectors: Sequence[int]) -> Outcome | None:
        """Whether the mutant alone is found in one context, by its certificates."""
        change = self.mutator.lift(mutant.edits)
        with self._engine.patched(change.insns, {va: int(p) for va, p in change.places.items()}):
            for v in vectors:
                result = run_probe(self._engine, Probe(context, v, 0, 0))
                if result.findings:
                    return killed(self._target, mutant, "closed", context.name, result.findings[0])
        return None


def killed(target: Target, mutant: Mutant, by: str, start: str, finding: NativeFinding) -> Outcome:
    """The outcome of a mutant with a finding from the context ``start``."""
    events = tuple(
        Injection(EVENTS[e.vector], e.rip if i else None) for i, e in enumerate(finding.events)
    )  # fmt: skip
    schedule = Schedule(start, events).text(target)
    return Outcome(mutant.name, "killed", by, f"IST{finding.property:03d}", schedule)


def chunks(mutants: Sequence[Mutant]) -> list[tuple[Mutant, ...]]:
    """The mutants in portions, in order."""
    return [tuple(mutants[i : i + CHUNK]) for i in range(0, len(mutants), CHUNK)]


def batches(mutator: Mutator, mutants: Sequence[Mutant], most: int) -> list[tuple[Mutant, ...]]:
    """Portions of mutants that can be in one image: no two change the same instruction, or
    neighbours of which one is moved."""
    found: list[tuple[list[Mutant], set[int]]] = []
    for mutant in mutants:
        change = mutator.lift(mutant.edits)
        taken = {va + k for va, new in mutant.edits for k in range(len(new))} | set(change.insns)
        for members, used in found:
            if len(members) < most and not used & taken:
                members.append(mutant)
                used.update(taken)
                break
        else:
            found.append(([mutant], set(taken)))
    return [tuple(members) for members, _ in found]


def by_name(outcomes: Iterable[Outcome]) -> Mapping[str, Outcome]:
    """The outcomes by the names of their mutants."""
    return {o.name: o for o in outcomes}
