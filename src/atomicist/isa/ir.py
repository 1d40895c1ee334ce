# SPDX-License-Identifier: GPL-2.0-only
"""The intermediate form in which the meaning of everything is stated, once.

An instruction is a short list of operations on varnodes (typed places: a
constant, part of a register, an instruction-local temporary), after Ghidra's
p-code, which supplies the ordinary instructions.  What p-code leaves opaque -
system instructions and the delivery of events - is written in the same
operations by `microcode`.  To p-code's own we add only what they need:

=========  ==========================================================================
JUMP       go to operation number ``ins[0]`` of the same instruction
CJUMP      the same if ``ins[1]`` is not zero
FAULT      if ``ins[2]``: raise vector ``ins[0]`` with error code ``ins[1]``;
           registers and memory changed so far by the instruction stay changed,
           so microcode checks before it writes
UNKNOWN    if ``ins[0]``: the instruction meets something the model does not know;
           ``text`` names it.  Never skipped: it ends the run as a finding
PREDICTED  if ``ins[0]``: a branch may go where user mode trained it to; ``text``
           says which kind. It ends the run as a finding
NOTE       tell the observer that an architectural milestone was passed (``text``)
=========  ==========================================================================

LOAD and STORE carry an `Access` in their last input, so that a refused access
can be named: a stack push, a GS-relative reference, a processor's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from atomicist.isa.registers import REGISTERS


class Space(IntEnum):
    """Where a varnode lives."""

    CONST = 0
    REG = 1
    TMP = 2


class Access(IntEnum):
    """Why memory is touched."""

    DATA = 0
    STACK = 1
    GS = 2
    SYSTEM = 3
    """By the processor itself: descriptor tables, the TSS, an event's frame."""


class Note(IntEnum):
    """Milestones an observer is told of."""

    IRET = 1
    SYSRET = 2
    WRITE_CR3 = 3


class Code(Enum):
    """Operations; values are p-code's names where p-code has the operation."""

    COPY = "COPY"
    LOAD = "LOAD"
    STORE = "STORE"
    BRANCH = "BRANCH"
    CBRANCH = "CBRANCH"
    BRANCHIND = "BRANCHIND"
    JUMP = "JUMP"
    CJUMP = "CJUMP"
    FAULT = "FAULT"
    UNKNOWN = "UNKNOWN"
    NOTE = "NOTE"
    PREDICTED = "PREDICTED"
    INT_ADD = "INT_ADD"
    INT_SUB = "INT_SUB"
    INT_MULT = "INT_MULT"
    INT_AND = "INT_AND"
    INT_OR = "INT_OR"
    INT_XOR = "INT_XOR"
    INT_LEFT = "INT_LEFT"
    INT_RIGHT = "INT_RIGHT"
    INT_SRIGHT = "INT_SRIGHT"
    INT_EQUAL = "INT_EQUAL"
    INT_NOTEQUAL = "INT_NOTEQUAL"
    INT_LESS = "INT_LESS"
    INT_LESSEQUAL = "INT_LESSEQUAL"
    INT_SLESS = "INT_SLESS"
    INT_SLESSEQUAL = "INT_SLESSEQUAL"
    INT_CARRY = "INT_CARRY"
    INT_SCARRY = "INT_SCARRY"
    INT_SBORROW = "INT_SBORROW"
    INT_ZEXT = "INT_ZEXT"
    INT_SEXT = "INT_SEXT"
    INT_NEGATE = "INT_NEGATE"
    INT_2COMP = "INT_2COMP"
    BOOL_NEGATE = "BOOL_NEGATE"
    BOOL_AND = "BOOL_AND"
    BOOL_OR = "BOOL_OR"
    BOOL_XOR = "BOOL_XOR"
    PIECE = "PIECE"
    SUBPIECE = "SUBPIECE"
    POPCOUNT = "POPCOUNT"
    LZCOUNT = "LZCOUNT"


EFFECTS: Final = frozenset(
    {
        Code.LOAD, Code.STORE, Code.BRANCH, Code.CBRANCH, Code.BRANCHIND, Code.JUMP, Code.CJUMP,
        Code.FAULT, Code.UNKNOWN, Code.NOTE, Code.PREDICTED,
    }
)  # fmt: skip
"""Operations that are more than a function from inputs to an output."""


@dataclass(frozen=True, slots=True)
class Var:
    """A place of ``size`` bytes: ``off`` is the value (CONST), the byte offset
    in the register file (REG), or a temporary's number (TMP)."""

    space: Space
    off: int
    size: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: ``out`` := ``code``(``ins``)."""

    code: Code
    out: Var | None
    ins: tuple[Var, ...]
    text: str = ""


class Flow(Enum):
    """How an instruction leaves; what static and RETBLEED checks ask of it."""

    FALL = "falls through"
    JUMP = "jmp"
    BRANCH = "jcc"
    CALL = "call"
    RET = "ret"
    INDIRECT = "indirect jmp"
    INDIRECT_CALL = "indirect call"
    IRET = "iret"
    SYSRET = "sysret"
    STOP = "no successor"


@dataclass(frozen=True, slots=True)
class Insn:
    """One lifted instruction at ``va``; ``target`` is its direct branch target,
    ``text`` its disassembly, ``raw`` its bytes."""

    va: int
    size: int
    text: str
    ops: tuple[Op, ...]
    flow: Flow
    target: int | None
    raw: bytes

    @property
    def next(self) -> int:
        """Address of the instruction behind this one."""
        return self.va + self.size


def const(value: int, size: int = 8) -> Var:
    """The constant ``value``, ``size`` bytes wide."""
    return Var(Space.CONST, value & ((1 << (8 * size)) - 1), size)


def reg(name: str, size: int = 0) -> Var:
    """Register ``name`` (or its low ``size`` bytes). KeyError if unknown."""
    r = REGISTERS[name]
    return Var(Space.REG, r.offset, size or r.size)
