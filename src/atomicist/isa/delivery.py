# SPDX-License-Identifier: GPL-2.0-only
"""Microcode of event delivery through a 64-bit IDT gate.

SDM vol. 3, 6.14 (64-bit mode interrupt and exception handling), APM vol. 2,
8.9 (long-mode interrupt control transfers).  On delivery the processor

1. chooses the stack: the gate's IST slot of the TSS, else RSP0 of the TSS on a
   change to ring 0, else the current RSP;
2. aligns it down to 16 bytes (6.14.2) and pushes SS, RSP, RFLAGS, CS, RIP and,
   for some vectors, an error code;
3. sets SS to NULL (RPL = new CPL) if the privilege changed (6.14.4);
4. clears TF, NT, RF, VM and, for an interrupt gate, IF (6.12.1.2; 6.14).  AC and DF
   are *not* cleared;
5. ends the shadow of MOV SS, which covers one instruction and no handler (6.8.3).

Particular to a vector: NMI blocks NMIs until the next IRET (6.7.1); #MC sets
MCG_STATUS.MCIP (vol. 3, 15.3.1.2); a fault-class exception pushes RF = 1
(vol. 3, 17.3.1.1), of ours only #VC (APM vol. 2, 15.35.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atomicist.isa.builder import Builder, Label, pack_rflags
from atomicist.isa.ir import Access, Code, Op, Space, Var, const, reg

KERNEL_CS: Final = 0x10
KERNEL_DS: Final = 0x18
USER_CS: Final = 0x33
USER32_CS: Final = 0x23
USER_DS: Final = 0x2B
"""Linux's flat selectors (arch/x86/include/asm/segment.h); the only ones in the model."""

MCIP: Final = 4
"""Machine check in progress, bit 2 of IA32_MCG_STATUS (SDM vol. 3, 15.3.1.2)."""

TSS_RSP0: Final = 0x04
TSS_IST1: Final = 0x24
"""Offsets in the 64-bit TSS (SDM vol. 3, figure 7-11)."""


@dataclass(frozen=True, slots=True)
class Vector:
    """What the architecture says of an exception vector (SDM vol. 3, table 6-1)."""

    name: str
    number: int
    has_error_code: bool
    fault_class: bool


NMI: Final = Vector("NMI", 2, has_error_code=False, fault_class=False)
DB: Final = Vector("DB", 1, has_error_code=False, fault_class=False)
MC: Final = Vector("MC", 18, has_error_code=False, fault_class=False)
VC: Final = Vector("VC", 29, has_error_code=True, fault_class=True)
UD: Final = Vector("UD", 6, has_error_code=False, fault_class=True)
DF: Final = Vector("DF", 8, has_error_code=True, fault_class=False)
NP: Final = Vector("NP", 11, has_error_code=True, fault_class=True)
SS: Final = Vector("SS", 12, has_error_code=True, fault_class=True)
GP: Final = Vector("GP", 13, has_error_code=True, fault_class=True)
PF: Final = Vector("PF", 14, has_error_code=True, fault_class=True)

VECTORS: Final = {v.name: v for v in (NMI, DB, MC, VC, UD, DF, NP, SS, GP, PF)}
BY_NUMBER: Final = {v.number: v for v in VECTORS.values()}


@dataclass(frozen=True, slots=True)
class Gate:
    """An interrupt gate of the IDT: ``vector``, handler address ``offset``,
    ``ist`` slot 1-7 or 0 for none."""

    vector: Vector
    offset: int
    ist: int


ERROR_CODE: Final = Var(Space.TMP, 0, 8)
"""The temporary in which the engine passes the error code to `deliver`."""


def deliver(gate: Gate) -> tuple[Op, ...]:
    """The IR of delivering an event through ``gate``; the error code, if the
    vector has one, is taken from `ERROR_CODE`."""
    b = Builder()
    vector = gate.vector
    from_user = b.ne(b.and_(reg("CS"), 3), 0)
    old_rsp = b.op(Code.COPY, 8, reg("RSP"))
    if gate.ist:
        top = b.load(b.add(reg("TR_BASE"), TSS_IST1 + 8 * (gate.ist - 1)), access=Access.SYSTEM)
    else:
        top = b.tmp()
        kernel, chosen = Label(), Label()
        b.skip_if(b.not_(from_user), kernel)
        b.copy(top, b.load(b.add(reg("TR_BASE"), TSS_RSP0), access=Access.SYSTEM))
        b.skip(chosen)
        b.place(kernel)
        b.copy(top, old_rsp)
        b.place(chosen)
    sp = b.and_(top, ~0xF)
    if vector.fault_class:
        b.set("RF", const(1, 1))
    words = [b.fit(reg("SS"), 8), old_rsp, pack_rflags(b), b.fit(reg("CS"), 8), reg("RIP")]
    if vector.has_error_code:
        words.append(ERROR_CODE)
    for word in words:
        sp = b.add(sp, -8)
        b.store(sp, word, Access.SYSTEM)
    b.set("RSP", sp)
    same = Label()
    b.skip_if(b.not_(from_user), same)
    b.set("SS", const(0, 2))
    b.place(same)
    b.set("CS", const(KERNEL_CS, 2))
    for flag in ("TF", "NT", "RF", "VM", "IF"):
        b.set(flag, const(0, 1))
    b.set("SHADOW", const(0, 8))
    if vector == NMI:
        b.set("NMI_BLOCKED", const(1, 8))
    if vector == MC:
        b.set("MCG_STATUS", b.or_(reg("MCG_STATUS"), const(MCIP, 8)))
    b.set("RIP", const(gate.offset, 8))
    b.goto(const(gate.offset, 8))
    return b.done()
