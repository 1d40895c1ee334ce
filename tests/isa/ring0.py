# SPDX-License-Identifier: GPL-2.0-only
"""A machine in ring 0 before one instruction, with registers and stack as a test wants them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from atomicist.crosscheck.states import ARENA, ARENA_SIZE, CODE
from atomicist.isa.registers import GPRS, REGISTERS
from atomicist.machine.interpreter import Machine
from tests.isa.engines import arena_pages, code_page, lifter, target_of
from tests.isa.forms import assemble

STACK = ARENA + 0x1000
KERNEL_GSBASE = 0xFFFF_8880_0A00_0000
USER_TEXT = 0x0000_5555_5555_4000
USER_STACK = 0x0000_7FFF_FFFF_E000


@functools.cache
def code(line: str) -> bytes:
    """The bytes of one line of assembly."""
    return assemble([line])[0]


def machine(line: str, words: Mapping[int, int] | None = None, **registers: int) -> Machine:
    """Kernel mode, interrupts off, RSP = STACK, before ``line``; ``words`` are in memory."""
    insn = lifter().lift(CODE, code(line))
    pages = (*arena_pages(bytes(ARENA_SIZE)), code_page(CODE))
    made = Machine(target_of({CODE: insn}, pages, KERNEL_GSBASE))
    for i, name in enumerate(GPRS):
        made[name] = 0xA70A_0000_0000_0000 | i
    made["RIP"], made["RSP"], made["CS"], made["SS"] = CODE, STACK, 0x10, 0x18
    made["GSBASE"], made["KERNEL_GSBASE"], made["CR4"] = KERNEL_GSBASE, 0x7777_0000, 1 << 16
    for name, value in registers.items():
        made[name] = value
    for address, value in (words or {}).items():
        made.memory.poke(address, 8, value)
    return made


def frame(rip: int, cs: int, flags: int, rsp: int, ss: int) -> dict[int, int]:
    """What IRETQ pops, at STACK."""
    return {STACK + 8 * i: word for i, word in enumerate((rip, cs, flags, rsp, ss))}


def everything(m: Machine) -> dict[str, int]:
    """All registers by name."""
    return {name: m[name] for name in REGISTERS}


def changes(before: Mapping[str, int], m: Machine) -> dict[str, int]:
    """The registers that differ from ``before``, but RIP."""
    after: dict[str, Any] = everything(m)
    return {name: after[name] for name in after if after[name] != before[name] and name != "RIP"}
