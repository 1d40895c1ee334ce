# SPDX-License-Identifier: GPL-2.0-only
"""System instructions for the walker, by hand from the SDM, vol. 2: the pages of each, under "Operation"."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from atomicist.crosscheck.walked_memory import ALL, Refused, is_canonical
from atomicist.isa.registers import GPRS
from atomicist.spec.observer import Violation

if TYPE_CHECKING:
    from atomicist.crosscheck.walker import Walker

ByHand = Callable[["Walker", Any], None]

OTHERS: Final = {
    "TF": 8, "IF": 9, "IOPL": 12, "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip
"""Flags that ordinary instructions have no business with (SDM vol. 1, figure 3-8)."""

MSR: Final = {
    0xC000_0100: "FSBASE", 0xC000_0101: "GSBASE", 0xC000_0102: "KERNEL_GSBASE", 0x48: "SPEC_CTRL",
    0x17A: "MCG_STATUS", 0xC000_0103: "TSC_AUX",
}  # fmt: skip
"""SDM vol. 4, table 2-2."""

KERNEL32_CS: Final = 0x08
"""Linux's GDT has, of code segments, this one and three with 64-bit and user's code (asm/segment.h)."""

WRITE_ONLY: Final = (0x49, 0x10B)


def _operand(w: Walker, insn: Any, index: int) -> int:
    return int(w[insn.reg_name(insn.operands[index].reg).upper()])


def _set(w: Walker, insn: Any, index: int, value: int) -> None:
    name = insn.reg_name(insn.operands[index].reg)
    wide = {"e" + n[1:].lower(): n for n in GPRS[:8]} | {n.lower() + "d": n for n in GPRS[8:]}
    w[wide.get(name, name.upper())] = value & 0xFFFF_FFFF if name in wide else value


def _ring0(w: Walker) -> None:
    if w.rest["CS"] & 3:
        raise Refused("GP", 0, "fault", w["RIP"])


def _iretq(w: Walker, _: Any) -> None:
    w.rest["NMI_BLOCKED"] = 0  # also where it faults (vol. 3, 6.7.1)
    sp = w["RSP"]
    if w.rest["NT"]:
        raise Refused("GP", 0, "fault", sp)
    rip, cs, flags, rsp, ss = (w.read(sp + 8 * i & ALL) for i in range(5))
    cs, ss = cs & 0xFFFF, ss & 0xFFFF
    if cs == KERNEL32_CS:
        raise Violation("UNMODELLED", "the kernel's 32-bit code segment")
    if cs not in (0x10, 0x33, 0x23):  # NULL, of another kind, beyond the table, or with another RPL
        raise Refused("GP", cs & 0xFFFC, "fault", sp)
    if ss not in ((0, 0x18) if cs == 0x10 else (0x2B,)):
        raise Refused("GP", ss & 0xFFFC, "fault", sp)
    if not is_canonical(rip):
        raise Refused("GP", 0, "fault", rip)
    w["RIP"], w["RSP"] = rip, rsp
    w.rest |= {"CS": cs, "SS": ss}
    w.set_rflags(flags, [name for name in OTHERS if name != "VM"])


def _sysretq(w: Walker, _: Any) -> None:
    if not is_canonical(w["RCX"]):
        raise Refused("GP", 0, "fault", w["RCX"])
    w["RIP"] = w["RCX"]
    w.set_rflags(w["R11"] & 0x3C_7FD7, list(OTHERS))
    w.rest |= {"CS": 0x33, "SS": 0x2B}


def _swapgs(w: Walker, _: Any) -> None:
    _ring0(w)
    w["GSBASE"], w["KERNEL_GSBASE"] = w.rest["KERNEL_GSBASE"], w.rest["GSBASE"]


def _rdgsbase(w: Walker, insn: Any) -> None:
    if not w.rest["CR4"] >> 16 & 1:
        raise Refused("UD", 0, "fault", w["RIP"])
    _set(w, insn, 0, w.rest["GSBASE"])


def _wrgsbase(w: Walker, insn: Any) -> None:
    if not w.rest["CR4"] >> 16 & 1:
        raise Refused("UD", 0, "fault", w["RIP"])
    value = _operand(w, insn, 0)
    if not is_canonical(value):
        raise Refused("GP", 0, "fault", value)
    w["GSBASE"] = value


def _rdmsr(w: Walker, _: Any) -> None:
    name = MSR.get(w["RCX"] & 0xFFFF_FFFF)
    if name is None:
        raise Violation("UNMODELLED", "an MSR")
    w["RAX"], w["RDX"] = w.rest[name] & 0xFFFF_FFFF, w.rest[name] >> 32


def _wrmsr(w: Walker, _: Any) -> None:
    number = w["RCX"] & 0xFFFF_FFFF
    value = (w["RDX"] & 0xFFFF_FFFF) << 32 | w["RAX"] & 0xFFFF_FFFF
    if number in WRITE_ONLY:
        return
    if number not in MSR:
        raise Violation("UNMODELLED", "an MSR")
    if MSR[number].endswith("BASE") and not is_canonical(value):
        raise Refused("GP", 0, "fault", value)
    if MSR[number] == "TSC_AUX" and value >> 32:  # reserved
        raise Refused("GP", 0, "fault", value)
    w[MSR[number]] = value


def _mov(w: Walker, insn: Any) -> None:
    to, source = (insn.reg_name(o.reg) for o in insn.operands)
    if to == "cr3":
        value = _operand(w, insn, 1)
        if value >> 52 & 0x7FF:  # reserved; bit 63 says not to flush, and is not kept (vol. 3, 4.10.4.1)
            raise Refused("GP", 0, "fault", value)
        w.rest["CR3"] = value & ~(1 << 63)
    elif source in ("cr2", "cr3", "dr6", "dr7", "cr0", "cr4"):
        _set(w, insn, 0, w.rest[source.upper()])
    else:
        raise Violation("UNMODELLED", insn.mnemonic)


def _lsl(w: Walker, insn: Any) -> None:
    source = insn.reg_name(insn.operands[1].reg)
    name = source.upper() if source[0] == "r" else "R" + source[1:].upper()
    if w[name] & 0xFFFF != 0x7B:
        raise Violation("UNMODELLED", "a selector")
    _set(w, insn, 0, w.rest["CPUNODE"])
    w["ZF"] = 1


def _rdpid(w: Walker, insn: Any) -> None:
    _set(w, insn, 0, w.rest["TSC_AUX"])


def _pushfq(w: Walker, _: Any) -> None:
    w["RSP"] = w.push(w["RSP"], w.rflags() & ~0x30000, watched=True)


def _popfq(w: Walker, _: Any) -> None:
    value = w.read(w["RSP"])
    w["RSP"] = w["RSP"] + 8 & ALL
    w.set_rflags(value & ~(1 << 16), ("TF", "IF", "IOPL", "NT", "RF", "AC", "ID"))


def _flag(name: str, value: int) -> ByHand:
    def set_it(w: Walker, _: Any) -> None:
        w.rest[name] = value

    return set_it


def _verw(w: Walker, _: Any) -> None:
    # of Linux's data segment, which lies beside the code that runs it
    w["ZF"] = 1


def _ud2(w: Walker, _: Any) -> None:
    raise Refused("UD", 0, "fault", w["RIP"])


def _unmodelled(_: Walker, insn: Any) -> None:
    raise Violation("UNMODELLED", insn.mnemonic)


def by_hand(insn: Any) -> ByHand | None:
    name = insn.mnemonic
    table: dict[str, ByHand] = {
        "iretq": _iretq, "sysretq": _sysretq, "swapgs": _swapgs, "rdmsr": _rdmsr,
        "rdgsbase": _rdgsbase, "wrgsbase": _wrgsbase, "wrmsr": _wrmsr, "lsl": _lsl, "rdpid": _rdpid,
        "pushfq": _pushfq, "popfq": _popfq, "clac": _flag("AC", 0), "ud2": _ud2,
        "stac": _flag("AC", 1), "cli": _flag("IF", 0), "sti": _flag("IF", 1),
        "verw": _verw, "hlt": _unmodelled, "int3": _unmodelled,
    }  # fmt: skip
    named = [insn.reg_name(o.reg) for o in insn.operands if o.type == 1]
    if name == "mov" and any(n[:2] in ("cr", "dr") for n in named):
        return _mov
    return table.get(name)
