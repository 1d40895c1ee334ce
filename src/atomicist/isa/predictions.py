# SPDX-License-Identifier: GPL-2.0-only
"""Whose branch predictions are in force, as microcode: what RETBLEED makes of CALL and RET.

On processors that RETBLEED concerns (CVE-2022-29900, -29901) user mode can train where
the kernel's RET or indirect branch is predicted to go.  The kernel has to do something
about it in each entry, before the first of them (Linux nospec-branch.h: UNTRAIN_RET,
IBRS_ENTER).  The hidden register EXPOSED says for what it has not been done, or may not have been:

bit 0      everything
bit 1 + i  the text of event i, whose one RET an early untraining of its own may cover

=======================================  ==============================================
user mode, the SYSCALL gaps              all bits, in the start contexts: a run ends
                                         where user mode goes on
``ibrs``: WRMSR SPEC_CTRL                IBRS set: none; clear: all. A SPEC_CTRL that has
                                         IBRS set from before the entry does not do (SDM
                                         vol. 4, table 2-2; Intel's "Speculative
                                         Execution Side Channel Mitigations", 3.1)
any: WRMSR PRED_CMD with IBPB            none
``unret``: the untraining code           none; an early one, all but its own text's bit
=======================================  ==============================================

A nested entry inherits EXPOSED, and leaves it to whom it interrupted, as hardware would.
With no mitigation needed nothing is inserted, and EXPOSED is 0 everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from atomicist.isa.builder import Builder, Label
from atomicist.isa.ir import Code, Insn, Op, Space, Var, const, reg

MITIGATIONS: Final = ("none", "ibrs", "unret", "ibpb")
"""What a processor needs before the first RET: nothing, IBRS, untraining, a barrier."""

EVERYTHING: Final = 1
EXPOSED_ALL: Final = 0b11111
"""`EVERYTHING`, and the text of each of the four events."""

SPEC_CTRL: Final = 0x48
PRED_CMD: Final = 0x49
IBRS: Final = 1
"""Bit 0 of SPEC_CTRL; bit 0 of PRED_CMD is IBPB (SDM vol. 4, table 2-2)."""


def own_text(event: int) -> int:
    """The bit of EXPOSED for the text of ``event``."""
    return EVERYTHING << 1 + event


EXPOSED_VALUES: Final = (0, EXPOSED_ALL, *(EXPOSED_ALL & ~own_text(i) for i in range(4)))
"""All values of EXPOSED: there are no other ways to set it."""


def checked(insn: Insn, bit: int) -> Insn:
    """``insn``, a branch that is predicted: a finding while ``bit`` is exposed."""
    b = Builder()
    b.predicted_if(b.ne(b.and_(reg("EXPOSED"), bit), 0), insn.flow.value)
    return _before(b.done(), insn)


def untraining(insn: Insn, bits: int) -> Insn:
    """``insn``, behind which ``bits`` are no longer exposed, and all others are said to be.

    A constant rests on nothing: with what was exposed before, certificates would multiply by
    each subset of the bits. To forget that others were safe can only find too much."""
    b = Builder()
    b.set("EXPOSED", const(EXPOSED_ALL & ~bits, 8))
    return _before(b.done(), insn)


def msr_write(insn: Insn, mitigation: str) -> Insn:
    """``insn``, a WRMSR, with what it does to EXPOSED."""
    b = Builder(insn.ops)
    low = b.and_(reg("RAX"), IBRS)
    number = reg("RCX", 4)
    done, other = Label(), Label()
    if mitigation == "ibrs":
        b.skip_if(b.ne(number, SPEC_CTRL), other)
        b.set("EXPOSED", b.and_(b.add(low, -1), EXPOSED_ALL))
        b.skip(done)
        b.place(other)
    b.skip_if(b.ne(number, PRED_CMD), done)
    b.skip_if(b.eq(low, 0), done)
    b.set("EXPOSED", const(0, 8))
    b.place(done)
    return replace(insn, ops=b.done())


def _before(ops: tuple[Op, ...], insn: Insn) -> Insn:
    """``insn`` with ``ops`` in front, whose temporaries are numbered above its own."""
    above = 1 + max((v.off for op in insn.ops for v in _temps(op)), default=0)
    own = tuple(_moved(op, above) for op in ops)
    behind = tuple(
        replace(op, ins=(const(op.ins[0].off + len(own), 4), *op.ins[1:]))
        if op.code in (Code.JUMP, Code.CJUMP)
        else op
        for op in insn.ops
    )
    return replace(insn, ops=own + behind)


def _temps(op: Op) -> list[Var]:
    return [v for v in (*op.ins, op.out) if v is not None and v.space is Space.TMP]


def _moved(op: Op, by: int) -> Op:
    def moved(v: Var) -> Var:
        return replace(v, off=v.off + by) if v.space is Space.TMP else v

    out = None if op.out is None else moved(op.out)
    return replace(op, out=out, ins=tuple(moved(v) for v in op.ins))
