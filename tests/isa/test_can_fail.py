# SPDX-License-Identifier: GPL-2.0-only
"""The comparison is worth something only if it notices: meanings made wrong on purpose are caught."""

from dataclasses import replace

import pytest

from atomicist.crosscheck.generate import random_choice
from atomicist.isa.ir import Access, Code, Insn, Op, Space, Var, const, reg
from tests.isa.compare import disagreements, generator
from tests.isa.engines import PLACES
from tests.isa.forms import assemble

SPECIMENS = (
    "add rax, rbx", "adc bl, al", "sub r9, [rsp+8]", "sbb rcx, -1", "cmp qword ptr [rbx], rax",
    "and rax, 0xfff",
    "xor edi, edi", "test cl, 3", "dec dword ptr [rbx]", "neg rcx", "shl rax, 5", "shr rdx, 12",
    "sar r11, 16",
    "imul rax, rbx, 0xb0", "bt r14, 12", "btr qword ptr gs:[0x1008], rax", "movzx ecx, byte ptr [rsi]",
    "mov rax, [rbp-8]", "mov [rdx+0x50], r10", "lea rsi, [r10+r9*4+1]", "push [rdi+0x30]", "pop [rdi]",
    "call .+0x40",
    "ret 8", "ja .+0x10", "cmovbe rax, rbp", "cmovb eax, ebp", "setae r9b", "rep movsq", "xchg rax, [rbx]",
    "lahf",
)  # fmt: skip

SWAPS = {
    Code.INT_ADD: Code.INT_SUB, Code.INT_SUB: Code.INT_ADD, Code.INT_MULT: Code.INT_ADD,
    Code.INT_AND: Code.INT_OR,
    Code.INT_OR: Code.INT_AND, Code.INT_XOR: Code.INT_OR, Code.INT_LEFT: Code.INT_RIGHT,
    Code.INT_RIGHT: Code.INT_LEFT, Code.INT_SRIGHT: Code.INT_RIGHT, Code.INT_EQUAL: Code.INT_NOTEQUAL,
    Code.INT_NOTEQUAL: Code.INT_EQUAL, Code.INT_LESS: Code.INT_SLESS, Code.INT_SLESS: Code.INT_LESS,
    Code.INT_CARRY: Code.INT_SCARRY, Code.INT_SCARRY: Code.INT_CARRY, Code.INT_SBORROW: Code.INT_LESS,
    Code.INT_SEXT: Code.INT_ZEXT, Code.BOOL_AND: Code.BOOL_OR, Code.BOOL_OR: Code.BOOL_AND,
}  # fmt: skip
"""Operation -> one that is easily taken for it."""

NOTHING = Op(Code.COPY, reg("CS"), (reg("CS"),))
STATES = 24


def with_op(insn: Insn, index: int, op: Op) -> Insn:
    """``insn`` with one operation replaced."""
    return replace(insn, ops=(*insn.ops[:index], op, *insn.ops[index + 1 :]))


def mutants(insn: Insn) -> list[Insn]:
    """``insn`` with one operation taken for a similar one, or one effect left out."""
    found = []
    for i, op in enumerate(insn.ops):
        if op.code in SWAPS:
            found.append(with_op(insn, i, Op(SWAPS[op.code], op.out, op.ins)))
        if op.code is Code.STORE or (op.out is not None and op.out.space is Space.REG):
            found.append(with_op(insn, i, NOTHING))
    return found


def caught(right: Insn, wrong: Insn) -> bool:
    """Whether a few states show that ``wrong`` is."""
    random = generator(5)
    p, insn = PLACES.get(right.raw)
    assert insn == right
    return any(disagreements(p, wrong, *random_choice(random)) for _ in range(STATES))


def lifted(line: str) -> Insn:
    return PLACES.get(assemble([line])[0])[1]


def test_most_wrong_meanings_are_caught() -> None:
    """Not all can be: some change only what is undefined, or a value that has one bit."""
    score: dict[bool, list[str]] = {True: [], False: []}
    for line in SPECIMENS:
        insn = lifted(line)
        for mutant in mutants(insn):
            pairs = zip(insn.ops, mutant.ops, strict=True)
            change = next(f"{line}: {a.code.name} -> {b.code.name}" for a, b in pairs if a != b)
            score[caught(insn, mutant)].append(change)
    assert len(score[True]) > 200
    assert len(score[False]) < 0.2 * len(score[True]), score[False]


@pytest.mark.parametrize("flag", ["CF", "PF", "AF", "ZF", "SF", "OF"])
@pytest.mark.parametrize("line", ["add rax, rbx", "sbb cl, dl", "cmp eax, [rsi]", "neg word ptr [rbx]"])
def test_a_flag_that_is_not_set_is_caught(line: str, flag: str) -> None:
    insn = lifted(line)
    kept = tuple(NOTHING if op.out == reg(flag) else op for op in insn.ops)
    assert kept != insn.ops
    assert caught(insn, replace(insn, ops=kept))


@pytest.mark.parametrize(
    "line", ["mov eax, ebx", "add r8d, 1", "movzx ecx, byte ptr [rsi]", "cmovb eax, ebp", "lodsd"]
)
def test_a_register_half_written_is_caught(line: str) -> None:
    insn = lifted(line)
    halves = {
        i: Op(Code.SUBPIECE, Var(Space.REG, op.out.off, 4), (op.ins[0], const(0, 4)))
        for i, op in enumerate(insn.ops)
        if op.code is Code.INT_ZEXT and op.out is not None and op.out.space is Space.REG and op.out.size == 8
    }
    assert halves
    assert caught(insn, replace(insn, ops=tuple(halves.get(i, op) for i, op in enumerate(insn.ops))))


def test_a_store_to_another_place_is_caught() -> None:
    insn = lifted("push rbx")
    more = Op(Code.STORE, None, (reg("RSP"), const(0, 1), const(Access.STACK, 1)))
    assert caught(insn, replace(insn, ops=(*insn.ops, more)))


@pytest.mark.parametrize("name", ["R15", "RSP", "DF"])
def test_a_register_that_is_not_its_own_is_caught(name: str) -> None:
    insn = lifted("add rax, rbx")
    place = reg(name)
    changed = Op(Code.INT_XOR, place, (place, const(1, place.size)))
    assert caught(insn, replace(insn, ops=(*insn.ops, changed)))


@pytest.mark.parametrize("line", ["nop", "jmp .+0x40", "ja .+0x40"])
def test_going_elsewhere_is_caught(line: str) -> None:
    insn = lifted(line)
    gone = Op(Code.BRANCH, None, (const(insn.next + 1),))
    assert caught(insn, replace(insn, ops=(gone, *insn.ops)))
