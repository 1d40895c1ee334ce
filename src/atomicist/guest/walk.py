# SPDX-License-Identifier: GPL-2.0-only
"""Leads a running kernel from one event to the return of what it interrupted, instruction by
instruction, and delivers further events on the way.

A handler is crossed in one go, as in the model: from its first instruction to its caller.  What it
is shown, its pt_regs, is read and compared with the context that the event interrupted.

====  ==============================================================================
NMI   QMP ``inject-nmi``: pending until NMIs are unblocked
MC    HMP ``mce``: taken at once
DB    RFLAGS.TF set for one instruction, and taken out of the frame that is pushed, so that the
      frame is that of a breakpoint.  The kernel has no use for a single step in its own code, so
      the handler is shown another cause in DR6
====  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from atomicist.guest.errors import GuestError, GuestTimeout
from atomicist.guest.qemu import Vm
from atomicist.guest.rsp import SSTEP_ENABLE, SSTEP_NOIRQ, SSTEP_NOTIMER
from atomicist.isa.registers import FLAG_BITS, GPRS

TF: Final = 0x100
RF: Final = 0x10000
STEP_LIMIT: Final = 20.0
HANDLER_LIMIT: Final = 20.0
MAX_STEPS: Final = 3000
"""Instructions of entry code behind the last event: four times what a good return needs."""
MAX_CALLS: Final = 10
"""Calls of handlers for at most three events: a context that is lost makes an endless loop of them."""
IDLE_STEPS: Final = 8
"""Steps in which nothing happens: the local APIC asking its CPU to look again takes one for itself
(CPU_INTERRUPT_POLL). No instruction of an entry leaves all registers alone, RIP included."""
DR6_QUIET: Final = 0xFFFF_07F0
"""DR6 for a bus lock, bit 11 clear (SDM vol. 3, 17.2.3): the one cause for which the kernel does nothing,
with the detection of split locks off. With no cause at all it takes the event for INT1, and sends a
signal."""

PT_REGS: Final = (
    "R15", "R14", "R13", "R12", "RBP", "RBX", "R11", "R10", "R9", "R8", "RAX", "RCX", "RDX", "RSI", "RDI",
    "ORIG_RAX", "RIP", "CS", "RFLAGS", "RSP", "SS",
)  # fmt: skip
"""struct pt_regs (Linux arch/x86/include/asm/ptrace.h)."""

CONTEXT: Final = (*GPRS, "RIP", "RFLAGS", "CS", "SS", "FSBASE", "GSBASE", "KERNEL_GSBASE", "CR3")
"""What a context must have again when it runs again."""


@dataclass(frozen=True, slots=True)
class Places:
    """Addresses of the kernel under test: ``entries`` and ``handlers`` by address to the vector's name;
    ``deadly`` symbols that end a run; ``quiet``: where a #DB handler has just read DR6, and into
    which register; ``irets``: instructions that return from an event; ``entry``: those of entries, and
    ``committed`` those of an atomic entry where it claims that its IST stack is free."""

    entries: Mapping[int, str]
    handlers: Mapping[int, str]
    deadly: Mapping[int, str]
    quiet: Mapping[int, str]
    irets: frozenset[int]
    entry: frozenset[int]
    committed: frozenset[int]


@dataclass(slots=True)
class Run:
    """What happened: ``trace`` of RIPs, with the name of a vector for a delivery; ``calls`` of handlers
    as (vector, what was wrong with its pt_regs or ""); ``outcome`` is resumed or says what was lost."""

    trace: list[int | str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    outcome: str = ""

    @property
    def good(self) -> bool:
        """Whether the interrupted context ran again, unchanged, and every handler saw the truth."""
        return self.outcome == "resumed" and not any(wrong for _, wrong in self.calls)

    def why(self) -> str:
        """What went wrong first, or resumed."""
        return next((f"#{v} handler: {wrong}" for v, wrong in self.calls if wrong), self.outcome)


class Lost(Exception):  # noqa: N818 - an outcome
    """The run cannot come to a good end."""


class Walk:
    """One run on ``vm``, stopped in the context that is to be interrupted."""

    def __init__(self, vm: Vm, places: Places) -> None:
        self.vm, self.rsp, self.places = vm, vm.rsp, places
        self.now = self.rsp.registers()
        self.start = self.now
        self.run = Run()
        self._interrupted: list[tuple[str, dict[str, int]]] = []
        self._steps = 0
        self._waiting = self._blocked = False
        self.returns = 0
        """How many IRETs were executed."""

    # --- events ---

    def deliver(self, vector: str) -> None:
        """Deliver ``vector`` here and now; #DB, behind the next instruction. Raises `GuestError` if
        it is not taken."""
        before = self.now
        if vector == "DB":
            self.rsp.set(RFLAGS=before["RFLAGS"] | TF)
            if self._interrupted:
                self.run.trace.append(before["RIP"])
        elif vector == "MC":
            self.vm.inject_mce()
        else:
            self.vm.inject_nmi()
        self.now = self.rsp.registers()
        self._move(events=vector != "DB")
        if self.places.entries.get(self.now["RIP"]) != vector:
            raise GuestError(f"{vector} is not taken at {before['RIP']:#x}: RIP is then {self.now['RIP']:#x}")
        context = self._pushed(before)
        if vector == "DB":
            context["RFLAGS"] &= ~TF
            self.rsp.write(self.now["RSP"] + 16, context["RFLAGS"].to_bytes(8, "little"))
        if not self._interrupted:
            self.start = context
        self._taken(vector, context)

    def _pushed(self, before: Mapping[str, int]) -> dict[str, int]:
        """The context of the frame at RSP, just pushed; registers that a delivery does not change
        are as they are now, and those that no IRET changes as ``before``."""
        frame = self.rsp.words(self.now["RSP"], 5)
        context = {**before, **{name: self.now[name] for name in GPRS if name != "RSP"}}
        return context | dict(zip(("RIP", "CS", "RFLAGS", "RSP", "SS"), frame, strict=True))

    @property
    def nmi_blocked(self) -> bool:
        """Whether an NMI would have to wait."""
        return self._blocked

    def arm(self, vector: str) -> None:
        """Make ``vector`` pending; it comes when the processor lets it."""
        if vector != "NMI":
            raise GuestError("only an NMI can wait")
        self._waiting = True
        self.vm.inject_nmi()

    def _taken(self, vector: str, context: dict[str, int]) -> None:
        self._interrupted.append((vector, context))
        self._blocked |= vector == "NMI"
        self.run.trace.append(vector)
        self._steps = 0

    # --- moving on ---

    def _move(self, *, events: bool = False) -> None:
        """One single step. Only with ``events`` does one come that is pending: not a timer's interrupt in
        the same step as the IRET that would let it in."""
        before = self.now
        self.rsp.single_step(SSTEP_ENABLE | SSTEP_NOTIMER | (0 if events else SSTEP_NOIRQ))
        for _ in range(IDLE_STEPS):
            self.rsp.step(STEP_LIMIT)
            self.now = self.rsp.registers()
            if self.now != before or (events and self._landed(before)):
                return
        raise GuestError(f"QEMU does not get on at {before['RIP']:#x}, in {IDLE_STEPS} single steps")

    def _landed(self, before: Mapping[str, int]) -> bool:
        """Whether an event arrived that changed no register: at the first instruction of its own entry."""
        if self.now["RIP"] not in self.places.entries:
            return False
        frame = self._pushed(before)
        return all(frame[name] == before[name] for name in ("RIP", "RSP", "CS"))

    def advance(self) -> None:
        """One instruction, one handler, or the arrival of an event that was waiting.

        Raises `Lost` when the run can come to no good end."""
        if self._waiting and not self._blocked:
            self._arrive()
            return
        rip = self.now["RIP"]
        handler = self.places.handlers.get(rip)
        if handler is not None:
            self._cross(handler)
            return
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Lost("endless: the interrupted context never runs again")
        self._move()
        self.run.trace.append(rip)
        if rip in self.places.irets:
            self.returns += 1
            self._blocked = False
            # Only behind an IRET: another event's entry passes the same places on the same stack.
            self._back(self.now)
        if self.now["RIP"] in self.places.deadly:
            raise Lost(f"the kernel calls {self.places.deadly[self.now['RIP']]}")

    def _arrive(self) -> None:
        """The NMI that was waiting is taken."""
        before = self.now
        self._move(events=True)
        if self.places.entries.get(self.now["RIP"]) != "NMI":
            raise GuestError(f"the NMI that waits is not taken at {before['RIP']:#x}")
        self._waiting = False
        self._taken("NMI", self._pushed(before))

    def advance_past_return(self) -> None:
        """Go on until the event just delivered has returned. Raises `Lost`."""
        before = self.returns
        while self.returns == before and not self.done:
            self.advance()

    def _back(self, context: Mapping[str, int]) -> None:
        """If ``context`` is an interrupted one, it and those within are over."""
        for index in reversed(range(len(self._interrupted))):
            wanted = self._interrupted[index][1]
            if all(context[name] == wanted[name] for name in ("RIP", "RSP", "CS")):
                del self._interrupted[index:]
                return

    @property
    def done(self) -> bool:
        """Whether the first context runs again, and nothing is to come."""
        return not self._interrupted and not (self._waiting and not self._blocked)

    def _cross(self, vector: str) -> None:
        self.run.calls.append((vector, self._judge(vector)))
        if len(self.run.calls) > MAX_CALLS:
            raise Lost(
                f"endless: {MAX_CALLS} calls of handlers, and the interrupted context does not run again"
            )
        self.run.trace.append(self.now["RIP"])
        back, rsp = self.rsp.words(self.now["RSP"], 1)[0], self.now["RSP"] + 8
        stops = {back, *self.places.deadly, *(self.places.quiet if vector == "DB" else ())}
        self.rsp.only(stops)
        while True:
            try:
                self.rsp.resume(HANDLER_LIMIT)
            except GuestTimeout:
                raise Lost(f"the handler of {vector} does not return within {HANDLER_LIMIT:g} s") from None
            self.now = self.rsp.registers()
            rip = self.now["RIP"]
            if rip in self.places.deadly:
                raise Lost(f"the kernel calls {self.places.deadly[rip]}")
            if rip in self.places.quiet and rip != back:
                self.rsp.set(**{self.places.quiet[rip]: DR6_QUIET})
                self.rsp.remove(rip)
            elif self.now["RSP"] == rsp:
                break
        self.rsp.only(set())

    def _judge(self, vector: str) -> str:
        """What is wrong with the pt_regs that the handler is shown."""
        try:
            shown = dict(zip(PT_REGS, self.rsp.words(self.now["RDI"], len(PT_REGS)), strict=True))
        except GuestError:
            return f"RDI {self.now['RDI']:#x} points to no pt_regs"
        index = max((i for i, (v, _) in enumerate(self._interrupted) if v == vector), default=None)
        if index is None:
            return ""
        context = self._interrupted[index][1]
        if index and context["RIP"] in self.places.entry and shown["RIP"] in self.places.committed:
            # An entry that was interrupted before its commit goes on behind it, as if just committed.
            return "" if not shown["CS"] & 3 else f"CS is {shown['CS']:#x} at a commit"
        for name, value in shown.items():
            if name == "ORIG_RAX":
                continue
            wanted = context[name]
            if value & ~(RF if name == "RFLAGS" else 0) != wanted & ~(RF if name == "RFLAGS" else 0):
                return f"{name} is {value:#x}, the interrupted context has {wanted:#x}"
        return ""

    def finish(self) -> Run:
        """Go on until the first context runs again, or never will."""
        try:
            while not self.done:
                self.advance()
            self.run.outcome = self._compare()
        except Lost as e:
            self.run.outcome = str(e)
        return self.run

    def _compare(self) -> str:
        for name in CONTEXT:
            if name in self.now and self.now[name] != self.start[name]:
                return (
                    f"{name} is {self.now[name]:#x} when the context runs again; it was {self.start[name]:#x}"
                )
        return "resumed"


def flags_text(value: int) -> str:
    """The names of the bits of RFLAGS that are set."""
    return " ".join(name for name, (bit, width) in FLAG_BITS.items() if value >> bit & ((1 << width) - 1))
