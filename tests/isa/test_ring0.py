# SPDX-License-Identifier: GPL-2.0-only
"""Ring-0 instructions that Unicorn does execute as a processor would: the second opinion on their microcode.

It has none on IRETQ and SYSRETQ (they need descriptor tables it does not fill), LSL and VERW (the same),
MOV SS,
SPEC_CTRL (dropped), MCG_STATUS, NMI blocking, or faults, which it does not deliver.
"""

import pytest
import unicorn
from hypothesis import given
from hypothesis import strategies as st
from unicorn import x86_const as ux

from atomicist.crosscheck.states import ARENA, ARENA_SIZE, CODE, CODE_SIZE
from atomicist.isa.registers import FLAG_BITS, GPRS
from tests.isa.compare import VALUE, examples
from tests.isa.ring0 import STACK, code, machine

FLAGS = ("CF", "PF", "AF", "ZF", "SF", "IF", "DF", "OF", "IOPL", "NT", "AC", "ID")
MSRS = {"FSBASE": 0xC000_0100, "GSBASE": 0xC000_0101, "KERNEL_GSBASE": 0xC000_0102, "TSC_AUX": 0xC000_0103}
LINES = (
    "pushfq", "popfq", "cli", "sti", "clac", "stac", "swapgs", "rdgsbase rbx", "rdgsbase ebx", "rdfsbase r9",
    "wrgsbase rbx", "wrgsbase ebx", "wrfsbase r9", "rdmsr", "wrmsr", "mov cr3, rax", "mov rdx, cr3",
    "mov rdx, cr2",
    "lfence", "mfence", "pause", "endbr64",
)  # fmt: skip
CANONICAL = st.integers(-(1 << 47), (1 << 47) - 1).map(lambda v: v & (1 << 64) - 1)


class Ring0:
    """A Unicorn of its own for one instruction, CPL 0, CR4.FSGSBASE and SMAP on."""

    def __init__(self, line: str) -> None:
        self.engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.engine.ctl_set_cpu_model(ux.UC_CPU_X86_ICELAKE_SERVER)
        self.engine.mem_map(CODE, CODE_SIZE)
        self.engine.mem_map(ARENA, ARENA_SIZE)
        self.engine.mem_write(CODE, code(line).ljust(64, b"\x90"))
        cr4 = self.engine.reg_read(ux.UC_X86_REG_CR4)
        self.engine.reg_write(ux.UC_X86_REG_CR4, cr4 | 1 << 16 | 1 << 21)

    def run(self, registers: dict[str, int], rflags: int, word: int) -> tuple[dict[str, int], int, int]:
        """Registers, RFLAGS and the word at STACK - 8, after the instruction."""
        engine = self.engine
        engine.mem_write(ARENA, bytes(ARENA_SIZE))
        engine.mem_write(STACK, word.to_bytes(8, "little"))
        for name, value in registers.items():
            if name in MSRS:
                engine.msr_write(MSRS[name], value)
            else:
                engine.reg_write(getattr(ux, f"UC_X86_REG_{name}"), value)
        engine.reg_write(ux.UC_X86_REG_EFLAGS, rflags)
        engine.emu_start(CODE, 0, count=1)
        found = {
            name: engine.msr_read(MSRS[name])
            if name in MSRS
            else engine.reg_read(getattr(ux, f"UC_X86_REG_{name}"))
            for name in (*registers, "RIP")
        }
        below = int.from_bytes(engine.mem_read(STACK - 8, 8), "little")
        return found, engine.reg_read(ux.UC_X86_REG_EFLAGS), below


@pytest.mark.parametrize("line", LINES)
def test_unicorn_agrees(line: str) -> None:
    ring0 = Ring0(line)

    @examples(40)
    @given(
        values=st.tuples(*[VALUE] * 3),
        bases=st.tuples(*[CANONICAL] * 3),
        flags=st.integers(0, (1 << 20) - 1),
        word=VALUE,
        number=st.sampled_from(sorted(MSRS.values())),
    )
    def check(values: tuple[int, ...], bases: tuple[int, ...], flags: int, word: int, number: int) -> None:
        registers = dict.fromkeys(GPRS, 0x5A5A_5A5A_5A5A_5A5A)
        registers |= dict(zip(("RAX", "RBX", "RDX"), values, strict=True))
        registers |= dict(zip(MSRS, (*bases, values[0] & 0xFFFF_FFFF), strict=True))
        registers |= {"RSP": STACK, "R9": bases[1], "CR3": values[2] & 0xF_FFFF_F000, "CR2": values[1]}
        if line == "wrgsbase rbx":
            registers["RBX"] = bases[0]
        if line.endswith("msr"):
            registers |= {"RCX": number, "RAX": bases[2] & 0xFFFF_FFFF, "RDX": bases[2] >> 32}
            if number == MSRS["TSC_AUX"]:  # it keeps the reserved half
                registers["RDX"] = 0
        if line == "mov cr3, rax":
            registers["RAX"] &= 0xF_FFFF_FFFF  # within any physical address
        choice = {name: flags >> i & ((1 << FLAG_BITS[name][1]) - 1) for i, name in enumerate(FLAGS)}
        # A trap of its own: TF is no business of the instruction.
        word &= ~0x100
        ours = machine(line, {STACK: word}, **registers, **choice)
        rflags = 2 | sum(value << FLAG_BITS[name][0] for name, value in choice.items())
        ours.step()
        theirs, their_flags, below = ring0.run(registers, rflags, word)
        assert {name: ours[name] for name in theirs} == theirs
        mine = 2 | sum(ours[name] << bit for name, (bit, _) in FLAG_BITS.items())
        assert mine == their_flags
        assert ours.memory.peek(STACK - 8, 8) == below

    check()
