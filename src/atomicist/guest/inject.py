# SPDX-License-Identifier: GPL-2.0-only
"""Attacks the entries of a running kernel at every instruction boundary.

From a context that is stopped, a first event is delivered.  Then, for each instruction from its delivery
to the handler and from the handler to the return, the guest is put back to the start, led to that
boundary, and a second event is delivered there; behind the second's return comes the third.  What
is wanted is that the interrupted context runs again with all its registers, and that every handler
is shown what its event interrupted.

Each run is then repeated by the model (the reference interpreter, on the same kernel image), event for
event at the same places.  Both must come to the same end by the same instructions, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from atomicist.guest.errors import GuestError
from atomicist.guest.linux import Linux
from atomicist.guest.under_test import (
    SPIN,
    SYSTEM_CALL,
    UnderTest,
    context,
    init_symbol,
    meet,
    read_kernel,
    symbol,
)
from atomicist.guest.walk import Lost, Run, Walk
from atomicist.search.replay import Replay, Timed, replay_timed
from atomicist.search.schedule import ScheduleError

IF: Final = 0x200
STOP_LIMIT: Final = 60.0

CONTEXTS: Final = ("kernel", "user")
"""Contexts to interrupt: in a system call, on its task's stack; in a loop that only uses registers."""

ORDERS: Final = (
    ("NMI", "MC", "NMI"), ("NMI", "DB", "NMI"), ("NMI", "MC", "DB"), ("NMI", "DB", "MC"),
    ("MC", "NMI", "DB"), ("MC", "DB", "NMI"), ("DB", "NMI", "MC"), ("DB", "MC", "NMI"),
)  # fmt: skip
"""Which events come first, second and third. Not among them is what the hardware does not do: a #MC while
MCIP is set, a #DB inside its own entry, an NMI in that of another before an IRET."""

QUICK: Final = ORDERS[:1]
"""The one that loses a context in the entry that Linux has."""


@dataclass(frozen=True, slots=True)
class Point:
    """One boundary: its ``number`` from the first event's delivery, ``place``, whether the context ran
    again, ``why`` not, and how the model ``differs``, "" if it agrees."""

    number: int
    place: str
    good: bool
    why: str
    differs: str


@dataclass(frozen=True, slots=True)
class Attack:
    """All boundaries for one order of ``events`` from one ``context``."""

    context: str
    events: tuple[str, ...]
    boundaries: int
    points: tuple[Point, ...] = field(default=())

    @property
    def untried(self) -> int:
        """Boundaries that have no point: around the call of the handler, where the model's handler has none;
        for #DB, which comes behind an instruction, also the first, and that behind an IRET."""
        return self.boundaries - len(self.points)

    @property
    def lost(self) -> tuple[int, ...]:
        """Boundaries at which the context did not run again."""
        return tuple(p.number for p in self.points if not p.good)

    @property
    def disagreements(self) -> tuple[Point, ...]:
        """Boundaries at which the model comes to another end, or by another way."""
        return tuple(p for p in self.points if p.differs)


Listener = Callable[[str, int, int], None]
"""Told of progress: what, done, total."""


def silent(_what: str, _done: int, _total: int) -> None:
    """A listener that says nothing."""


class Attacker:
    """A booted kernel, to be attacked in ``context``; the connection to the gdbstub has stopped it there."""

    def __init__(self, linux: Linux, context: str) -> None:
        self._linux, self._context = linux, context
        kernel = read_kernel(linux.kernel)
        rsp = linux.vm.rsp
        call = symbol(kernel, SYSTEM_CALL)
        # First into the kernel: only there are its tables in force, for a look at its memory.
        self._stop_at(call, "hello")
        self.under: UnderTest = meet(linux.kernel, rsp)
        if context == "user":
            self._leave_and_stop(init_symbol(linux.payload.init, SPIN))
        else:
            flags = rsp["RFLAGS"]
            rsp.set(RFLAGS=flags & ~IF)  # else a timer's interrupt may come before a single step's #DB
        linux.vm.save(START)

    def _stop_at(self, address: int, command: str) -> None:
        rsp = self._linux.vm.rsp
        rsp.only({address})
        self._linux.tell(command)
        rsp.resume(STOP_LIMIT)
        rsp.only(set())
        if rsp["RIP"] != address:
            raise GuestError(f"the guest stops at {rsp['RIP']:#x} instead of {address:#x}")

    def _leave_and_stop(self, address: int) -> None:
        """Let ``hello`` come to its end, and stop in user mode."""
        self._linux.vm.rsp.go()
        self._linux.vm.port.line(STOP_LIMIT)
        self._linux.vm.rsp.interrupt()
        self._stop_at(address, "spin")

    def walk(self) -> Walk:
        """A run from the start."""
        self._linux.vm.load(START)
        return Walk(self._linux.vm, self.under.places)

    def attack(self, events: Sequence[str], listener: Listener = silent, stride: int = 1) -> Attack:
        """Every boundary (each ``stride``-th) of the first of ``events``.

        Raises `GuestError` if the guest cannot be led there."""
        first = events[0]
        alone = self.walk()
        alone.deliver(first)
        way = alone.finish()
        if not way.good:
            raise GuestError(f"{first} alone does not return: {way.why()}")
        path = way.trace[1:]
        what = f"{self._context}: {', '.join(events)}"
        points: list[Point] = []
        for number in range(0, len(path), stride):
            listener(what, number, len(path))
            points += self._boundary(number, path, events)
        listener(what, len(path), len(path))
        return Attack(self._context, tuple(events), len(path), tuple(points))

    def _boundary(self, number: int, path: Sequence[int | str], events: Sequence[str]) -> Iterator[Point]:
        places = self.under.places
        first, second, third = events
        if path[number] in places.handlers:
            return
        if second == "DB" and (
            not number or path[number - 1] in places.handlers or path[number - 1] in places.irets
        ):
            return  # a trap comes behind an instruction, and there is none to come behind
        walk = self.walk()
        walk.deliver(first)
        for _ in range(number - (second == "DB")):
            walk.advance()
        # Where an entry has unblocked NMIs, one that is sent comes at once: so only behind the second event.
        waits = third == "NMI" and walk.nmi_blocked
        try:
            if waits:
                walk.arm(third)
            walk.deliver(second)
            if not waits:
                walk.advance_past_return()
                if third == "DB" and walk.now["RIP"] in places.irets:
                    return
                if not walk.done:
                    walk.deliver(third)
        except Lost as e:
            walk.run.outcome = str(e)
            run = walk.run
        else:
            run = walk.finish()
        rip = path[number]
        place = self.under.kernel.where(rip) if isinstance(rip, int) else str(rip)
        yield Point(number, place, run.good, "" if run.good else run.why(), self._differs(run, walk.start))

    def _differs(self, run: Run, start: Mapping[str, int]) -> str:
        """How the model's course of the same events differs from ``run``, "" if it does not."""
        target = self.under.target
        try:
            shown = replay_timed(target, context(target, start, self._context), timed(run.trace))
        except ScheduleError as e:
            return f"the model cannot follow: {e}"
        ours = course(shown)
        for index, (a, b) in enumerate(zip(ours, run.trace, strict=False)):
            if a != b:
                return f"step {index}: the model is at {self._name(a)}, the guest at {self._name(b)}"
        # What is lost is lost for good: the model stops when it sees that, the guest after a bound.
        if run.good and len(ours) != len(run.trace):
            return f"the model takes {len(ours)} steps, the guest {len(run.trace)}"
        if run.good == bool(shown.verdict.property):
            verdict = shown.verdict.property or shown.verdict.outcome
            return f"the model says {verdict}, the guest: {run.why()}"
        return ""

    def _name(self, step: int | str) -> str:
        return step if isinstance(step, str) else self.under.target.symbolize(step)


START: Final = "start"


def timed(trace: Sequence[int | str]) -> list[Timed]:
    """The events of ``trace`` with the number of steps from each to the next."""
    events: list[Timed] = []
    steps = 0
    for step in trace:
        if isinstance(step, str):
            events.append(Timed(step, steps))
            steps = 0
        else:
            steps += 1
    return events


def course(replay: Replay) -> list[int | str]:
    """What ``replay`` did, in the form of `Run.trace`."""
    result: list[int | str] = []
    for step in replay.steps:
        if step.kind == "deliver":
            result.append(step.text.removeprefix("#"))
        elif step.kind in ("insn", "handler"):
            result.append(step.rip)
    return result
