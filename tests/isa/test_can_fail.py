# SPDX-License-Identifier: GPL-2.0-only
"""The comparison is worth something only if it notices: meanings made wrong on purpose are all caught."""

from collections.abc import Callable
from random import Random

import pytest

from atomicist.isa.ir import Code, Flow, Insn, Op, Space, const, reg
from tests.isa.compare import disagreements, random_choice
from tests.isa.engines import PLACES
from tests.isa.forms import assemble

SPECIMENS = (
    "add rax, rbx", "add eax, ecx", "adc bl, al", "sub r9, [rsp+8]", "sbb rcx, -1", "cmp qword ptr [rbx], rax",
    "and rax, 0xfff", "or rax, rdx", "xor edi, edi", "test cl, 3", "inc rax", "dec dword ptr [rbx]", "neg rcx",
    "not rdx", "shl rax, 5", "shr rdx, 12", "shr al, 1", "sar r11, 16", "rol rax, 7", "imul rax, rbx, 0xb0", "mul rcx",
    "bt r14, 12", "bts rax, 63", "btr qword ptr gs:[0x1008], rax", "movzx ecx, byte ptr [rsi]", "movsxd rsi, eax",
    "mov rax, [rbp-8]", "mov [rdx+0x50], r10", "mov eax, [rdx*8+0x1000]", "lea rsi, [r10+r9*4+1]", "push [rdi+0x30]",
    "pop [rdi]", "pop r15", "call .+0x40", "ret 8", "jb .+0x10", "ja .+0x10", "jl .+0x10", "cmovbe rax, rbp",
    "cmovb eax, ebp", "setae r9b", "rep movsq", "rep stosq", "lodsd", "bsf rax, rcx", "popcnt rax, rcx", "bswap rax",
    "xchg rax, [rbx]", "leave", "cqo", "std", "lahf",
)  # fmt: skip

SWAPS = {
    Code.INT_ADD: Code.INT_SUB, Code.INT_SUB: Code.INT_ADD, Code.INT_MULT: Code.INT_ADD, Code.INT_AND: Code.INT_OR,
    Code.INT_OR: Code.INT_XOR, Code.INT_XOR: Code.INT_OR, Code.INT_LEFT: Code.INT_RIGHT,
    Code.INT_RIGHT: Code.INT_SRIGHT, Code.INT_SRIGHT: Code.INT_RIGHT, Code.INT_EQUAL: Code.INT_NOTEQUAL,
    Code.INT_NOTEQUAL: Code.INT_EQUAL, Code.INT_LESS: Code.INT_SLESS, Code.INT_SLESS: Code.INT_LESS,
    Code.INT_CARRY: Code.INT_SCARRY, Code.INT_SCARRY: Code.INT_CARRY, Code.INT_SBORROW: Code.INT_LESS,
    Code.INT_ZEXT: Code.INT_SEXT, Code.INT_SEXT: Code.INT_ZEXT, Code.BOOL_AND: Code.BOOL_OR,
    Code.BOOL_OR: Code.BOOL_AND, Code.INT_NEGATE: Code.INT_2COMP, Code.INT_2COMP: Code.INT_NEGATE,
    Code.POPCOUNT: Code.LZCOUNT,
}  # fmt: skip
"""Operation -> one that is easily taken for it."""

Change = Callable[[Insn], list[Insn]]


def _with(insn: Insn, ops: list[Op]) -> Insn:
    return Insn(insn.va, insn.size, insn.text, tuple(ops), insn.flow, insn.target, insn.raw)


def swapped(insn: Insn) -> list[Insn]:
    """One operation replaced by a similar one."""
    found = []
    for i, op in enumerate(insn.ops):
        if op.code in SWAPS:
            found.append(_with(insn, [*insn.ops[:i], Op(SWAPS[op.code], op.out, op.ins), *insn.ops[i + 1 :]]))
    return found


def dropped(insn: Insn) -> list[Insn]:
    """One operation that sets a register, or writes memory, left out; its place is kept for jumps."""
    nothing = Op(Code.COPY, reg("CS"), (reg("CS"),))
    found = []
    for i, op in enumerate(insn.ops):
        if op.code is Code.STORE or (op.out is not None and op.out.space is Space.REG):
            found.append(_with(insn, [*insn.ops[:i], nothing, *insn.ops[i + 1 :]]))
    return found


def halved(insn: Insn) -> list[Insn]:
    """The zero extension of a 32-bit result forgotten: one of only half of the register."""
    found = []
    for i, op in enumerate(insn.ops):
        if op.code is Code.INT_ZEXT and op.out is not None and op.out.space is Space.REG and op.out.size == 8:
            half = Op(Code.COPY, reg_low(op), op.ins)
            found.append(_with(insn, [*insn.ops[:i], half, *insn.ops[i + 1 :]]))
    return found


def reg_low(op: Op) -> object:
    """The low part of the register that ``op`` writes."""
    assert op.out is not None
    return type(op.out)(op.out.space, op.out.off, op.ins[0].size)


def next_one(insn: Insn) -> list[Insn]:
    """An instruction that goes to another place."""
    if insn.flow is not Flow.FALL or any(o.code is Code.CBRANCH for o in insn.ops):
        return []
    return [_with(insn, [*insn.ops, Op(Code.BRANCH, None, (const(insn.next + 1),))])]


def caught(p_insn: Insn, wrong: Insn) -> bool:
    random = Random(5)
    p, insn = PLACES.get(p_insn.raw)
    assert insn == p_insn
    return any(disagreements(p, wrong, *random_choice(random)) for _ in range(60))


def without_effect(insn: Insn, index: int) -> bool:
    """Whether nothing reads what operation ``index`` computes, or only what is undefined comes of it."""
    return index >= len(insn.ops)


@pytest.mark.parametrize("line", SPECIMENS)
def test_wrong_meanings_are_caught(line: str) -> None:
    _, insn = PLACES.get(assemble([line])[0])
    mutants = [m for change in (swapped, dropped, halved, next_one) for m in change(insn)]
    assert mutants, insn.ops
    missed = []
    for mutant in mutants:
        if not caught(insn, mutant):
            missed += [f"{a.code.name} {a.out} -> {b.code.name}" for a, b in zip(insn.ops, mutant.ops, strict=False)
                       if a != b]  # fmt: skip
    assert not missed, missed
