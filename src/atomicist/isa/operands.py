# SPDX-License-Identifier: GPL-2.0-only
"""Operands of microcoded instructions, from capstone's decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from atomicist.isa.builder import Builder
from atomicist.isa.ir import Access, Code, Var, const, reg
from atomicist.isa.registers import GPRS


def _register_table() -> dict[str, Var]:
    table: dict[str, Var] = {}
    low32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
    for i, name in enumerate(GPRS):
        table[name.lower()] = reg(name)
        table[low32[i] if i < 8 else f"r{i}d"] = reg(name, 4)
        table[low32[i][1:] if i < 8 else f"r{i}w"] = reg(name, 2)
    for name in ("cr0", "cr2", "cr3", "cr4", "dr6", "dr7"):
        table[name] = reg(name.upper())
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        table[name] = reg(name.upper())
    return table


_REGISTERS: Final = _register_table()


@dataclass(frozen=True, slots=True)
class Operands:
    """The decoded operands of one instruction, as capstone gives them."""

    insn: Any

    def register(self, index: int) -> Var | None:
        """Operand ``index`` as a register, None if it is none we have."""
        operands = self.insn.operands
        if index >= len(operands) or operands[index].type != 1:
            return None
        return _REGISTERS.get(self.insn.reg_name(operands[index].reg))

    def immediate(self, index: int) -> int:
        """Operand ``index`` as an immediate."""
        return int(self.insn.operands[index].imm)

    def address(self, b: Builder, index: int) -> tuple[Var, Access] | None:
        """Effective address of memory operand ``index``, None if it is no plain one."""
        operand = self.insn.operands[index]
        if operand.type != 3 or self.insn.addr_size != 8:
            return None
        mem = operand.mem
        total = const(mem.disp, 8)
        access = Access.DATA
        if mem.base:
            name = self.insn.reg_name(mem.base)
            base = const(self.insn.address + self.insn.size, 8) if name == "rip" else _REGISTERS[name]
            total = b.add(base, total)
            access = Access.STACK if name in ("rsp", "rbp") else access
        factor = _REGISTERS.get(self.insn.reg_name(mem.index)) if mem.index else None
        if factor is not None:  # "riz" says that there is none
            total = b.add(total, b.op(Code.INT_MULT, 8, factor, const(mem.scale, 8)))
        segment = self.insn.reg_name(mem.segment) if mem.segment else ""
        if segment in ("gs", "fs"):
            total = b.add(total, reg(segment.upper() + "BASE"))
            access = Access.GS if segment == "gs" else Access.DATA
        return total, access
