# SPDX-License-Identifier: GPL-2.0-only
"""Whole runs in Unicorn: a second opinion on everything but the ruler.

Ordinary instructions are executed by Unicorn, one by one.  System instructions, the delivery of events and
faults, and the page tables' say are written here by hand from the manuals, without a look at `isa` and
`machine`; schedules are walked here, without `search`.  Only the observer (`spec.observer`), which judges,
is the same: a difference is one in what the machine does, or in which schedules there are.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import capstone

from atomicist.crosscheck.by_hand import OTHERS, ByHand, by_hand
from atomicist.crosscheck.engines import import_unicorn
from atomicist.crosscheck.walked_memory import ALL, PAGE, Memory, Refused, is_canonical
from atomicist.isa.registers import BY_SLOT, GPRS, REGISTERS
from atomicist.machine.interpreter import Machine
from atomicist.machine.memory import PageFlag, Region
from atomicist.machine.target import Place, Target
from atomicist.spec.contexts import Context
from atomicist.spec.events import ERROR_TOKEN
from atomicist.spec.observer import Observer, Violation

IN_UNICORN: Final = {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "DF": 10, "OF": 11}
"""Flags of ordinary instructions, with their bits (SDM vol. 1, figure 3-8); the others are kept here."""

WITH_ERROR: Final = frozenset({"DF", "NP", "SS", "GP", "PF", "VC"})
"""SDM vol. 3, table 6-1; APM vol. 2, 8.2.20 (#VC)."""

CONTRIBUTORY: Final = frozenset({"NP", "SS", "GP"})
"""SDM vol. 3, table 6-4."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An instruction: executed by hand if ``own`` says how; ``gs``: its memory is GS-relative; ``stack``: a
    refusal is #SS; ``repeats``: with a prefix; ``returns``: it sets RIP itself."""

    insn: Any
    own: ByHand | None
    gs: bool
    stack: bool
    repeats: bool
    returns: bool
    next: int


def _decoded(insn: Any) -> _Decoded:
    stem = insn.mnemonic
    touches = stem not in ("lea", "nop")
    memory = [o.mem for o in insn.operands if o.type == 3] if touches else []
    gs = any(m.segment and insn.reg_name(m.segment) == "gs" for m in memory)
    base = {insn.reg_name(o.mem.base) for o in insn.operands if o.type == 3 and o.mem.base}
    stack = stem in ("push", "pop", "call", "ret") or bool({"rsp", "rbp"} & base)
    returns = stem in ("iretq", "sysretq")
    return _Decoded(insn, by_hand(insn), gs, stack, stem.startswith("rep"), returns, insn.address + insn.size)


class Walker:
    """One target in Unicorn; what the observer takes for a machine."""

    def __init__(self, target: Target) -> None:
        """Raises `MissingError` if unicorn is not there."""
        uc, ux, raw = import_unicorn()
        self.target = target
        self._uc = uc
        self._machine: Any = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_64)
        # for the calls of each step: the binding's own take ten times as long
        self._lib, self._handle = raw.uclib, self._machine._uch  # noqa: SLF001
        self._value = c.c_uint64()
        self._place = c.byref(self._value)
        self._machine.ctl_set_cpu_model(ux.UC_CPU_X86_ICELAKE_SERVER)
        # addresses are those of the page tables in force: no second walk
        self._machine.ctl_set_tlb_mode(uc.UC_TLB_VIRTUAL)
        self.memory = Memory(target, uc, self._machine)
        self._memory = self.memory.save()
        self._ids = {name: getattr(ux, f"UC_X86_REG_{name}") for name in (*GPRS, "RIP")}
        self._flags_id = ux.UC_X86_REG_EFLAGS
        self._fs, self._gs = ux.UC_X86_REG_FS_BASE, ux.UC_X86_REG_GS_BASE
        self.rest: dict[str, int] = {}
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._decoder.detail = True
        self._decoded: dict[int, _Decoded] = {}
        self._before = self._machine.context_save()
        self._caught: Exception | None = None
        kinds = uc.UC_HOOK_MEM_READ | uc.UC_HOOK_MEM_WRITE
        unmapped = uc.UC_HOOK_MEM_READ_UNMAPPED | uc.UC_HOOK_MEM_WRITE_UNMAPPED
        self._stack = False
        self._machine.hook_add(kinds, self._touched)
        self._machine.hook_add(unmapped, self._touched)
        self.observer: Observer = cast("Observer", None)

    # --- what the observer asks of a machine ---

    def _read(self, number: int) -> int:
        self._lib.uc_reg_read(self._handle, number, self._place)
        return self._value.value

    def __getitem__(self, name: str) -> int:
        number = self._ids.get(name)
        if number is not None:
            return self._read(number)
        if name in IN_UNICORN:
            return self._read(self._flags_id) >> IN_UNICORN[name] & 1
        return self.rest[name]

    def __setitem__(self, name: str, value: int) -> None:
        value &= (1 << 8 * REGISTERS[name].size) - 1
        if name in self._ids:
            self._machine.reg_write(self._ids[name], value)
        elif name in IN_UNICORN:
            flags = self._machine.reg_read(self._flags_id) & ~(1 << IN_UNICORN[name])
            self._machine.reg_write(self._flags_id, flags | value << IN_UNICORN[name])
        else:
            self.rest[name] = value
            if name in ("FSBASE", "GSBASE"):
                self._machine.reg_write(self._fs if name == "FSBASE" else self._gs, value)

    @property
    def registers(self) -> list[int]:
        """The whole file, in the observer's order."""
        values = self._machine.reg_read_batch([*self._ids.values(), self._flags_id])
        found = dict(zip(self._ids, values, strict=False)) | self.rest
        found |= {name: values[-1] >> bit & 1 for name, bit in IN_UNICORN.items()}
        return [found[name] for name in BY_SLOT]

    def scratch(self, address: int) -> bool:
        """Whether an entry may write there before it commits."""
        flags = self.memory.flags(address)
        return flags is not None and bool(int(flags) & int(PageFlag.SCRATCH))

    # --- memory ---

    @property
    def _user_root(self) -> bool:
        return bool(self.target.user_root_bit & self.rest["CR3"])

    def _check(self, address: int, size: int, *, write: bool, stack: bool) -> None:
        crosses = address % PAGE + size > PAGE
        for place in (address, (address + size - 1) & ALL & -PAGE) if crosses else (address,):
            if not is_canonical(place):
                raise Refused("SS" if stack else "GP", 0, "non-canonical", place)
            why = self.memory.refusal(place, write=write, user_root=self._user_root)
            if why is not None:
                raise Refused("PF", why[1], why[0], place)

    def _touched(self, _: Any, kind: int, address: int, size: int, value: int, __: object) -> bool:
        write = kind in (self._uc.UC_MEM_WRITE, self._uc.UC_MEM_WRITE_UNMAPPED)
        address &= ALL
        if self._caught is None:
            try:
                self._check(address, size, write=write, stack=self._stack)
                if write:
                    self.observer.store(address, size, value & (1 << 8 * size) - 1)
            except Exception as e:  # noqa: BLE001 - nothing may pass through the library
                self._caught = e
                self._machine.emu_stop()
        return False

    def read(self, address: int) -> int:
        """The word at ``address``, as the processor itself reads it. Raises `Refused`."""
        self._check(address, 8, write=False, stack=True)
        return self.memory.peek(address, 8)

    def push(self, sp: int, value: int, *, watched: bool) -> int:
        """Push a word by hand. Raises `Refused`."""
        sp = sp - 8 & ALL
        self._check(sp, 8, write=True, stack=True)
        if watched:
            self.observer.store(sp, 8, value)
        self.memory.poke(sp, value)
        return sp

    # --- flags ---

    def rflags(self) -> int:
        """RFLAGS as it would be pushed."""
        flags = 2 | self._machine.reg_read(self._flags_id) & sum(1 << bit for bit in IN_UNICORN.values())
        return int(flags | sum(self.rest[name] << bit for name, bit in OTHERS.items()))

    def set_rflags(self, value: int, names: Sequence[str]) -> None:
        """Set the arithmetic flags and ``names`` from an image."""
        arithmetic = 2 | value & sum(1 << bit for bit in IN_UNICORN.values())
        self._machine.reg_write(self._flags_id, arithmetic)
        for name in names:
            self.rest[name] = value >> OTHERS[name] & (3 if name == "IOPL" else 1)

    # --- events (SDM vol. 3, 6.14; APM vol. 2, 8.9) ---

    def deliver(self, vector: str, error: int) -> None:
        """Through the vector's gate; with nothing changed if a push is refused. Raises `Refused`."""
        gate = self.target.gates[vector]
        user = bool(self.rest["CS"] & 3)
        tss = self.rest["TR_BASE"]
        if gate.ist:
            sp = self.read(tss + 0x24 + 8 * (gate.ist - 1))
        else:
            sp = self.read(tss + 4) if user else self["RSP"]
        sp &= ~15
        flags = self.rflags()
        if vector == "VC":  # a fault: RF is set in what it pushes (SDM vol. 3, 17.3.1.1)
            flags |= 1 << 16
        words = [self.rest["SS"], self["RSP"], flags, self.rest["CS"], self["RIP"]]
        if vector in WITH_ERROR:
            words.append(error)
        for word in words:
            sp = self.push(sp, word, watched=False)
        self["RSP"], self["RIP"] = sp, gate.offset
        if user:
            self.rest["SS"] = 0
        self.rest |= {"CS": 0x10, "TF": 0, "NT": 0, "RF": 0, "VM": 0, "IF": 0, "SHADOW": 0}
        if vector == "NMI":
            self.rest["NMI_BLOCKED"] = 1
        if vector == "MC":
            self.rest["MCG_STATUS"] |= 4

    def _raise(self, fault: Refused) -> str:
        """Deliver a fault; a second one on the way as SDM vol. 3, table 6-5 says."""
        vector, error = fault.vector, fault.error
        while vector in self.target.gates:
            if vector == "PF":
                self.rest["CR2"] = fault.address
            try:
                self.deliver(vector, error)
            except Refused as second:
                if vector == "DF":
                    return "shutdown"
                double = second.vector in CONTRIBUTORY and (vector in CONTRIBUTORY or vector == "PF")
                double |= vector == "PF" and second.vector == "PF"
                vector, error = ("DF", 0) if double else (second.vector, second.error | 1)
            else:
                return vector
        return "not delivered"

    def _decode(self, va: int) -> _Decoded:
        known = self._decoded.get(va)
        if known is None:
            insn = next(self._decoder.disasm(self.target.insns[va].raw, va, 1), None)
            if insn is None:
                raise Violation("UNMODELLED", "no instruction")
            known = self._decoded[va] = _decoded(insn)
        return known

    # --- a run ---

    def step(self) -> None:
        """One instruction, or a handler. Raises what ends the run."""
        rip = self["RIP"]
        handler = self.target.handlers.get(rip)
        if handler is not None:
            self.observer.handler(handler)
            for region in self.observer.adversary(handler):
                self.memory.poison(region)
            return
        try:
            self._execute(rip)
        except Refused as fault:
            self._faulted(fault)
            return
        if self.rest["SHADOW"]:
            self.rest["SHADOW"] -= 1
        if self.target.insns[rip].raw in (b"\x48\xcf", b"\x48\x0f\x07"):
            self.observer.returned()

    def _execute(self, rip: int) -> None:
        if not is_canonical(rip):
            raise Refused("GP", 0, "fetch", rip)
        if not self.memory.may_fetch(rip, user_root=self._user_root):
            raise Refused("PF", 16, "fetch", rip)
        if rip not in self.target.insns:
            raise Violation("NO_CODE", f"{rip:#x}")
        decoded = self._decode(rip)
        own = decoded.own
        if decoded.gs and self.rest["GSBASE"] != self.target.kernel_gsbase:
            raise Violation("FOREIGN_GSBASE", "GSBASE")
        if own is not None:
            own(self, decoded.insn)
            if not decoded.returns:
                self["RIP"] = decoded.next
            return
        self._lib.uc_context_save(self._handle, self._before._context)  # noqa: SLF001
        self._stack = decoded.stack
        error, caught = self._start(rip), self._taken()
        if not error and caught is None and decoded.repeats and self["RIP"] == rip and not self["RCX"]:
            error, caught = self._start(rip), self._taken()
        if caught is not None:
            self._machine.context_restore(self._before)
            raise caught
        if error:
            raise Violation("UNMODELLED", f"Unicorn: {error}")

    def _taken(self) -> Exception | None:
        """What a hook caught."""
        caught, self._caught = self._caught, None
        return caught

    def _start(self, rip: int) -> str:
        """One instruction in Unicorn; what it says went wrong, but for where a branch leads."""
        error = self._lib.uc_emu_start(self._handle, rip, 0, 0, 1)
        if error in (0, self._uc.UC_ERR_FETCH_UNMAPPED, self._uc.UC_ERR_FETCH_PROT):
            return ""
        return str(self._uc.UcError(error))

    def _faulted(self, fault: Refused) -> None:
        if self.observer.marked(Place.DELIBERATE) and fault.why == "non-canonical":
            where = self["RIP"]
            if self._raise(fault) != "DF":
                raise Violation("DOUBLE_FAULT", "it became something else") from fault
            self["RIP"] = where
            self.observer.deliberate()
        key = fault.why.upper().replace("-", "_")
        raise Violation(key, "fault") from fault

    def begin(self, context: Context) -> None:
        """The machine in ``context``, with the memory of the target."""
        self.memory.restore(self._memory)
        for name, value in zip(BY_SLOT, context.registers, strict=True):
            if name not in self._ids and name not in IN_UNICORN:
                self.rest[name] = value
        for name, value in zip(BY_SLOT, context.registers, strict=True):
            self[name] = value
        self.observer = Observer(
            cast("Machine", self), expect_df=context.expect_df, no_stack=context.no_stack
        )

    def commit(self) -> None:
        """Where the image says that its IST stacks are free: let the observer free them."""
        if self.observer.early and self.observer.marked(Place.COMMITTED):
            for region in self.observer.committed():
                self.memory.poison(region)
            main = self.target.main_stack()
            if main is not None:
                self.memory.poison(Region(main.name, main.bottom, self["RSP"], main.kind))
        if self.observer.instances and self.observer.marked(Place.COMMITTED):
            self.observer.at_label()

    def inject(self, vector: str) -> None:
        """Deliver an event of the schedule. Raises `Violation` if it cannot be."""
        instance = self.observer.push(vector)
        try:
            self.deliver(vector, ERROR_TOKEN)
        except Refused as e:
            raise Violation(e.why.upper().replace("-", "_"), f"delivery of {vector}") from e
        instance.frame = self["RSP"]

    def save(self) -> tuple[Any, ...]:
        """All that a step changes."""
        return self._machine.context_save(), dict(self.rest), self.memory.save(), _copy(self.observer)

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Back to where `save` was."""
        context, rest, memory, observer = saved
        self._machine.context_restore(context)
        self.rest = dict(rest)
        self.memory.restore(memory)
        self.observer = _copy(observer)


def _copy(observer: Observer) -> Observer:
    """The observer's own state, without the machine."""
    new = object.__new__(Observer)
    for name, value in vars(observer).items():
        setattr(new, name, value.copy() if isinstance(value, dict | list | set) else value)
    made = [type(i)(**{f: getattr(i, f) for f in i.__slots__}) for i in observer.instances]
    for one, other in zip(made, observer.instances, strict=True):
        one.context = dict(other.context)
    new.instances = made
    return new
