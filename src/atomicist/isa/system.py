# SPDX-License-Identifier: GPL-2.0-only
"""Microcode of the system instructions that p-code leaves opaque or gets wrong.

One function an instruction, registered in `SYSTEM` under capstone's mnemonic.
Section numbers are the Intel SDM's (vol. 2 for instructions) unless APM is
named.  Approximations, also listed in the README: only Linux's flat
selectors exist; IRET to ring 3 does not null DS/ES/FS/GS; the TLB is not
modelled, so writing CR3 takes effect at once; shadow stacks are off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from atomicist.isa.builder import Builder, Label, pack_rflags, unpack_rflags
from atomicist.isa.delivery import GP, KERNEL_CS, KERNEL_DS, UD, USER32_CS, USER_CS, USER_DS
from atomicist.isa.ir import Access, Code, Flow, Note, Op, Var, const, reg
from atomicist.isa.operands import Operands
from atomicist.isa.registers import GPRS

CR4_FSGSBASE: Final = 1 << 16
CR3_NOFLUSH: Final = 1 << 63
CR3_RESERVED: Final = 0x7FF0_0000_0000_0000
CPUNODE_SELECTOR: Final = 0x7B
"""Linux's __CPUNODE_SEG: a descriptor whose limit holds the CPU number."""

MSRS: Final = {
    0xC000_0100: "FSBASE",
    0xC000_0101: "GSBASE",
    0xC000_0102: "KERNEL_GSBASE",
    0x48: "SPEC_CTRL",
    0x17A: "MCG_STATUS",
    0xC000_0103: "TSC_AUX",
}
"""MSR number -> register (SDM vol. 4, tables 2-2). All others are unknown."""

COMMANDS: Final = {0x49: "IA32_PRED_CMD", 0x10B: "IA32_FLUSH_CMD"}
"""Write-only MSRs without a state of their own (SDM vol. 4, table 2-2)."""

_SHADOW_ONE: Final = 2
"""SHADOW counts down at each boundary: set to 2, it covers the next instruction."""


Microcode = Callable[[Builder, Operands], None]


def _always() -> Var:
    return const(1, 1)


def _ring0_only(b: Builder, error: int = GP.number) -> None:
    b.fault_if(b.ne(b.and_(reg("CS"), 3), 0), error)


def iretq(b: Builder, _: Operands) -> None:
    """IRET, 64-bit operand size (vol. 2A; NMI unblocking vol. 3, 6.7.1: it
    happens even when the IRET faults).  A fault is raised with the state
    that IRET found, CPL 0 included."""
    b.unknown_if(b.ne(b.and_(reg("CS"), 3), 0), "iretq outside ring 0")
    b.set("NMI_BLOCKED", const(0, 8))
    b.fault_if(reg("NT"), GP.number)
    sp = reg("RSP")
    rip, cs, flags, rsp, ss = (b.load(b.add(sp, 8 * i), access=Access.STACK) for i in range(5))
    cs, ss = b.fit(cs, 2), b.fit(ss, 2)
    b.fault_if(b.none_of(cs, (KERNEL_CS, USER_CS, USER32_CS)), GP.number, b.and_(cs, 0xFFFC))
    # Tests are kept apart by branches, so that none depends on more values than it must.
    to_kernel, checked = Label(), Label()
    b.skip_if(b.eq(b.and_(cs, 3), 0), to_kernel)
    b.fault_if(b.ne(ss, USER_DS), GP.number, b.and_(ss, 0xFFFC))
    b.skip(checked)
    b.place(to_kernel)
    b.fault_if(b.none_of(ss, (0, KERNEL_DS)), GP.number, b.and_(ss, 0xFFFC))
    b.place(checked)
    b.fault_if(b.non_canonical(rip), GP.number)
    wide = Label()
    b.skip_if(b.ne(cs, USER32_CS), wide)
    b.fault_if(b.ne(b.shr(rip, 32), 0), GP.number)  # beyond the 4 GiB of a 32-bit segment
    b.place(wide)
    unpack_rflags(b, flags)
    b.set("VM", const(0, 1))
    b.set("CS", cs)
    b.set("SS", ss)
    b.set("RSP", rsp)
    b.set("RIP", rip)
    b.note(Note.IRET)
    b.goto(rip)


def sysretq(b: Builder, _: Operands) -> None:
    """SYSRET, 64-bit (vol. 2B).  Intel faults in ring 0 on a non-canonical RCX,
    with the user's RSP already loaded (CVE-2012-0217)."""
    _ring0_only(b)
    b.fault_if(b.non_canonical(reg("RCX")), GP.number)
    unpack_rflags(b, b.and_(reg("R11"), 0x3C7FD7))
    b.set("CS", const(USER_CS, 2))
    b.set("SS", const(USER_DS, 2))
    target = b.op(Code.COPY, 8, reg("RCX"))
    b.set("RIP", target)
    b.note(Note.SYSRET)
    b.goto(target)


def swapgs(b: Builder, _: Operands) -> None:
    """SWAPGS (vol. 2B): exchanges GS.base with IA32_KERNEL_GS_BASE."""
    _ring0_only(b)
    old = b.op(Code.COPY, 8, reg("GSBASE"))
    b.set("GSBASE", reg("KERNEL_GSBASE"))
    b.set("KERNEL_GSBASE", old)


def _base_access(name: str, write: bool) -> Microcode:
    def microcode(b: Builder, o: Operands) -> None:
        b.fault_if(b.eq(b.and_(reg("CR4"), CR4_FSGSBASE), 0), UD.number)
        operand = o.register(0)
        if operand is None:
            b.unknown_if(_always(), o.insn.mnemonic)
        elif write:
            value = b.fit(operand, 8)
            b.fault_if(b.non_canonical(value), GP.number)
            b.set(name, value)
        else:
            b.set(_wide(operand), b.fit(reg(name, operand.size), 8))

    microcode.__doc__ = f"{'WR' if write else 'RD'}{name} (vol. 2B)."
    return microcode


def _wide(operand: Var) -> str:
    return GPRS[operand.off // 8]


def rdmsr(b: Builder, _: Operands) -> None:
    """RDMSR (vol. 2B)."""
    _ring0_only(b)
    number = reg("RCX", 4)
    b.unknown_if(b.none_of(number, tuple(MSRS)), "rdmsr of an MSR that is not modelled")
    value = b.tmp()
    b.copy(value, const(0, 8))
    for msr, name in MSRS.items():
        other = Label()
        b.skip_if(b.ne(number, msr), other)
        b.copy(value, reg(name))
        b.place(other)
    b.set("RAX", b.and_(value, 0xFFFF_FFFF))
    b.set("RDX", b.shr(value, 32))


def wrmsr(b: Builder, _: Operands) -> None:
    """WRMSR (vol. 2B): #GP for a base that is not canonical, and for the reserved half of TSC_AUX
    (vol. 4, table 2-2)."""
    _ring0_only(b)
    number = reg("RCX", 4)
    known = (*MSRS, *COMMANDS)
    b.unknown_if(b.none_of(number, known), "wrmsr of an MSR that is not modelled")
    value = b.or_(b.fit(reg("RAX", 4), 8), b.shl(b.fit(reg("RDX", 4), 8), 32))
    for msr, name in MSRS.items():
        other = Label()
        b.skip_if(b.ne(number, msr), other)
        if name.endswith("BASE"):
            b.fault_if(b.non_canonical(value), GP.number)
        elif name == "TSC_AUX":
            b.fault_if(b.ne(b.shr(value, 32), 0), GP.number)
        b.set(name, value)
        b.place(other)


def mov_control(b: Builder, o: Operands) -> None:
    """MOV to and from control and debug registers (vol. 2B).  Bit 63 of a value
    for CR3 says "do not flush" and is not stored (vol. 3, 4.10.4.1)."""
    _ring0_only(b)
    target, source = o.register(0), o.register(1)
    if target is None or source is None:
        b.unknown_if(_always(), f"{o.insn.mnemonic} {o.insn.op_str}")
        return
    if target == reg("CR3"):
        b.fault_if(b.ne(b.and_(source, CR3_RESERVED), 0), GP.number)
        b.copy(target, b.and_(source, ~CR3_NOFLUSH))
        b.note(Note.WRITE_CR3)
    elif target in (reg("CR0"), reg("CR4")):
        b.unknown_if(b.ne(target, source), f"{o.insn.mnemonic} {o.insn.op_str}")
    else:
        b.copy(target, source)


def mov_segment(b: Builder, o: Operands) -> None:
    """MOV to SS (vol. 2B): holds off events for one instruction (vol. 3, 6.8.3).
    Other segment registers are not in the model."""
    target, source = o.register(0), o.register(1)
    if target != reg("SS") or source is None:
        b.unknown_if(_always(), f"{o.insn.mnemonic} {o.insn.op_str}")
        return
    value = b.fit(source, 2)
    b.unknown_if(b.none_of(value, (0, KERNEL_DS)), "mov to ss of an unknown selector")
    b.copy(target, value)
    # of several in sequence, only the first is sure to hold events off
    first = b.fit(b.eq(reg("SHADOW"), 0), 8)
    b.set("SHADOW", b.op(Code.INT_ADD, 8, reg("SHADOW"), b.shl(first, _SHADOW_ONE // 2)))


def mov_from_segment(b: Builder, o: Operands) -> None:
    """MOV from a segment register (vol. 2B): zero-extended into a register of 32 or
    64 bits; of memory, and of a 16-bit register, two bytes are written."""
    source = o.register(1)
    if source is None:
        b.unknown_if(_always(), f"{o.insn.mnemonic} {o.insn.op_str}")
        return
    target = o.register(0)
    if target is not None:
        whole = target if target.size == 2 else reg(_wide(target))
        b.copy(whole, b.fit(source, whole.size))
        return
    place = o.address(b, 0)
    if place is None:
        b.unknown_if(_always(), f"{o.insn.mnemonic} {o.insn.op_str}")
    else:
        b.store(place[0], source, place[1])


def lsl(b: Builder, o: Operands) -> None:
    """LSL (vol. 2A) of Linux's CPU-node segment, whose limit is the CPU number."""
    target, source = o.register(0), o.register(1)
    if target is None or source is None:
        b.unknown_if(_always(), f"{o.insn.mnemonic} {o.insn.op_str}")
        return
    b.unknown_if(b.ne(b.fit(source, 2), CPUNODE_SELECTOR), "lsl of an unknown selector")
    b.set(_wide(target), reg("CPUNODE"))
    b.set("ZF", const(1, 1))


def rdpid(b: Builder, o: Operands) -> None:
    """RDPID (vol. 2B): IA32_TSC_AUX.  Linux sets it to the CPU-node limit; while KVM runs a guest
    it is the guest's."""
    target = o.register(0)
    if target is None:
        b.unknown_if(_always(), o.insn.mnemonic)
    else:
        b.set(_wide(target), reg("TSC_AUX"))


def verw(b: Builder, o: Operands) -> None:
    """VERW (vol. 2B): ZF says whether the segment is writable; Linux runs it on
    its data segment, for its side effect on buffers."""
    place = o.address(b, 0)
    if place is None:
        b.unknown_if(_always(), f"{o.insn.mnemonic} {o.insn.op_str}")
        return
    selector = b.load(place[0], 2, place[1])
    b.unknown_if(b.ne(selector, KERNEL_DS), "verw of an unknown selector")
    b.set("ZF", const(1, 1))


def pushfq(b: Builder, _: Operands) -> None:
    """PUSHFQ (vol. 2B): VM and RF are pushed as zero."""
    sp = b.add(reg("RSP"), -8)
    b.store(sp, b.and_(pack_rflags(b), ~0x30000), Access.STACK)
    b.set("RSP", sp)


def popfq(b: Builder, _: Operands) -> None:
    """POPFQ at CPL 0 (vol. 2B): all but VM, VIF, VIP; RF is cleared."""
    b.unknown_if(b.ne(b.and_(reg("CS"), 3), 0), "popfq outside ring 0")
    value = b.load(reg("RSP"), 8, Access.STACK)
    b.set("RSP", b.add(reg("RSP"), 8))
    names = ("CF", "PF", "AF", "ZF", "SF", "TF", "IF", "DF", "OF", "IOPL", "NT", "AC", "ID")
    unpack_rflags(b, value, names)
    b.set("RF", const(0, 1))


def cli(b: Builder, _: Operands) -> None:
    """CLI at CPL 0 (vol. 2A)."""
    _ring0_only(b)
    b.set("IF", const(0, 1))


def sti(b: Builder, _: Operands) -> None:
    """STI at CPL 0 (vol. 2B): maskable interrupts wait one more instruction.  The
    shadow concerns none of the events of this model."""
    _ring0_only(b)
    b.set("IF", const(1, 1))


def ud2(b: Builder, _: Operands) -> None:
    """UD2 (vol. 2B)."""
    b.fault_if(_always(), UD.number)


def hlt(b: Builder, _: Operands) -> None:
    """HLT (vol. 2A) waits for an event; nothing in the model is to wait."""
    _ring0_only(b)
    b.unknown_if(_always(), "hlt: waiting for an interrupt is not modelled")


def invpcid(b: Builder, o: Operands) -> None:
    """INVPCID (vol. 2A): reads its descriptor of 16 bytes; the TLB is not modelled."""
    _ring0_only(b)
    place = o.address(b, 1)
    if place is None:
        b.unknown_if(_always(), f"{o.insn.mnemonic} {o.insn.op_str}")
        return
    b.load(place[0], 8, place[1])
    b.load(b.add(place[0], 8), 8, place[1])


def nothing(_b: Builder, _o: Operands) -> None:
    """Fences and hints: no effect on the state of the model."""


SYSTEM: Final[dict[str, tuple[Microcode, Flow]]] = {
    "iretq": (iretq, Flow.IRET),
    "sysretq": (sysretq, Flow.SYSRET),
    "swapgs": (swapgs, Flow.FALL),
    "rdgsbase": (_base_access("GSBASE", write=False), Flow.FALL),
    "wrgsbase": (_base_access("GSBASE", write=True), Flow.FALL),
    "rdfsbase": (_base_access("FSBASE", write=False), Flow.FALL),
    "wrfsbase": (_base_access("FSBASE", write=True), Flow.FALL),
    "rdmsr": (rdmsr, Flow.FALL),
    "wrmsr": (wrmsr, Flow.FALL),
    "mov.control": (mov_control, Flow.FALL),
    "mov.segment": (mov_segment, Flow.FALL),
    "mov.from_segment": (mov_from_segment, Flow.FALL),
    "lsl": (lsl, Flow.FALL),
    "rdpid": (rdpid, Flow.FALL),
    "verw": (verw, Flow.FALL),
    "pushfq": (pushfq, Flow.FALL),
    "popfq": (popfq, Flow.FALL),
    "cli": (cli, Flow.FALL),
    "sti": (sti, Flow.FALL),
    "ud2": (ud2, Flow.STOP),
    "hlt": (hlt, Flow.STOP),
    "invpcid": (invpcid, Flow.FALL),
    **dict.fromkeys(
        ("lfence", "mfence", "sfence", "pause", "endbr64", "nop", "prefetchw"),
        (nothing, Flow.FALL),
    ),
}
"""Mnemonic -> (microcode, how it leaves)."""


def _is_segment(v: Var | None) -> bool:
    return v is not None and v.size == 2 and reg("ES").off <= v.off <= reg("GS").off


def system_ops(mnemonic: str, insn: Any) -> tuple[tuple[Op, ...], Flow] | None:
    """The microcode of a system instruction, None for an ordinary one."""
    key = mnemonic
    if mnemonic == "mov":
        operands = Operands(insn)
        names = [insn.reg_name(o.reg) for o in insn.operands if o.type == 1]
        if any(n[:2] in ("cr", "dr") for n in names):
            key = "mov.control"
        elif _is_segment(operands.register(0)):
            key = "mov.segment"
        elif _is_segment(operands.register(1)):
            key = "mov.from_segment"
    entry = SYSTEM.get(key)
    if entry is None:
        return None
    builder = Builder()
    entry[0](builder, Operands(insn))
    return builder.done(), entry[1]
