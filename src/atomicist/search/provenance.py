# SPDX-License-Identifier: GPL-2.0-only
"""A machine that notes where each stored word came from.

Whole 8-byte values are followed through COPY, LOAD and STORE of the operations that an
instruction is made of: a word that is loaded and stored again has been copied, and a
register that nobody has changed since an event arrived is still the register of the
context which that event interrupted.  Anything computed comes from nowhere.

An instruction with jumps inside it (microcode: IRET, delivery) is not followed: what it
writes comes from nowhere, except that who reads the record knows what a delivery pushes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atomicist.isa.ir import Access, Code, Op, Space, Var
from atomicist.isa.registers import BY_SLOT, SLOT
from atomicist.machine.interpreter import Machine
from atomicist.machine.memory import WORD
from atomicist.machine.target import Target

START: Final = -1
"""The number of the context in which the run began."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: ``address`` is the word it was loaded from, at ``step``; or
    None, and it is ``register`` of the context ``of`` that the delivery of that number
    interrupted (`START`: the first).  ``register`` alone may be set beside an address: the
    register that the value passed through."""

    register: str
    address: int | None = None
    step: int = 0
    of: int = START


class Tape(Machine):
    """A machine that keeps what is needed to show a run: the registers at the beginning of
    each step, and the source of each word that was stored."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.before: list[tuple[int, ...]] = []
        self.sources: dict[tuple[int, int], Source] = {}
        """(step, address of the word) -> source of what was stored there."""
        self._register: dict[int, Source] = {slot: Source(name) for slot, name in enumerate(BY_SLOT)}
        self._loads: list[tuple[int, int]] = []
        self._stores: list[tuple[int, int]] = []
        self._deliveries = 0

    @property
    def machine(self) -> Machine:
        """Itself."""
        return self

    def mark(self, index: int) -> None:
        """Step ``index`` begins."""
        del self.before[index:]
        self.before.append(tuple(self.registers))

    def __setitem__(self, name: str, value: int) -> None:
        """A register is set from outside: by a handler, or for want of one."""
        super().__setitem__(name, value)
        self._register.pop(BY_SLOT.index(name), None)

    def load(self, address: int, size: int, access: Access) -> int:
        """As the machine does; noted."""
        value = super().load(address, size, access)
        self._loads.append((address, size))
        return value

    def store(self, address: int, size: int, value: int, access: Access) -> None:
        """As the machine does; noted."""
        super().store(address, size, value, access)
        self._stores.append((address, size))

    def _execute(self, ops: tuple[Op, ...]) -> int | None:
        self._loads, self._stores = [], []
        target = super()._execute(ops)
        if any(op.code in (Code.JUMP, Code.CJUMP) for op in ops):
            self._forget(ops)
        else:
            self._follow(ops)
        if ops and self._delivering(ops):
            for slot, name in enumerate(BY_SLOT):
                self._register.setdefault(slot, Source(name, of=self._deliveries))
            self._deliveries += 1
        return target

    def _delivering(self, ops: tuple[Op, ...]) -> bool:
        return any(ops is known for known in self._gates.values())

    def _forget(self, ops: tuple[Op, ...]) -> None:
        for op in ops:
            if op.out is not None and op.out.space is Space.REG:
                self._register.pop(op.out.off // SLOT, None)

    def _follow(self, ops: tuple[Op, ...]) -> None:
        temps: dict[int, Source] = {}
        loads, stores = iter(self._loads), iter(self._stores)
        for op in ops:
            came: Source | None = None
            if op.code is Code.COPY:
                came = self._of(op.ins[0], temps)
            elif op.code is Code.LOAD:
                at = next(loads, None)
                if at is not None and at[1] == WORD and at[0] % WORD == 0:
                    came = Source("", at[0], len(self.before) - 1)
            elif op.code is Code.STORE:
                at = next(stores, None)
                stored = self._of(op.ins[1], temps)
                if at is not None and stored is not None and at[1] == WORD:
                    self.sources[len(self.before) - 1, at[0]] = stored
            if op.out is not None:
                self._put(op.out, came, temps)

    def _of(self, v: Var, temps: dict[int, Source]) -> Source | None:
        if v.size != WORD:
            return None
        if v.space is Space.TMP:
            return temps.get(v.off)
        return self._register.get(v.off // SLOT) if v.space is Space.REG and not v.off % SLOT else None

    def _put(self, out: Var, came: Source | None, temps: dict[int, Source]) -> None:
        if out.space is Space.TMP:
            temps.pop(out.off, None)
            if came is not None and out.size == WORD:
                temps[out.off] = came
        elif out.space is Space.REG:
            slot = out.off // SLOT
            self._register.pop(slot, None)
            if came is not None and out.size == WORD and not out.off % SLOT:
                self._register[slot] = came
