# SPDX-License-Identifier: GPL-2.0-only
"""A second opinion on boot-time patching: the kernel's own code, run in Unicorn on the kernel's own image.

alternative_instructions' four steps are called as boot calls them, with boot_cpu_data and x86_return_thunk
set for the chosen features.  Only text_poke_early is replaced (by the copy that it is), because it ends in
an IRET that the emulated machine has no descriptor tables for, and module_alloc, which finds no memory here.
"""

from typing import Any

import unicorn
from unicorn import x86_const as x86

from atomicist.image.features import NUMBERS, RETURN_THUNKS, feature_set
from atomicist.image.kernel import Kernel

_STACK, _SIZE = 0xFFFF_C900_0000_0000, 1 << 16
_PERCPU = 0xFFFF_8880_0000_0000
_RETURN = 0xFFFF_C900_0100_0000
STEPS = (
    ("apply_paravirt", "__parainstructions"),
    ("apply_retpolines", "__retpoline_sites"),
    ("apply_returns", "__return_sites"),
    ("apply_alternatives", "__alt_instructions"),
)


class KernelPatcher:
    """The emulated machine; `run` patches, `read` looks at the result."""

    def __init__(self, kernel: Kernel, features: frozenset[str]) -> None:
        self.kernel = kernel
        # Unicorn types half of what it exports.
        library: Any = unicorn
        self.machine: Any = library.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        # Addresses as they are: no page tables, and none of their limits.
        self.machine.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        for segment in kernel.elf.segments:
            base = segment.va or _PERCPU
            start, end = base & -4096, -(-(base + segment.size) & -4096)
            self.machine.mem_map(start, end - start)
            self.machine.mem_write(base, bytes(segment.data))
        self.machine.mem_map(_STACK, _SIZE)
        self.machine.mem_map(_RETURN, 4096)
        self.machine.reg_write(x86.UC_X86_REG_GS_BASE, _PERCPU)
        self.stub("text_poke_early", self.copy)
        for name in ("module_alloc", "_printk"):
            self.stub(name, self.nothing)

        capabilities = kernel.symbol("boot_cpu_data") + kernel.btf().offset("cpuinfo_x86", "x86_capability")
        self.machine.mem_write(capabilities, bytes(4 * 24))
        names = feature_set(features)
        for name in names:
            byte, bit = divmod(NUMBERS[name], 8)
            old = self.machine.mem_read(capabilities + byte, 1)[0]
            self.machine.mem_write(capabilities + byte, bytes([old | 1 << bit]))
        thunk = next((thunk for feature, thunk in RETURN_THUNKS if feature in names), "__x86_return_thunk")
        self.machine.mem_write(kernel.symbol("x86_return_thunk"), kernel.symbol(thunk).to_bytes(8, "little"))

    def stub(self, name: str, action: object) -> None:
        at = self.kernel.symbol(name)
        self.machine.hook_add(unicorn.UC_HOOK_CODE, action, begin=at, end=at)

    def leave(self) -> None:
        rsp = self.machine.reg_read(x86.UC_X86_REG_RSP)
        back = int.from_bytes(self.machine.mem_read(rsp, 8), "little")
        self.machine.reg_write(x86.UC_X86_REG_RSP, rsp + 8)
        self.machine.reg_write(x86.UC_X86_REG_RIP, back)

    def copy(self, machine: Any, _at: int, _size: int, _data: object) -> None:
        to, source, length = (
            machine.reg_read(r) for r in (x86.UC_X86_REG_RDI, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDX)
        )
        machine.mem_write(to, bytes(machine.mem_read(source, length)))
        self.leave()

    def nothing(self, machine: Any, _at: int, _size: int, _data: object) -> None:
        machine.reg_write(x86.UC_X86_REG_RAX, 0)
        self.leave()

    def run(self) -> None:
        for function, first in STEPS:
            rsp = _STACK + _SIZE - 64
            self.machine.mem_write(rsp, _RETURN.to_bytes(8, "little"))
            self.machine.reg_write(x86.UC_X86_REG_RSP, rsp)
            self.machine.reg_write(x86.UC_X86_REG_RDI, self.kernel.symbol(first))
            self.machine.reg_write(x86.UC_X86_REG_RSI, self.kernel.symbol(first + "_end"))
            self.machine.emu_start(self.kernel.symbol(function), _RETURN)

    def read(self, va: int, size: int) -> bytes:
        return bytes(self.machine.mem_read(va, size))
