# SPDX-License-Identifier: GPL-2.0-only
"""Prints tables.h: every number that the C runtime shares with Python.

Registers, flags, operation codes, notes and vectors come from `isa`; the numbers
of the properties and the events are handed in by their owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from atomicist.isa.delivery import MCIP, VECTORS
from atomicist.isa.ir import Access, Code, Note, Space
from atomicist.isa.predictions import EVERYTHING
from atomicist.isa.registers import FLAG_BITS, GPRS, REGISTERS, RFLAGS_FIXED, SLOTS

PT_REGS: Final = (
    "R15", "R14", "R13", "R12", "RBP", "RBX", "R11", "R10", "R9", "R8", "RAX", "RCX", "RDX", "RSI", "RDI",
    "ORIG_RAX", "RIP", "CS", "RFLAGS", "RSP", "SS",
)  # fmt: skip
"""Layout of struct pt_regs, 8 bytes each (Linux arch/x86/include/asm/ptrace.h)."""

KEY_SLOTS: Final = ("RSP", "CS", "SS", "GSBASE", "KERNEL_GSBASE", "CR3", "SPEC_CTRL", "TSC_AUX", "EXPOSED")
"""The registers of a context that the course of an entry may depend on, besides
RIP; a result that rests on any other is not accepted as closed."""

FREE_SLOTS: Final = ("RSP", "RIP", "GSBASE")
"""The registers that a user chooses freely, and an entry may look at."""

CR3_COMPARED: Final = 0x000F_FFFF_FFFF_F000
"""What a handler's CR3 is compared in with the kernel's: the page tables."""

CR3_PCID, CR3_USER_PCID = 0xFFF, 0x800
"""The PCID in CR3; and its bit that is set for the user's page tables, where the kernel has others
(Linux arch/x86/entry/calling.h: PTI_USER_PCID_MASK)."""

CODE_NUMBER: Final[Mapping[Code, int]] = {code: i + 1 for i, code in enumerate(Code)}
"""The runtime's number of each operation."""


def render(properties: Mapping[str, int], events: Sequence[str], error_token: int) -> str:
    """The text of tables.h."""
    lines = ["/* Printed by atomicist.native.tables; do not edit. */", f"#define NSLOTS {SLOTS}u"]
    lines += [f"#define REG_{name} {r.slot}u" for name, r in REGISTERS.items()]
    lines += [f"#define REG_FLAGS_IMAGE {SLOTS}u", f"#define RFLAGS_FIXED {RFLAGS_FIXED}ull"]
    lines += [f"#define CODE_{code.value} {number}u" for code, number in CODE_NUMBER.items()]
    lines += [f"#define SPACE_{s.name} {s.value}u" for s in Space]
    lines += [f"#define ACCESS_{a.name} {a.value}u" for a in Access]
    lines += [f"#define NOTE_{n.name} {n.value}u" for n in Note]
    lines += [f"#define VECTOR_{v.name} {v.number}u" for v in VECTORS.values()]
    lines += [f"#define P_{key} {number}u" for key, number in properties.items()]
    lines += [f"#define EVENT_{name} {i}u" for i, name in enumerate(events)]
    lines += [f"#define MCIP {MCIP}ull", f"#define ERROR_TOKEN {error_token:#x}ull"]
    lines += [f"#define CR3_COMPARED {CR3_COMPARED:#x}ull", f"#define EXPOSED_EVERYTHING {EVERYTHING}u"]
    lines += [f"#define CR3_PCID {CR3_PCID:#x}ull", f"#define CR3_USER_PCID {CR3_USER_PCID:#x}ull"]
    lines += [f"#define PT_{name} {8 * i}u" for i, name in enumerate(PT_REGS)]
    frame = [(8 * i, name) for i, name in enumerate(PT_REGS) if name != "ORIG_RAX"]
    arrays = {
        "slot_size": [r.size for r in REGISTERS.values()],
        "slot_bits": [
            FLAG_BITS[name][1] if name in FLAG_BITS else 8 * r.size for name, r in REGISTERS.items()
        ],
        "flag_slot": [REGISTERS[name].slot for name in FLAG_BITS],
        "flag_bit": [bit for bit, _ in FLAG_BITS.values()],
        "pt_offset": [offset for offset, _ in frame],
        "pt_slot": [SLOTS if name == "RFLAGS" else REGISTERS[name].slot for _, name in frame],
        "free_slot": [REGISTERS[name].slot for name in FREE_SLOTS],
        "key_slot": [REGISTERS[name].slot for name in KEY_SLOTS],
        "vector_error": [int(VECTORS[name].has_error_code) for name in events],
        "vector_fault_class": [int(VECTORS[name].fault_class) for name in events],
    }
    lines += [
        f"#define NFLAGS {len(FLAG_BITS)}u",
        f"#define NPT {len(frame)}u",
        f"#define NGPRS {len(GPRS)}u",
    ]
    lines += [f"#define NKEY {len(KEY_SLOTS)}u"]
    for name, values in arrays.items():
        text = ", ".join(map(str, values))
        lines.append(f"static const unsigned {name}[] __attribute__((unused)) = {{ {text} }};")
    return "\n".join(lines) + "\n"
