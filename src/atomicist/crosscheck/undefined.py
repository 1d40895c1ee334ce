# SPDX-License-Identifier: GPL-2.0-only
"""Flags and results that the manuals leave undefined, so that engines may differ in them.

Sections are of the Intel SDM, vol. 2; the page of each instruction says it under "Flags Affected".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from capstone import x86_const as x86

from atomicist.crosscheck.states import ARENA, Prepared, State, effective

ALL: Final = frozenset({"CF", "PF", "AF", "ZF", "SF", "OF"})


def _count(p: Prepared, state: State) -> int:
    """The masked count of a shift or rotation; an operand that is left out is one."""
    last = p.operands[-1]
    if len(p.operands) == (2 if p.mnemonic in ("shld", "shrd") else 1):
        raw = 1
    else:
        raw = last.immediate if last.kind == x86.X86_OP_IMM else state.registers[last.register]
    return raw & (0x3F if p.operands[0].size == 8 else 0x1F)


def _width(p: Prepared) -> int:
    return 8 * p.operands[0].size


def _source_is_zero(p: Prepared, state: State) -> bool:
    source = p.operands[1]
    if source.kind == x86.X86_OP_REG:
        value = state.registers[source.register]
    else:
        at = effective(p, p.memory[0], state.registers) - ARENA
        value = int.from_bytes(state.arena[at : at + 8], "little")
    return not value & (1 << 8 * source.size) - 1


Condition = Callable[[Prepared, State], bool]


def _always(_p: Prepared, _s: State) -> bool:
    return True


def _count_at_least(least: int) -> Condition:
    return lambda p, s: _count(p, s) >= least


@dataclass(frozen=True)
class Rule:
    """``names`` (flags, or "result": the destination) are undefined for ``mnemonics`` ``when`` it says so."""

    mnemonics: frozenset[str]
    names: frozenset[str]
    section: str
    when: Condition = _always


def _rule(mnemonics: str, names: str, section: str, when: Condition = _always) -> Rule:
    return Rule(frozenset(mnemonics.split()), frozenset(names.split()), section, when)


_SHIFTS = "vol. 2B SAL/SAR/SHL/SHR, SHLD, SHRD: "

RULES: Final = (
    _rule("and or xor test", "AF", "vol. 2A AND; vol. 2B OR, TEST; vol. 2D XOR: AF is undefined"),
    _rule("bt bts btr btc", "OF SF AF PF", "vol. 2A BT ff.: OF, SF, AF, PF are undefined, ZF is unaffected"),
    _rule("mul imul", "SF ZF AF PF", "vol. 2A IMUL, vol. 2B MUL: SF, ZF, AF, PF are undefined"),
    _rule("bsf bsr", "CF OF SF AF PF", "vol. 2A BSF, BSR: CF, OF, SF, AF, PF are undefined"),
    _rule("bsf bsr", "result", "vol. 2A BSF, BSR: the destination, for a source of zero", _source_is_zero),
    _rule("tzcnt", "OF SF PF AF", "vol. 2B TZCNT: OF, SF, PF, AF are undefined"),
    _rule("shl shr sar shld shrd", "AF", _SHIFTS + "AF, for a count not zero", _count_at_least(1)),
    _rule("shl shr sar shld shrd", "OF", _SHIFTS + "OF, for a count above one", _count_at_least(2)),
    _rule("rol ror", "OF", "vol. 2B RCL/RCR/ROL/ROR: OF, for a count above one", _count_at_least(2)),
    _rule("shl shr", "CF", _SHIFTS + "CF, for a count of the operand's size or more",
          lambda p, s: _count(p, s) >= _width(p)),
    _rule("shld shrd", "CF OF SF ZF AF PF result", _SHIFTS + "all, for a count above the operand's size",
          lambda p, s: _count(p, s) > _width(p)),
)  # fmt: skip


def needs_memory(p: Prepared) -> bool:
    """Whether it depends on memory what `undefined` says."""
    return p.mnemonic in ("bsf", "bsr") and bool(p.memory)


def undefined(p: Prepared, state: State) -> frozenset[str]:
    """What the instruction leaves undefined in ``state``: registers, flags, "memory"."""
    stem = p.mnemonic.rpartition(" ")[2]
    found: set[str] = set()
    for rule in RULES:
        if stem in rule.mnemonics and rule.when(p, state):
            found |= rule.names
    if "result" in found:
        found.discard("result")
        found.add(p.operands[0].register or "memory")
    return frozenset(found)
