# SPDX-License-Identifier: GPL-2.0-only
"""What a user of Unicorn would write: an event, and at each boundary up to its commit a second one.

Written for speed: raw calls of the library, contexts saved and restored by it, the frame of the delivery
built by hand and written in one call, no hooks, and the run ended by Unicorn's own exit addresses.
"""

from __future__ import annotations

import ctypes as c
import struct
import time
from dataclasses import dataclass
from typing import Final

import unicorn
from unicorn import x86_const as ux
from unicorn.unicorn_py3 import unicorn as raw

from atomicist.isa.delivery import KERNEL_CS, KERNEL_DS, Gate
from atomicist.isa.registers import GPRS, REGISTERS
from atomicist.machine.memory import PAGE
from atomicist.machine.target import Place, Target
from atomicist.spec.contexts import Context
from atomicist.spec.events import ERROR_TOKEN, EVENTS

CLAC: Final = bytes.fromhex("0f01ca")
NOP3: Final = bytes.fromhex("0f1f00")
FLAGS: Final = 0x202


@dataclass(frozen=True)
class Walk:
    """Schedules run, and the seconds that took."""

    schedules: int
    seconds: float


class Machine:
    """The target in Unicorn, stopping at every commit label."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.commits = {va for va, place in target.places.items() if place & Place.COMMITTED}
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.handle = self.uc._uch  # noqa: SLF001 - for the raw calls
        self.lib = raw.uclib
        for page in target.pages:
            self.uc.mem_map(page.base, PAGE)
            # its processor model has no SMAP, and would refuse CLAC
            self.uc.mem_write(page.base, page.data.replace(CLAC, NOP3))
        # addresses are those of the page tables in force: no second walk
        self.uc.ctl_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        self.uc.ctl_exits_enabled(True)
        self.uc.ctl_set_exits(sorted(self.commits))
        ids = [ux.UC_X86_REG_RIP, ux.UC_X86_REG_RSP, ux.UC_X86_REG_EFLAGS]
        self._ids = (c.c_int * 3)(*ids)
        self._values = (c.c_uint64 * 3)()
        self._places = (c.c_void_p * 3)(*(c.addressof(self._values) + 8 * i for i in range(3)))

    def begin(self, context: Context) -> None:
        """Take over the registers that matter before a commit."""
        for name in (*GPRS, "RIP"):
            self.uc.reg_write(getattr(ux, f"UC_X86_REG_{name}"), context.registers[REGISTERS[name].slot])
        self.uc.reg_write(ux.UC_X86_REG_EFLAGS, FLAGS)

    def deliver(self, gate: Gate, top: int) -> None:
        """Deliver an event to a kernel-mode context on the IST stack at ``top``."""
        lib, values = self.lib, self._values
        lib.uc_reg_read_batch(self.handle, self._ids, self._places, 3)
        rip, rsp, flags = values
        frame = struct.pack("<5Q", rip, KERNEL_CS, flags, rsp, KERNEL_DS)
        if gate.vector.has_error_code:
            frame = struct.pack("<Q", ERROR_TOKEN) + frame
        lib.uc_mem_write(self.handle, c.c_uint64(top - len(frame)), frame, c.c_size_t(len(frame)))
        values[0], values[1], values[2] = gate.offset, top - len(frame), flags & ~0x14300
        lib.uc_reg_write_batch(self.handle, self._ids, self._places, 3)

    def rip(self) -> int:
        """Where it stands."""
        return int(self.uc.reg_read(ux.UC_X86_REG_RIP))


def walk(target: Target, context: Context, first: str, vectors: tuple[str, ...]) -> Walk:
    """``first``, then at each boundary before its commit each of ``vectors``, to the commit that follows.

    RuntimeError if Unicorn goes elsewhere."""
    machine = Machine(target)
    tops = {name: target.named_region(f"{name.lower()}_stack").top for name in EVENTS}
    main = target.main_stack()
    if main is None:
        raise ValueError("the target has no main stack")
    lib, handle = machine.lib, machine.handle
    machine.begin(context)
    machine.deliver(target.gates[first], tops[first])
    # what the second entry may write: its own stack, and the main stack
    spots = {v: ((main.top - 1024, 1024), (tops[v] - 512, 512)) for v in vectors}
    forever = (c.c_uint64(0), c.c_uint64(0), c.c_size_t(0))
    schedules = 0
    started = time.process_time()
    # single steps first, all of them: they make Unicorn forget its translations
    boundaries = []
    while (rip := machine.rip()) not in machine.commits:
        boundaries.append((machine.uc.context_save(), bytes(machine.uc.mem_read(*spots[vectors[0]][0]))))
        lib.uc_emu_start(handle, c.c_uint64(rip), c.c_uint64(0), c.c_uint64(0), c.c_size_t(1))
    clean = {v: bytes(machine.uc.mem_read(*spots[v][1])) for v in vectors}
    for saved, stack in boundaries:
        for vector in vectors:
            gate = target.gates[vector]
            lib.uc_context_restore(handle, saved._context)  # noqa: SLF001
            machine.deliver(gate, tops[vector])
            error = lib.uc_emu_start(handle, c.c_uint64(gate.offset), *forever)
            if error or machine.rip() not in machine.commits:
                raise RuntimeError(f"Unicorn stopped at {machine.rip():#x}, error {error}")
            schedules += 1
            for (at, size), content in zip(spots[vector], (stack, clean[vector]), strict=True):
                lib.uc_mem_write(handle, c.c_uint64(at), content, c.c_size_t(size))
    return Walk(schedules, time.process_time() - started)
