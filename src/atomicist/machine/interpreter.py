# SPDX-License-Identifier: GPL-2.0-only
"""The reference interpreter: executes IR one operation at a time, slowly and
plainly.  It is the definition that the native model is tested against.

Nothing is merged, left out or done in another order: each operation is a call
(`machine.bound`), and what it computes is `isa.arithmetic`'s.

A fault is precise: it leaves the registers as they were before the
instruction, but for NMI blocking, which even a faulting IRET ends (SDM vol. 3,
6.7.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Final, NoReturn

from atomicist.isa.arithmetic import mask
from atomicist.isa.delivery import BY_NUMBER, DF, ERROR_CODE, GP, NP, PF, SS, Gate, Vector, deliver
from atomicist.isa.ir import Access, Insn, Note, Op
from atomicist.isa.registers import REGISTERS, SLOTS
from atomicist.machine.bound import LEAVE, bind
from atomicist.machine.memory import PAGE, Memory, PageFlag, Refused, canonical
from atomicist.machine.target import Target

_SHADOW: Final = REGISTERS["SHADOW"].slot
_NMI_BLOCKED: Final = REGISTERS["NMI_BLOCKED"].slot
_RIP: Final = REGISTERS["RIP"].slot
_CR3: Final = REGISTERS["CR3"].slot
_GSBASE: Final = REGISTERS["GSBASE"].slot


PF_PRESENT: Final = 1
PF_WRITE: Final = 2
PF_FETCH: Final = 16
"""Bits of the error code of #PF (SDM vol. 3, 4.7); all accesses are a supervisor's."""

EXT: Final = 1
IDT: Final = 2
"""Bits of the other error codes (SDM vol. 3, 6.13): raised while an event was delivered; of a gate."""

_CONTRIBUTORY: Final = frozenset({NP.number, SS.number, GP.number})
"""Of our vectors; #DE and #TS do not occur (SDM vol. 3, table 6-4)."""


class Fault(Exception):  # noqa: N818 - an event of the model
    """An exception that the processor raises: ``vector`` number, ``error`` code,
    ``reason`` in words and the ``address`` concerned."""

    def __init__(self, vector: int, error: int, reason: str, address: int) -> None:
        super().__init__(f"#{vector} ({reason})")
        self.vector = vector
        self.error = error
        self.reason = reason
        self.address = address


class Unmodelled(Exception):  # noqa: N818 - an event of the model
    """The run met something that the model does not know."""


class Predicted(Exception):  # noqa: N818 - an event of the model
    """A branch of some kind may go where user mode trained it to (`isa.predictions`)."""


class ForeignGsBase(Exception):  # noqa: N818 - an event of the model
    """A GS-relative access while GSBASE is not the kernel's."""

    def __init__(self, address: int) -> None:
        super().__init__(f"at {address:#x}")
        self.address = address


def _double(first: Vector, second: Fault) -> bool:
    """Whether ``second``, raised while ``first`` is delivered, makes a double fault."""
    if first == PF:
        return second.vector in _CONTRIBUTORY or second.vector == PF.number
    return first.number in _CONTRIBUTORY and second.vector in _CONTRIBUTORY


_delivery: Final = cache(deliver)

Watch = Callable[[int, int, int], None]
"""Told of each store: address, size in bytes, value."""


class Machine:
    """Registers, memory and the code of one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.registers = [0] * SLOTS
        self.memory = Memory(target.pages)
        self.watch: Watch | None = None
        self.notes: set[Note] = set()
        self._temps: dict[int, int] = {}
        self._target: int | None = None
        self._gates: dict[Gate, tuple[Op, ...]] = {}

    def __getitem__(self, name: str) -> int:
        """The value of register ``name``."""
        return self.registers[REGISTERS[name].slot]

    def __setitem__(self, name: str, value: int) -> None:
        self.registers[REGISTERS[name].slot] = value & mask(REGISTERS[name].size)

    @property
    def user_root(self) -> bool:
        """Whether the user's page tables are in force."""
        return bool(self.target.user_root_bit & self.registers[_CR3])

    def insn(self) -> Insn:
        """The instruction at RIP. Raises `Fault` or `Unmodelled` if there is none."""
        rip = self.registers[_RIP]
        if not canonical(rip):
            raise Fault(GP.number, 0, "fetch", rip)
        if not self.memory.fetchable(rip, user_root=self.user_root):
            present = self.memory.present(rip, user_root=self.user_root)
            raise Fault(PF.number, PF_FETCH | (PF_PRESENT if present else 0), "fetch", rip)
        found = self.target.insns.get(rip)
        if found is None:
            raise Unmodelled(f"no code at {rip:#x}")
        return found

    def step(self) -> None:
        """Execute one instruction. Raises `Fault`, `Unmodelled`, `Predicted`, `ForeignGsBase`,
        or what the store watch raises; registers are then as before it."""
        insn = self.insn()
        before = list(self.registers)
        self.notes = set()
        try:
            target = self.run(insn.ops)
        except Exception:
            unblocked = self.registers[_NMI_BLOCKED]
            self.registers[:] = before
            self.registers[_NMI_BLOCKED] = unblocked
            raise
        if not self.notes & {Note.IRET, Note.SYSRET}:
            self.registers[_RIP] = insn.next if target is None else target
        if self.registers[_SHADOW]:
            self.registers[_SHADOW] -= 1

    def deliver(self, gate: Gate, error: int = 0) -> None:
        """Deliver an event through ``gate``. Raises `Fault` if a push fails, with EXT set
        in a selector-like error code (SDM vol. 3, 6.13); registers are then as before."""
        self._temps = {ERROR_CODE.off: error}
        if gate not in self._gates:
            self._gates[gate] = _delivery(gate)
        before = list(self.registers)
        try:
            self._execute(self._gates[gate])
        except Fault as e:
            self.registers[:] = before
            if e.vector != PF.number:
                e.error |= EXT
            raise

    def raise_fault(self, fault: Fault, gates: Mapping[str, Gate]) -> str:
        """Deliver ``fault``; if that faults in turn, what SDM vol. 3, 6.15, table 6-5 says:
        the second fault, or #DF.  A vector without a gate has one that is not present.
        Returns the name of the vector delivered, "shutdown" if none could be."""
        while True:
            vector = BY_NUMBER[fault.vector]
            if vector == PF:
                self["CR2"] = fault.address
            second = Fault(NP.number, vector.number << 3 | IDT | EXT, "no gate", self.registers[_RIP])
            gate = gates.get(vector.name)
            if gate is not None:
                try:
                    self.deliver(gate, fault.error)
                except Fault as e:
                    second = e
                else:
                    return vector.name
            if vector == DF:
                return "shutdown"
            fault = Fault(DF.number, 0, "double fault", second.address) if _double(vector, second) else second

    def run(self, ops: tuple[Op, ...]) -> int | None:
        """Execute the operations of one instruction; its branch target, if taken."""
        self._temps = {}
        return self._execute(ops)

    def _execute(self, ops: tuple[Op, ...]) -> int | None:
        bound, registers, temps = bind(ops), self.registers, self._temps
        self._target = None
        index, end = 0, len(bound)
        while index < end:
            to = bound[index](self, registers, temps)
            index = index + 1 if to is None else to
        return self._target

    def leave(self, target: int) -> int:
        """A branch to ``target`` is taken: the instruction ends."""
        self._target = target
        return LEAVE

    def fault(self, vector: int, error: int) -> NoReturn:
        """An instruction's own exception. Raises `Fault`."""
        raise Fault(vector, error, "fault", self.registers[_RIP])

    def refuse(self, text: str, *, predicted: bool) -> NoReturn:
        """What ends a run as a finding. Raises `Unmodelled` or `Predicted`."""
        raise (Predicted if predicted else Unmodelled)(text)

    def load(self, address: int, size: int, access: Access) -> int:
        """``size`` bytes of memory. Raises `Fault`."""
        self._check(address, size, access, write=False)
        return self.memory.peek(address, size)

    def store(self, address: int, size: int, value: int, access: Access) -> None:
        """Write ``size`` bytes of memory. Raises `Fault`."""
        self._check(address, size, access, write=True)
        if self.watch is not None:
            self.watch(address, size, value)
        self.memory.poke(address, size, value)

    def _check(self, address: int, size: int, access: Access, *, write: bool) -> None:
        if access is Access.GS and self.registers[_GSBASE] != self.target.kernel_gsbase:
            raise ForeignGsBase(address)
        last = address + size - 1 & mask(8)
        places = (address,) if address // PAGE == last // PAGE else (address, last & -PAGE)
        for place in places:
            try:
                self.memory.check(place, write=write, user_root=self.user_root)
            except Refused as e:
                if e.reason == "non-canonical":
                    stack = access in (Access.STACK, Access.SYSTEM)
                    raise Fault(SS.number if stack else GP.number, 0, e.reason, e.address) from e
                present = self.memory.present(place, user_root=self.user_root)
                code = (PF_PRESENT if present else 0) | (PF_WRITE if write else 0)
                raise Fault(PF.number, code, e.reason, e.address) from e

    def scratch(self, address: int) -> bool:
        """Whether an entry may write to ``address`` before it commits."""
        flags = self.memory.flags(address)
        return flags is not None and bool(int(flags) & int(PageFlag.SCRATCH))
