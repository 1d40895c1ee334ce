# SPDX-License-Identifier: GPL-2.0-only
"""Closes all nestings of an entry that says where it commits, and says so honestly.

One *certificate* is the exploration of one context with each vector first: every
event at every boundary up to the commits, and each committed state on until the
context runs again (native/runtime/certify.c).  Two facts make it more than a test
of that one context:

* it is known what the outcome rested on.  If that is nothing but the registers of a
  *key* (RSP, CS, SS, GSBASE, KERNEL_GSBASE, CR3, SPEC_CTRL) and, of RIP, the results of
  some comparisons, then the certificate holds for every context with that key for
  which the comparisons come out the same.  Anything else that it rests on is reported,
  and the search is not closed;
* contexts that the run itself passes through after a commit - our own return path,
  the handlers - are contexts like any other.  They are collected and certified in
  turn until no new one appears.

By induction over the number of events, every schedule from a certified context ends
with that context resumed unchanged.  Depth on the main stack needs no bound of ours:
contexts get deeper until the entry itself refuses for want of room.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from atomicist.isa.registers import BY_SLOT, REGISTERS, SLOTS
from atomicist.machine.target import Target
from atomicist.native.engine import NativeContext, NativeEvent, NativeFinding, NativeResult
from atomicist.native.tables import KEY_SLOTS
from atomicist.search.progress import Listener, Progress, silent
from atomicist.search.result import Coverage, Result
from atomicist.search.workers import Workers, default_workers, engine
from atomicist.spec.contexts import Context, contexts, from_key
from atomicist.spec.events import EVENTS

STOP_AFTER: Final = 8
"""Contexts with findings after which an image counts as broken and the search ends."""

_KEY: Final = tuple(REGISTERS[name].slot for name in KEY_SLOTS)


@dataclass(frozen=True, slots=True)
class Origin:
    """How a context is reached: from the start context ``name`` by ``legs``, each the
    events of one certificate and the instructions behind the last of them; ``depth``
    more bytes of stack used in the handler where a leg ends."""

    name: str
    legs: tuple[tuple[tuple[NativeEvent, ...], int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Raw:
    """A finding of the native model, with where its context came from."""

    origin: Origin
    context: Context
    finding: NativeFinding


@dataclass(frozen=True, slots=True)
class _Task:
    context: Context
    vector: int


def _certify(task: _Task) -> NativeResult:
    c = task.context
    return engine().certify(c.registers, task.vector, expect_df=c.expect_df, no_stack=c.no_stack)


def key_of(context: Context) -> tuple[int, ...]:
    """The values of the key registers."""
    return tuple(context.registers[slot] for slot in _KEY)


@dataclass(slots=True)
class _Certified:
    """The RIPs, by instruction index, for which certificates of one key hold."""

    covers: list[int] = field(default_factory=list)

    def add(self, bitmaps: Iterable[bytes]) -> None:
        both = ~0
        for bitmap in bitmaps:
            both &= int.from_bytes(bitmap, "little")
        self.covers.append(both)

    def holds(self, index: int) -> bool:
        return any(c >> 8 * index & 1 for c in self.covers)


class Certifier:
    """The worklist of contexts and what is certified of them."""

    def __init__(self, target: Target, vectors: tuple[int, ...], listener: Listener) -> None:
        self._target = target
        self._vectors = vectors
        self._listener = listener
        self._index = {va: i for i, va in enumerate(sorted(target.insns))}
        self._certified: dict[tuple[int, ...], _Certified] = {}
        self._pending: dict[tuple[tuple[int, ...], int], tuple[Context, Origin]] = {}
        self._done = 0
        self.coverage = Coverage()
        self.findings: list[Raw] = []
        self.open_because = ""
        self.commit_distance = 0
        self.lowest_main = (1 << 64) - 1
        self._rip = REGISTERS["RIP"].slot

    def run(self, workers: Workers) -> None:
        """Work until nothing is left, or enough is broken."""
        start = [(c, Origin(c.name)) for c in contexts(self._target)]
        self.coverage += Coverage(contexts=len(start))
        self._round(workers, start)
        while self._pending and len(self.findings) < STOP_AFTER:
            chosen = self._choose()
            if chosen:
                self._round(workers, chosen)
        if self._pending or len(self.findings) >= STOP_AFTER:
            self.open_because = self.open_because or f"stopped after {len(self.findings)} contexts with findings"

    def _choose(self) -> list[tuple[Context, Origin]]:
        """Of each key, the first context that no certificate covers."""
        chosen: dict[tuple[int, ...], tuple[Context, Origin]] = {}
        for (key, rip), item in sorted(self._pending.items()):
            certified = self._certified.get(key)
            if certified is not None and certified.holds(self._index[rip]):
                del self._pending[key, rip]
            elif key not in chosen:
                chosen[key] = item
        return list(chosen.values())

    def _round(self, workers: Workers, items: list[tuple[Context, Origin]]) -> None:
        tasks = [_Task(context, v) for context, _ in items for v in self._vectors]
        answers = workers.map(_certify, tasks)
        for context, origin in items:
            if len(self.findings) >= STOP_AFTER:
                return
            results = [next(answers) for _ in self._vectors]
            self._take(context, origin, results)
            self._done += 1
            self._listener(
                Progress("certifying contexts", self._done, self._done + len(self._pending),
                         self.coverage.interleavings, len(self.findings))
            )  # fmt: skip

    def _take(self, context: Context, origin: Origin, results: list[NativeResult]) -> None:
        key, rip = key_of(context), context.registers[self._rip]
        found = [Raw(origin, context, f) for r in results for f in r.findings]
        self.findings += found[:1]
        for r in results:
            self.coverage += Coverage(
                r.boundaries, r.interleavings, r.misses, r.misses, len(r.emitted), 0, r.guest_insns
            )
            self.commit_distance = max(self.commit_distance, r.worst_commit)
            self.lowest_main = min(self.lowest_main, r.lowest_main)
            self._judge(context, r)
            for emitted in r.emitted:
                self._meet(origin, emitted)
        self.coverage += Coverage(certificates=1)
        self._pending.pop((key, rip), None)
        special = context.expect_df or context.no_stack
        if not found and not special:
            self._certified.setdefault(key, _Certified()).add(r.covers for r in results)

    def _judge(self, context: Context, result: NativeResult) -> None:
        if self.open_because:
            return
        if result.overflow:
            self.open_because = f"a table of the search overflowed (line {result.overflow}) in {context.name}"
        elif result.dependence is not None and not result.findings:
            place, va = result.dependence
            what = BY_SLOT[place] if place < SLOTS else "memory that it does not own"
            self.open_because = f"the outcome from {context.name} depends on {what} at {self._target.symbolize(va)}"

    def _meet(self, origin: Origin, met: NativeContext) -> None:
        where = met.key, met.rip
        certified = self._certified.get(met.key)
        if where in self._pending or (certified is not None and certified.holds(self._index[met.rip])):
            return
        legs = (*origin.legs, (met.events, met.steps, 0))
        name = f"after-{origin.name}"
        context = from_key(self._target, name, dict(zip(KEY_SLOTS, met.key, strict=True)), met.rip)
        self._pending[where] = (context, Origin(origin.name, legs))


def certify(
    target: Target, *, vectors: tuple[int, ...] = (0, 1, 2, 3), workers: int = 0, listener: Listener = silent
) -> tuple[Result, tuple[Raw, ...]]:
    """Certify ``target``; the result without its findings, and the raw findings.

    A KeyboardInterrupt ends it cleanly: the result says what was covered."""
    started = time.monotonic()
    present = tuple(v for v in vectors if EVENTS[v] in target.gates)
    certifier = Certifier(target, present, listener)
    interrupted = False
    with Workers(target, workers or default_workers()) as pool:
        try:
            certifier.run(pool)
        except KeyboardInterrupt:
            interrupted = True
    because = "interrupted" if interrupted else certifier.open_because
    main = target.main_stack()
    used = main.top - certifier.lowest_main if main and certifier.lowest_main <= main.top else 0
    result = Result(
        target.name, target.build_id, target.config, "native (certificates)", certifier.coverage,
        not because and not certifier.findings, because, (), certifier.commit_distance, used,
        time.monotonic() - started, interrupted,
    )  # fmt: skip
    return result, tuple(certifier.findings)
