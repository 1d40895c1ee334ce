# SPDX-License-Identifier: GPL-2.0-only
"""The lifter has an answer to all bytes; where it claims to know, the processor agrees."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomicist.crosscheck.engines import may_run_on_host
from atomicist.crosscheck.generate import random_choice
from atomicist.crosscheck.states import CODE, decoder, make_state, prepare
from atomicist.crosscheck.states import SLOT as STEP
from atomicist.isa.arithmetic import PURE
from atomicist.isa.ir import EFFECTS, Code, Flow, Insn, Op, Space
from atomicist.isa.lift import MAX_INSN
from atomicist.isa.registers import SLOT, SLOTS
from atomicist.machine.memory import canonical
from tests.isa.compare import MANY, difference, examples, generator, is_unknown
from tests.isa.engines import host, lifter, reference
from tests.isa.forms import encodings

ADDRESSES = (0, CODE, 0xFFFF_FFFF_8100_0FF8, (1 << 64) - 8)
ARITY = {
    Code.LOAD: 2, Code.STORE: 3, Code.BRANCH: 1, Code.CBRANCH: 2, Code.BRANCHIND: 1, Code.JUMP: 1,
    Code.CJUMP: 2,
    Code.FAULT: 3, Code.UNKNOWN: 1, Code.NOTE: 1,
}  # fmt: skip
ONE = {
    Code.COPY, Code.INT_ZEXT, Code.INT_SEXT, Code.INT_NEGATE, Code.INT_2COMP, Code.BOOL_NEGATE, Code.POPCOUNT,
    Code.LZCOUNT,
}  # fmt: skip
PREFIXES = bytes.fromhex("66 67 f2 f3 f0 2e 36 3e 26 64 65 40 41 42 44 48 49 4c 4d 4f")


def malformed(insn: Insn) -> list[str]:
    """What an engine could stumble over in the operations of ``insn``."""
    written: set[int] = set()
    words = []
    for i, op in enumerate(insn.ops):
        words += [f"{i}: {word}" for word in _malformed(op, written, len(insn.ops))]
        if op.out is not None and op.out.space is Space.TMP:
            written.add(op.out.off)
    return words


def _malformed(op: Op, written: set[int], count: int) -> list[str]:
    words = []
    arity = ARITY.get(op.code, 1 if op.code in ONE else 2)
    if len(op.ins) != arity:
        words.append(f"{op.code} with {len(op.ins)} inputs")
    if (op.out is None) != (op.code in EFFECTS and op.code is not Code.LOAD):
        words.append(f"{op.code} with or without output")
    if op.code not in EFFECTS and op.code not in PURE:
        words.append(f"{op.code} has no meaning")
    for v in (*op.ins, *((op.out,) if op.out else ())):
        if v.size not in (1, 2, 4, 8, 16):
            words.append(f"{v.size} bytes")
        if v.space is Space.REG and (v.off % SLOT + v.size > SLOT or not 0 <= v.off < SLOT * SLOTS):
            words.append(f"register at {v.off}")
        if v.space is Space.CONST and v.off >> 8 * v.size:
            words.append(f"constant {v.off:#x} in {v.size} bytes")
    if any(v.space is Space.TMP and v.off not in written for v in op.ins):
        words.append("temporary read before it is written")
    if op.out is not None and op.out.space is Space.CONST:
        words.append("writes a constant")
    if op.code in (Code.JUMP, Code.CJUMP) and not 0 <= op.ins[0].off <= count:
        words.append("jump outside")
    if op.code in (Code.BRANCH, Code.CBRANCH) and op.ins[0].space is not Space.CONST:
        words.append("direct branch to a place that is not constant")
    if op.code is Code.UNKNOWN and not op.text:
        words.append("unknown without a name")
    return words


@examples(1500)
@given(code=st.binary(min_size=1, max_size=20), va=st.sampled_from(ADDRESSES))
def test_any_bytes(code: bytes, va: int) -> None:
    insn = lifter().lift(va, code)
    assert 1 <= insn.size <= MAX_INSN
    assert insn.raw == code[: insn.size]
    assert insn.ops or insn.flow is Flow.FALL
    assert not malformed(insn), (code.hex(), insn)


@pytest.mark.parametrize(
    "code", [b"\x0f", b"\x66" * 15, b"\x66" * 20, b"\xf0\x0f", b"\xc5\xf8", b"\x62", b"\x48"]
)
def test_cut_short(code: bytes) -> None:
    insn = lifter().lift(CODE, code)
    assert is_unknown(insn)
    assert "no instruction" in insn.ops[0].text
    assert (insn.flow, insn.size) == (Flow.STOP, 1)


def test_every_form_is_well_formed() -> None:
    for group in encodings().values():
        for raw in group:
            assert not malformed(lifter().lift(CODE, raw)), raw.hex()


def mutants(random: Random, count: int) -> list[bytes]:
    """Encodings with prefixes put before them and bits turned, which are still one instruction."""
    codes = [raw for group in encodings().values() for raw in group]
    found: list[bytes] = []
    while len(found) < count:
        raw = bytearray(random.choice(codes))
        for _ in range(random.randrange(3)):
            raw[:0] = bytes([random.choice(PREFIXES)])
        if random.random() < 0.7:
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
        insn = next(decoder().disasm(bytes(raw).ljust(MAX_INSN, b"\x90")[:MAX_INSN], CODE, 1), None)
        if insn is not None and insn.size <= MAX_INSN:
            found.append(bytes(insn.bytes))
    return found


def test_mutants_on_the_processor() -> None:
    """Odd encodings - prefixes without meaning, or with a surprising one - are refused or right."""
    processor = host()
    random = generator(17)
    wrong, compared = [], 0
    for n, raw in enumerate(mutants(random, 2500 * max(1, MANY))):
        p = prepare(raw, CODE + 0x80000 + STEP * (n % 4096))
        insn = lifter().lift(p.va, p.raw)
        if is_unknown(insn) or not may_run_on_host(p):
            continue
        state = make_state(p, *random_choice(random))
        if not canonical(state.registers["GSBASE"]):
            continue
        ours, theirs = reference(state, insn), processor.run(p, state)
        compared += 1
        words = difference(p, state, ours, theirs)
        if words:
            wrong.append(f"{p.text}: {words}")
    assert not wrong, f"{len(wrong)} of {compared}:\n" + "\n".join(wrong[:40])
    assert compared > 1000 * max(1, MANY)
