# SPDX-License-Identifier: GPL-2.0-only
"""The registers of user mode and of kernel mode, from which start contexts are made.

Registers that an entry has no business with hold tokens: values found nowhere
else, so that a mixed-up slot shows.  The tokens are not canonical: an entry that
followed one would fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from atomicist.image.addresses import KERNEL_TEXT_OFFSET, USER_PAGE
from atomicist.isa.delivery import KERNEL_CS, KERNEL_DS, USER_CS, USER_DS
from atomicist.isa.predictions import EXPOSED_ALL, IBRS
from atomicist.isa.registers import GPRS, REGISTERS, SLOTS
from atomicist.isa.system import CR4_FSGSBASE
from atomicist.machine.target import Target
from atomicist.native.tables import CR3_PCID, CR3_USER_PCID

USER_GSBASE: Final = 0x0000_7F00_BA5E_0000
USER_TEXT: Final = 0x0000_5555_5555_4321
GUEST_TSC_AUX: Final = 0x6E57_A007
"""A guest may choose any.  Taken for what Linux keeps there, this is the number of another CPU."""


def token(index: int) -> int:
    """A recognisable value for general register ``index``."""
    return 0xA70A_11C0_DE00_0000 | index << 16 | 0x5A00 | index


def _base(target: Target) -> dict[str, int]:
    values = {name: token(i) for i, name in enumerate(GPRS)}
    values |= {
        "CR0": 0x8005_0033, "CR2": 0x0BAD_CAFE_F00D, "CR4": CR4_FSGSBASE if target.fsgsbase else 0,
        "DR6": 0xFFFF_0FF0, "DR7": 0x400, "TR_BASE": target.tr_base, "FSBASE": 0x0000_7F11_F5BA_5E00,
        "CPUNODE": target.cpunode, "TSC_AUX": target.cpunode,
        "CR3": target.kernel_cr3, "CF": 1, "ZF": 1, "ID": 1, "IF": 1,
    }  # fmt: skip
    return values


def register_file(values: Mapping[str, int]) -> tuple[int, ...]:
    """A whole register file with these ``values``, 0 elsewhere."""
    file = [0] * SLOTS
    for name, value in values.items():
        file[REGISTERS[name].slot] = value
    return tuple(file)


def user_mode(target: Target) -> dict[str, int]:
    """User mode with nothing unusual."""
    user_bits = target.user_root_bit | (CR3_USER_PCID if target.kernel_cr3 & CR3_PCID else 0)
    return _base(target) | {
        "RIP": USER_TEXT, "RSP": USER_PAGE + 0x800, "CS": USER_CS, "SS": USER_DS, "GSBASE": USER_GSBASE,
        "KERNEL_GSBASE": target.kernel_gsbase,
        "CR3": target.kernel_cr3 | (user_bits if target.user_root_bit else 0),
        "SPEC_CTRL": target.kernel_spec_ctrl & ~IBRS, "EXPOSED": exposed(target),
    }  # fmt: skip


def exposed(target: Target) -> int:
    """For what user mode has left its predictions, if this CPU follows them."""
    return 0 if target.mitigation == "none" else EXPOSED_ALL


def kernel_mode(target: Target, rsp: int) -> dict[str, int]:
    """Kernel mode, with this RSP.  TSC_AUX is that of a guest that KVM has run: Linux puts its own
    back when it returns to user mode, not before (commit 6a3ea3e68b8a)."""
    return _base(target) | {
        "RIP": target.symbols["__entry_text_start"] + KERNEL_TEXT_OFFSET, "RSP": rsp, "CS": KERNEL_CS,
        "SS": KERNEL_DS, "GSBASE": target.kernel_gsbase, "KERNEL_GSBASE": USER_GSBASE,
        "SPEC_CTRL": target.kernel_spec_ctrl, "TSC_AUX": GUEST_TSC_AUX,
    }  # fmt: skip


def at_the_border(target: Target) -> dict[str, int]:
    """What is the user's still or again, where kernel mode has just been entered or is about to be left."""
    return {"EXPOSED": exposed(target), "TSC_AUX": target.cpunode}
