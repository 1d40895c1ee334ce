# SPDX-License-Identifier: GPL-2.0-only
"""The architectural register file, as one flat array of 8-byte slots.

Every register - general, segment, flag, model specific, and the few bits of
hidden state that event delivery needs - owns one slot, so that a saved state
is a plain array, a hash of it is a hash of the machine, and "which register"
is one small number everywhere.  Flags are one byte wide inside their slot, as
SLEIGH (the source of ordinary instructions) keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

SLOT: Final = 8
"""Bytes per register slot."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register: ``name``, byte ``offset`` in the file, ``size`` in bytes."""

    name: str
    offset: int
    size: int

    @property
    def slot(self) -> int:
        """Index of the 8-byte slot that holds the register."""
        return self.offset // SLOT


GPRS: Final = (
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
    "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
)  # fmt: skip
"""General registers in hardware encoding order (SDM vol. 2, table 2-2)."""

SEGMENTS: Final = ("ES", "CS", "SS", "DS", "FS", "GS")

FLAG_BITS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "CF": (0, 1), "PF": (2, 1), "AF": (4, 1), "ZF": (6, 1), "SF": (7, 1), "TF": (8, 1),
        "IF": (9, 1), "DF": (10, 1), "OF": (11, 1), "IOPL": (12, 2), "NT": (14, 1),
        "RF": (16, 1), "VM": (17, 1), "AC": (18, 1), "VIF": (19, 1), "VIP": (20, 1), "ID": (21, 1),
    }
)  # fmt: skip
"""Flag name -> (bit, width) in RFLAGS (SDM vol. 1, figure 3-8)."""

RFLAGS_FIXED: Final = 0x2
"""Bit 1 of RFLAGS always reads as one."""

BASES: Final = ("FSBASE", "GSBASE", "KERNEL_GSBASE")
CONTROL: Final = ("CR0", "CR2", "CR3", "CR4", "DR6", "DR7")
MSRS: Final = ("SPEC_CTRL", "MCG_STATUS", "TSC_AUX")
HIDDEN: Final = ("NMI_BLOCKED", "SHADOW", "TR_BASE", "CPUNODE", "EXPOSED")
"""State that no instruction names: NMI blocking (SDM vol. 3, 6.7.1), the
one-instruction interrupt shadow after MOV SS / STI (SDM vol. 3, 6.8.3), the
base of the task-state segment, the CPU-node segment limit that LSL reads, and for
what branch predictions are the user's (`predictions`)."""

_SIZES: Final = {**dict.fromkeys(SEGMENTS, 2), **dict.fromkeys(FLAG_BITS, 1)}

REGISTERS: Final[Mapping[str, Register]] = MappingProxyType(
    {
        name: Register(name, i * SLOT, _SIZES.get(name, 8))
        for i, name in enumerate((*GPRS, "RIP", *SEGMENTS, *BASES, *CONTROL, *MSRS, *HIDDEN, *FLAG_BITS))
    }
)
"""Every register of the model by name."""

SLOTS: Final = len(REGISTERS)
"""Number of slots in the file."""

BY_SLOT: Final = tuple(REGISTERS)
"""Register name by slot index."""

_SLEIGH_NAMES: Final = {
    "FSBASE": "FS_OFFSET",
    "GSBASE": "GS_OFFSET",
}
"""SLEIGH's name where it differs from the manual's."""

SLEIGH_NAME: Final[Mapping[str, str]] = MappingProxyType(
    {
        name: _SLEIGH_NAMES.get(name, name)
        for name in (
            *GPRS,
            "RIP",
            *SEGMENTS,
            "FSBASE",
            "GSBASE",
            "CR0",
            "CR2",
            "CR3",
            "CR4",
            "DR6",
            "DR7",
            *FLAG_BITS,
        )
    }
)
"""Registers that SLEIGH's specification knows too, with its name for them."""
