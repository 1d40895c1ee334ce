# SPDX-License-Identifier: GPL-2.0-only
"""Closes all nestings of an entry that says where it commits, and says so honestly.

One *certificate* is the exploration of one context with each vector first: every
event at every boundary up to the commits, and each committed state on until the
context runs again (native/runtime/certify.c).  Two facts make it more than a test
of that one context:

* it is known what the outcome rested on.  If that is nothing but tests of RIP, RSP and
  the registers of a *key* (CS, SS, GSBASE, KERNEL_GSBASE, CR3, SPEC_CTRL, TSC_AUX), then the
  certificate holds for every context for which these tests come out the same - also
  for the same run further up or down the main stack.  Anything else
  that it rests on is reported, and the search is not closed;
* contexts that the run itself passes through after a commit - our own return path,
  the handlers, at any depth of stack - are contexts like any other (`reach`).  They
  are certified in turn until every one is covered.

By induction over the number of events, every schedule from a covered context ends
with that context resumed unchanged.  Depth on the main stack needs no bound of ours:
contexts get deeper until the entry itself refuses for want of room.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from atomicist.isa.registers import BY_SLOT, SLOTS
from atomicist.machine.target import Target
from atomicist.native.engine import NativeFinding, NativeResult
from atomicist.search.free import chosen
from atomicist.search.injected import Injected
from atomicist.search.progress import Listener, Progress, silent
from atomicist.search.reach import Origin, Reach
from atomicist.search.result import Coverage, Result
from atomicist.search.workers import Workers, default_workers, engine
from atomicist.spec.contexts import Context, contexts
from atomicist.spec.events import EVENTS

STOP_AFTER: Final = 8
"""Contexts with findings after which an image counts as broken and the search ends."""


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
    others: tuple[tuple[int, ...], ...]


def _certify(task: _Task) -> NativeResult:
    c = task.context
    return engine().certify(
        c.registers, task.vector, expect_df=c.expect_df, no_stack=c.no_stack, others=task.others
    )


def _covered(context: Context, known: Context | None) -> bool:
    """Whether ``known`` asks for all that ``context``, of another name, asks for."""
    return (
        known is not None
        and (known.expect_df, known.no_stack) == (context.expect_df, context.no_stack)
        and (known.only in ("", context.only))
    )


class Certifier:
    """The worklist of contexts and what is certified of them."""

    def __init__(
        self,
        target: Target,
        vectors: tuple[int, ...],
        listener: Listener,
        also: Sequence[Target] = (),
        stop_after: int = STOP_AFTER,
    ) -> None:
        """``also``: targets that are `joined.same_machine`, whose start contexts are covered as well;
        ``stop_after``: contexts with findings after which the search ends."""
        self._target = target
        self._stop_after = stop_after
        self._vectors = vectors
        self._listener = listener
        self._start = contexts(target)
        self._chosen = list(chosen(target))
        for number, other in enumerate(also, start=1):
            known = {c.registers: c for c in self._start}
            more = [replace(c, name=f"{c.name}/{number}") for c in contexts(other)]
            self._start += tuple(c for c in more if not _covered(c, known.get(c.registers)))
            for some in chosen(other):
                if not _covered(some.base, known.get(some.base.registers)):
                    self._chosen.append(some.named(f"{some.base.name}/{number}"))
        self._reach = Reach(target)
        self._done = 0
        self.coverage = Coverage()
        self.injected = Injected()
        self.findings: list[Raw] = []
        self.open_because = ""
        self.commit_distance = 0
        self.lowest_main = (1 << 64) - 1

    def key_values(self) -> list[list[int]]:
        """The values of key registers that certificates are tried for."""
        return self._reach.key_values(self._start)

    def run(self, workers: Workers) -> None:
        """Work until nothing is left, or enough is broken."""
        self.coverage += Coverage(contexts=len(self._start))
        alone = [c for c in self._start if not self._reach.begin(c)]
        while alone and len(self.findings) < self._stop_after:
            _, held = self._one(workers, alone[0], alone[1:])
            alone = [c for c, known in zip(alone[1:], held, strict=True) if not known]
        self._choose(workers)
        while len(self.findings) < self._stop_after:
            self._reach.spread()
            uncovered = self._reach.uncovered()
            if not uncovered:
                break
            self._round(workers, uncovered)
        self.coverage += Coverage(contexts=self._reach.size())
        self.injected.contexts = self._reach.by_rip()
        self.open_because = self.open_because or self._reach.unplaced
        if len(self.findings) >= self._stop_after:
            self.open_because = f"stopped after {len(self.findings)} contexts with findings"

    def _choose(self, workers: Workers) -> None:
        """Cover every value of the registers that a user chooses."""
        todo = [(some, some.base) for some in self._chosen]
        while todo and len(self.findings) < self._stop_after:
            for _, context in todo:
                self._reach.begin(context)
            left, now = [], todo
            while now and len(self.findings) < self._stop_after:
                taken, held = self._one(workers, now[0][1], [c for _, c in now[1:]])
                same = [some for (some, _), known in zip(now[1:], held, strict=True) if known]
                for some in (now[0][0], *same):
                    self.open_because = self.open_because or some.took(taken)
                    following = some.uncovered()
                    if following is not None and not self.open_because:
                        left.append((some, following))
                now = [item for item, known in zip(now[1:], held, strict=True) if not known]
            todo = left

    def _one(
        self, workers: Workers, context: Context, others: Sequence[Context]
    ) -> tuple[list[NativeResult], list[bool]]:
        """Certify ``context``; the results, and which of ``others`` they hold for as well."""
        alike = (context.expect_df, context.no_stack, context.only)
        asked = [c for c in others if (c.expect_df, c.no_stack, c.only) == alike]
        taken = self._round(workers, [(context, Origin(context.name))], asked)
        answers = [r.holds for results in taken for r in results]
        held = {
            c.name: bool(answers) and all(a[i : i + 1] == (True,) for a in answers)
            for i, c in enumerate(asked)
        }
        return taken[0] if taken else [], [held.get(c.name, False) for c in others]

    def _round(
        self, workers: Workers, items: list[tuple[Context, Origin]], others: Sequence[Context] = ()
    ) -> list[list[NativeResult]]:
        asked = tuple(c.registers for c in others)
        vectors_of = [[v for v in self._vectors if c.only in ("", EVENTS[v])] for c, _ in items]
        tasks = [
            _Task(c, v, asked) for (c, _), vectors in zip(items, vectors_of, strict=True) for v in vectors
        ]
        answers = workers.map(_certify, tasks)
        taken: list[list[NativeResult]] = []
        for number, (context, origin) in enumerate(items):
            if len(self.findings) >= self._stop_after:
                return taken
            taken.append([next(answers) for _ in vectors_of[number]])
            self._take(context, origin, taken[-1], others)
            self._done += 1
            self._listener(
                Progress("certifying contexts", self._done, self._done + len(items) - number - 1,
                         self.coverage.interleavings, len(self.findings))
            )  # fmt: skip
        return taken

    def _take(
        self, context: Context, origin: Origin, results: list[NativeResult], others: Sequence[Context]
    ) -> None:
        found = [Raw(origin, context, f) for r in results for f in r.findings]
        self.findings += found[:1]
        for r in results:
            self.coverage += Coverage(r.boundaries, r.interleavings, r.misses, r.misses, 0, 0, r.guest_insns)
            self.commit_distance = max(self.commit_distance, r.worst_commit)
            self.lowest_main = min(self.lowest_main, r.lowest_main)
            self.injected.add(r.injected)
            self._judge(context, r)
        self.coverage += Coverage(certificates=1)
        held = [c for i, c in enumerate(others) if all(r.holds and r.holds[i] for r in results)]
        self._reach.certified(
            context, results, sound=not found, others=[c for c in held if not self._reach.begin(c)]
        )

    def _judge(self, context: Context, result: NativeResult) -> None:
        if self.open_because:
            return
        if result.overflow:
            self.open_because = f"a table of the search overflowed (line {result.overflow}) in {context.name}"
        elif result.dependence is not None and not result.findings:
            place, va = result.dependence
            what = BY_SLOT[place] if place < SLOTS else "memory that it does not own"
            self.open_because = (
                f"the outcome from {context.name} depends on {what} at {self._target.symbolize(va)}"
            )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: a search makes millions of objects, none of them in a cycle."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def certify(
    target: Target, *, vectors: tuple[int, ...] = (0, 1, 2, 3), workers: int = 0, listener: Listener = silent,
    make: type[Workers] = Workers, also: Sequence[Target] = (), stop_after: int = STOP_AFTER,
) -> tuple[Result, tuple[Raw, ...]]:  # fmt: skip
    """Certify ``target``; the result without its findings, and the raw findings.  ``also`` and
    ``stop_after``: see `Certifier`.

    A KeyboardInterrupt ends it cleanly: the result says what was covered."""
    started = time.monotonic()
    present = tuple(v for v in vectors if EVENTS[v] in target.gates)
    certifier = Certifier(target, present, listener, also, stop_after)
    interrupted = False
    with make(target, workers or default_workers(), certifier.key_values()) as pool, _uncollected():
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
        time.monotonic() - started, interrupted, certifier.injected.boundaries(target, vectors),
    )  # fmt: skip
    return result, tuple(certifier.findings)
