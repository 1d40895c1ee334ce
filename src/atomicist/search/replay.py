# SPDX-License-Identifier: GPL-2.0-only
"""Replays one schedule on the reference interpreter, and keeps what happened.

Nothing is summarised or merged here: every event is delivered, every handler
called, every byte really written.  What comes out is a verdict and a trace from
which a finding is explained and drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from atomicist.isa.delivery import VECTORS
from atomicist.isa.ir import Note
from atomicist.isa.registers import BY_SLOT
from atomicist.machine.interpreter import Fault, ForeignGsBase, Machine, Predicted, Unmodelled
from atomicist.machine.memory import PAGE, WORD, Region
from atomicist.machine.target import Place, Target
from atomicist.search.schedule import Injection, Schedule, ScheduleError
from atomicist.spec.contexts import Context, find
from atomicist.spec.events import ERROR_TOKEN
from atomicist.spec.instance import POISON, Instance, poison
from atomicist.spec.observer import Done, DoubleFault, Observer, Violation
from atomicist.spec.properties import BY_KEY

MAX_STEPS: Final = 4_000
"""Steps for each event and the start, beyond which a run counts as endless: the bound
that the native model has for a run behind its last event."""

_REFUSALS: Final = {
    "non-canonical": "NON_CANONICAL", "unmapped": "UNMAPPED", "not-in-user-tables": "NOT_IN_USER_TABLES",
    "user-memory": "USER_MEMORY", "read-only": "READ_ONLY", "fetch": "FETCH", "fault": "FAULT",
}  # fmt: skip


POISON_STRIDE: Final = 512
"""Bytes of freed memory that are looked at together; divides a page."""


@dataclass(frozen=True, slots=True)
class Write:
    """Who wrote a word last: ``step``, the address ``rip`` of the instruction (that was
    interrupted, for a delivery), ``vector`` of the event under way, ``by`` what."""

    step: int
    rip: int
    vector: str
    by: str
    value: int
    old: int


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened: ``kind`` is insn, deliver, handler or commit."""

    index: int
    kind: str
    rip: int
    text: str
    depth: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a replay ended: ``property`` is empty when nothing is wrong."""

    property: str
    subject: str
    expected: int | None
    found: int | None
    rip: int
    outcome: str


@dataclass(slots=True)
class Replay:
    """A replayed schedule: the verdict and everything needed to explain it."""

    target: Target
    context: Context
    schedule: Schedule
    verdict: Verdict
    steps: list[Step] = field(default_factory=list)
    writes: dict[int, list[Write]] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    frames: list[tuple[str, int, int]] = field(default_factory=list)
    """Of each delivery: vector, address of the frame, size in bytes."""
    memory: Mapping[int, int] = field(default_factory=dict)
    """Written words, at the end."""
    registers: Mapping[str, int] = field(default_factory=dict)


def find_context(target: Target, name: str) -> Context:
    """The start context ``name``. Raises `ScheduleError` if there is none."""
    found = find(target, name)
    if found is None:
        raise ScheduleError(
            f"{target.name} has no start context '{name[:60]}' (atomicist verify --list-contexts)"
        )
    return found


@dataclass(frozen=True, slots=True)
class Timed:
    """An injection as the native model notes it: ``steps`` instructions after the event
    before, with ``depth`` more bytes of the handler's stack in use."""

    vector: str
    steps: int
    depth: int = 0


class Tape(Protocol):
    """Looks on while a schedule is replayed on its ``machine``."""

    @property
    def machine(self) -> Machine:
        """The machine to replay on."""

    def mark(self, index: int) -> None:
        """Step ``index`` begins; nothing of it has happened yet."""


class _Run:
    def __init__(
        self, target: Target, context: Context, schedule: Schedule, timed: Sequence[Timed] = (),
        tape: Tape | None = None, traced: bool = True,
    ) -> None:  # fmt: skip
        self._tape = tape
        self._traced = traced
        self.machine = Machine(target) if tape is None else tape.machine
        self.machine.registers[:] = context.registers
        self.machine.watch = self._store
        self.observer = Observer(self.machine, expect_df=context.expect_df, no_stack=context.no_stack)
        self.replay = Replay(target, context, schedule, Verdict("", "", None, None, 0, ""))
        self._todo = list(schedule.injections)
        self._timed = list(timed)
        self._steps = 0
        self._passed: Counter[int] = Counter()
        self._by = "insn"
        self._watching = True
        self._resume_at = (0, 0)
        self._deeper: list[tuple[int, int]] = []

    def run(self) -> Replay:
        try:
            self._loop()
            outcome = Verdict("", "", None, None, self.machine["RIP"], "resumed")
        except Done:
            if self._todo:
                place = self.replay.target.symbolize(self._todo[0].rip or 0)
                raise ScheduleError(
                    f"{self._todo[0].vector}@{place} never arrives: RIP is not there again"
                ) from None
            outcome = Verdict("", "", None, None, self.machine["RIP"], "resumed")
        except DoubleFault:
            outcome = Verdict("", "", None, None, self.machine["RIP"], "double fault, with cause")
        except Violation as v:
            outcome = self._verdict(v.key, v.subject, v.expected, v.found)
        except ForeignGsBase as e:
            outcome = self._verdict("FOREIGN_GSBASE", f"%gs access {e}", None, self.machine["GSBASE"])
        except Predicted as e:
            outcome = self._verdict("PREDICTED", str(e), 0, self.machine["EXPOSED"])
        except Unmodelled as e:
            key = "NO_CODE" if str(e).startswith("no code") else "UNMODELLED"
            outcome = self._verdict(key, str(e), None, None)
        r = self.replay
        r.verdict = outcome
        r.instances = self.observer.instances
        r.memory = {a: self.machine.memory.word(a) or 0 for a in r.writes}
        r.registers = dict(zip(BY_SLOT, self.machine.registers, strict=True))
        return r

    def _verdict(self, key: str, subject: str, expected: int | None, found: int | None) -> Verdict:
        return Verdict(BY_KEY[key].number, subject, expected, found, self.machine["RIP"], "violated")

    def _loop(self) -> None:
        bound = MAX_STEPS * (1 + len(self._todo) + len(self._timed))
        for _ in range(bound):
            self._commit()
            self._passed[self.machine["RIP"]] += 1
            injection = self._due()
            if injection is not None:
                self._inject(injection)
                continue
            if not self.observer.instances:
                raise ScheduleError(
                    "the schedule's first event never arrives: it must have no place, or RIP's"
                )
            self._step()
            self._steps += 1
        raise Violation("ENDLESS", f"more than {bound} steps")

    def _due(self) -> Injection | None:
        """The injection that is to happen now, if one is."""
        rip = self.machine["RIP"]
        if self._todo:
            wanted = self._todo[0]
            if wanted.rip is None or (rip == wanted.rip and self._passed[rip] == wanted.nth):
                return self._todo.pop(0)
        elif self._timed and self._timed[0].steps == self._steps:
            timed = self._timed[0]
            where = rip if self.observer.instances else None
            injection = Injection(timed.vector, where, self._passed[rip], timed.depth)
            if self.observer.gate_open(timed.vector):
                self._timed.pop(0)
            elif timed.vector == "NMI" and self.observer.gate_open("DB"):
                # the native model lets some other event's IRET unblock NMIs first: a #DB
                injection = Injection("DB", where, self._passed[rip], timed.depth)
                self._timed[0] = Timed("NMI", -1, 0)
                self._resume_at = (rip, len(self.observer.instances))
            self.replay.schedule = Schedule(
                self.replay.schedule.context, (*self.replay.schedule.injections, injection)
            )
            return injection
        elif (
            self._timed
            and self._timed[0].steps < 0
            and self._resume_at == (rip, len(self.observer.instances))
        ):
            self._timed[0] = Timed(self._timed[0].vector, self._steps)
            return self._due()
        return None

    def _log(self, kind: str, text: str) -> None:
        if not self._traced:
            return
        steps = self.replay.steps
        if self._tape is not None:
            self._tape.mark(len(steps))
        steps.append(Step(len(steps), kind, self.machine["RIP"], text, len(self.observer.instances)))

    def _inject(self, injection: Injection) -> None:
        vector = injection.vector
        if injection.depth:
            self.machine["RSP"] -= injection.depth
            self._deeper.append((len(self.observer.instances), injection.depth))
        if not self.observer.gate_open(vector):
            raise ScheduleError(f"{vector} cannot be delivered at {self._where()}: its gate is closed there")
        gate = self.replay.target.gates[vector]
        self._log("deliver", f"#{vector}" if vector != "NMI" else "NMI")
        instance = self.observer.push(vector)
        self._by, self._watching = "delivery", False
        try:
            self.machine.deliver(gate, ERROR_TOKEN)
        except Fault as e:
            raise Violation(_REFUSALS[e.reason], f"delivery of {vector}", None, e.address) from e
        finally:
            self._by, self._watching = "insn", True
        instance.frame = self.machine["RSP"]
        words = 6 if VECTORS[vector].has_error_code else 5
        self.replay.frames.append((vector, instance.frame, words * WORD))
        self._steps = 0
        self._passed.clear()

    def _where(self) -> str:
        return self.replay.target.symbolize(self.machine["RIP"])

    def _commit(self) -> None:
        if self.observer.early and self.observer.marked(Place.COMMITTED):
            self._log("commit", "commit")
            for region in self.observer.committed():
                self._poison(region)
            main = self.replay.target.main_stack()
            if main is not None:
                self._poison(Region(main.name, main.bottom, self.machine["RSP"], main.kind))
        if self.observer.instances and self.observer.marked(Place.COMMITTED):
            self.observer.at_label()

    def _step(self) -> None:
        machine, target = self.machine, self.replay.target
        handler = target.handlers.get(machine["RIP"])
        if handler is not None:
            self._log("handler", f"{self._where()}()" if self._traced else "")
            self.observer.handler(handler)
            for region in self.observer.adversary(handler):
                self._poison(region)
            return
        try:
            insn = machine.insn()
            self._log("insn", insn.text)
            machine.step()
        except Fault as e:
            self._faulted(e)
            return
        if machine.notes & {Note.IRET, Note.SYSRET}:
            self.observer.returned()
            if self._deeper and self._deeper[-1][0] == len(self.observer.instances):
                # back in a handler that had used more stack: it gives that up again
                self.machine["RSP"] += self._deeper.pop()[1]

    def _faulted(self, fault: Fault) -> None:
        if self.observer.marked(Place.DELIBERATE) and fault.reason == "non-canonical":
            self._watching = False
            delivered = self.machine.raise_fault(fault, self.replay.target.gates)
            if delivered != "DF":
                raise Violation("DOUBLE_FAULT", f"the deliberate double fault became {delivered}") from fault
            # judged at the instruction that faulted, which the frame names
            self.machine["RIP"] = self.machine.memory.word(self.machine["RSP"] + WORD) or 0
            self.observer.deliberate()
        raise Violation(
            _REFUSALS[fault.reason], f"{self._where()}, vector {fault.vector}", None, fault.address
        )

    def _poison(self, region: Region) -> None:
        memory, bottom = self.machine.memory, (region.bottom + 7) & ~7
        if not self._traced and region.top % WORD == 0:
            for page in range(bottom & -PAGE, region.top, PAGE):
                low, high = max(bottom, page), min(region.top, page + PAGE)
                if memory.flags(page) is not None and low < high:
                    memory.write(low, poison(low, high))
            return
        start = bottom
        while start < region.top:
            end = min(region.top, (start & -POISON_STRIDE) + POISON_STRIDE)
            # Nearly all of it is as it was the last time.
            if memory.word(start) is None or memory.read(start, end - start) != poison(start, end):
                for address in range(start, end, WORD):
                    value = POISON | address & 0xFFFFFF
                    if memory.word(address) not in (None, value):
                        self._record(address, value, "freed")
                        memory.poke(address, WORD, value)
            start = end

    def _store(self, address: int, size: int, value: int) -> None:
        if self._watching:
            self.observer.store(address, size, value)
        if not self._traced:
            return
        word = address & ~7
        shift = 8 * (address - word)
        old = self.machine.memory.word(word) or 0
        keep = ~(((1 << 8 * size) - 1) << shift)
        self._record(word, (old & keep | value << shift) & ((1 << 64) - 1), self._by)

    def _record(self, address: int, value: int, by: str) -> None:
        instances = self.observer.instances
        vector = instances[-1].vector if instances else ""
        old = self.machine.memory.word(address) or 0
        write = Write(len(self.replay.steps) - 1, self.machine["RIP"], vector, by, value, old)
        self.replay.writes.setdefault(address, []).append(write)


def replay(target: Target, schedule: Schedule, tape: Tape | None = None) -> Replay:
    """Run ``schedule`` on the reference interpreter, on the machine of ``tape`` if given.

    Raises `ScheduleError` if its context does not exist or an event cannot be
    delivered where it says."""
    return _Run(target, find_context(target, schedule.context), schedule, (), tape).run()


def replay_timed(target: Target, context: Context, timed: Sequence[Timed], *, traced: bool = True) -> Replay:
    """Run injections that are given by instruction counts; the replay's schedule says by
    places what happened. Without ``traced`` it has a verdict, and nothing to explain it with.
    Raises `ScheduleError` if an event cannot be delivered."""
    return _Run(target, context, Schedule(context.name, ()), timed, traced=traced).run()
