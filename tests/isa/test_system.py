# SPDX-License-Identifier: GPL-2.0-only
"""Microcode that has no second opinion, against expectations written out from the manuals.

"SDM" is Intel's manual; sections without a volume are vol. 2, by instruction.
"""

import pytest

from atomicist.crosscheck.states import ARENA, CODE
from atomicist.isa.ir import Note
from atomicist.machine.interpreter import Fault, Machine, Unmodelled
from tests.isa.ring0 import (
    KERNEL_GSBASE,
    STACK,
    USER_STACK,
    USER_TEXT,
    changes,
    everything,
    frame,
    machine,
)

GP, UD, SS, PF = 13, 6, 12, 14
NOT_CANONICAL = 0x0000_8000_0000_0000
ALL_FLAGS = 0x003F_7FD7 & ~0x20000
"""Every flag but VM, and the bit that is always one."""


def fault_of(m: Machine) -> tuple[int, int]:
    """Vector and error code of the fault that the step raises; all registers stay, but NMI blocking."""
    before = everything(m)
    with pytest.raises(Fault) as e:
        m.step()
    assert changes(before, m).keys() <= {"NMI_BLOCKED"}
    assert m["RIP"] == CODE
    return e.value.vector, e.value.error


class TestIretq:
    """IRET/IRETD/IRETQ, "IA-32e mode"; SDM vol. 3, 6.14.3."""

    def test_to_user(self) -> None:
        m = machine("iretq", frame(USER_TEXT, 0x33, 0x246, USER_STACK, 0x2B), CF=1, DF=1, IF=0)
        before = everything(m)
        m.step()
        assert m["RIP"] == USER_TEXT
        assert changes(before, m) == {
            "CS": 0x33, "SS": 0x2B, "RSP": USER_STACK, "CF": 0, "DF": 0, "PF": 1, "ZF": 1, "IF": 1,
        }  # fmt: skip
        assert Note.IRET in m.notes

    def test_to_kernel_pops_rsp_and_ss_too(self) -> None:
        """6.14.3: in 64-bit mode RSP and SS are popped whatever the privilege; SS may be NULL."""
        for ss in (0, 0x18):
            m = machine("iretq", frame(CODE + 0x100, 0x10, 0x2, ARENA + 0x123, ss), SS=0x18)
            m.step()
            assert (m["RIP"], m["RSP"], m["CS"], m["SS"]) == (CODE + 0x100, ARENA + 0x123, 0x10, ss)

    def test_every_flag_comes_from_the_frame(self) -> None:
        """At CPL 0 all but VM: "EFLAGS(RF, AC, ID) ...; IF CPL = 0 THEN EFLAGS(IOPL, IF, VIF, VIP)"."""
        m = machine("iretq", frame(CODE, 0x10, ALL_FLAGS | 0x20000, STACK, 0x18))
        m.step()
        names = ("CF", "PF", "AF", "ZF", "SF", "TF", "IF", "DF", "OF", "NT", "RF", "AC", "VIF", "VIP", "ID")
        assert {n: m[n] for n in names} == dict.fromkeys(names, 1)
        assert (m["IOPL"], m["VM"]) == (3, 0)

    def test_unblocks_nmi(self) -> None:
        """SDM vol. 3, 6.7.1: NMIs are blocked "until the next execution of the IRET instruction"."""
        m = machine("iretq", frame(USER_TEXT, 0x33, 0x2, USER_STACK, 0x2B), NMI_BLOCKED=1)
        m.step()
        assert m["NMI_BLOCKED"] == 0

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            (frame(NOT_CANONICAL, 0x33, 0x2, USER_STACK, 0x2B), 0),  # #GP(0): return RIP not canonical
            (frame(1 << 63, 0x10, 0x2, STACK, 0x18), 0),
            (frame(1 << 32, 0x23, 0x2, USER_STACK, 0x2B), 0),  # #GP(0): beyond the limit of a 32-bit segment
            (frame(USER_TEXT, 0, 0x2, USER_STACK, 0x2B), 0),  # #GP(0): return CS is NULL
            (frame(USER_TEXT, 0x55, 0x2, USER_STACK, 0x2B), 0x54),  # #GP(selector): no code segment
            (frame(USER_TEXT, 0x33, 0x2, USER_STACK, 0), 0),  # #GP(0): SS NULL for CPL 3
            (frame(USER_TEXT, 0x33, 0x2, USER_STACK, 0x18), 0x18),  # #GP(SS selector): RPL is not that of CS
            (frame(CODE, 0x10, 0x2, STACK, 0x2B), 0x28),
        ],
    )
    def test_refuses(self, words: dict[int, int], error: int) -> None:
        """ "64-Bit Mode Exceptions".  That a faulting IRET ends NMI blocking: SDM vol. 3, 27.2.3 (a VM exit
        due
        to a fault on IRET says that "NMI unblocking due to IRET" has happened)."""
        m = machine("iretq", words, NMI_BLOCKED=1)
        assert fault_of(m) == (GP, error)
        assert m["NMI_BLOCKED"] == 0

    def test_nested_task(self) -> None:
        """#GP(0) "If EFLAGS.NT[bit 14] = 1"."""
        assert fault_of(machine("iretq", frame(CODE, 0x10, 2, STACK, 0x18), NT=1)) == (GP, 0)

    def test_frame_out_of_reach(self) -> None:
        assert fault_of(machine("iretq", RSP=0x2000, NMI_BLOCKED=1)) == (PF, 0)
        # #SS(0): an address on the stack that is not canonical
        assert fault_of(machine("iretq", RSP=NOT_CANONICAL)) == (SS, 0)

    def test_32_bit_user(self) -> None:
        m = machine("iretq", frame(0x0804_8000, 0x23, 0x202, 0xFFFF_D000, 0x2B))
        m.step()
        assert (m["CS"], m["RIP"], m["RSP"]) == (0x23, 0x0804_8000, 0xFFFF_D000)


class TestSysretq:
    """SYSRET, "Operation"."""

    def test_registers(self) -> None:
        m = machine("sysretq", RCX=USER_TEXT, R11=0xFFFF_FFFF, NMI_BLOCKED=1, RF=1, VM=0)
        before = everything(m)
        m.step()
        found = changes(before, m)
        assert m["RIP"] == USER_TEXT
        assert (found.pop("CS"), found.pop("SS")) == (0x33, 0x2B)
        # RFLAGS := (R11 & 3C7FD7H) | 2: neither RF nor VM
        assert found.pop("IOPL") == 3
        assert found.pop("RF") == 0
        assert found == dict.fromkeys(
            ("CF", "PF", "AF", "ZF", "SF", "TF", "IF", "DF", "OF", "NT", "AC", "VIF", "VIP", "ID"), 1
        )
        # SYSRET does not end NMI blocking, and RSP is the caller's business.
        assert (m["NMI_BLOCKED"], m["RSP"]) == (1, STACK)
        assert Note.SYSRET in m.notes

    def test_not_canonical(self) -> None:
        """#GP(0) "If RCX contains a non-canonical address", in ring 0."""
        assert fault_of(machine("sysretq", RCX=NOT_CANONICAL)) == (GP, 0)

    def test_privilege(self) -> None:
        assert fault_of(machine("sysretq", RCX=USER_TEXT, CS=0x33)) == (GP, 0)


class TestBases:
    """SWAPGS, RDFSBASE/RDGSBASE, WRFSBASE/WRGSBASE, RDMSR, WRMSR."""

    def test_swapgs(self) -> None:
        m = machine("swapgs", GSBASE=KERNEL_GSBASE, KERNEL_GSBASE=0x1234)
        before = everything(m)
        m.step()
        assert changes(before, m) == {"GSBASE": 0x1234, "KERNEL_GSBASE": KERNEL_GSBASE}
        assert fault_of(machine("swapgs", CS=0x33)) == (GP, 0)

    def test_read_base(self) -> None:
        m = machine("rdgsbase r9")
        m.step()
        assert m["R9"] == KERNEL_GSBASE
        m = machine("rdgsbase eax")
        m.step()
        assert m["RAX"] == KERNEL_GSBASE & 0xFFFF_FFFF
        m = machine("rdfsbase r12d", FSBASE=0x7F11_2222_3333)
        m.step()
        assert m["R12"] == 0x2222_3333

    def test_write_base(self) -> None:
        m = machine("wrgsbase rbx", RBX=0xFFFF_9000_0000_0000)
        m.step()
        assert (m["GSBASE"], m["KERNEL_GSBASE"]) == (0xFFFF_9000_0000_0000, 0x7777_0000)
        m = machine("wrfsbase ebx", RBX=0xFFFF_9000_0000_1234)
        m.step()
        assert m["FSBASE"] == 0x1234

    def test_base_faults(self) -> None:
        assert fault_of(machine("wrgsbase rbx", RBX=NOT_CANONICAL)) == (GP, 0)
        for line in ("rdgsbase rax", "wrgsbase rax", "rdfsbase rax", "wrfsbase rax"):
            # #UD "If CR4.FSGSBASE[bit 16] = 0"
            assert fault_of(machine(line, CR4=0)) == (UD, 0)

    @pytest.mark.parametrize(
        ("number", "name", "value"),
        [
            (0xC000_0100, "FSBASE", 0xFFFF_8000_1234_5678),
            (0xC000_0101, "GSBASE", 0x0000_7FFF_FFFF_FFFF),
            (0xC000_0102, "KERNEL_GSBASE", 0xFFFF_8880_0A00_0000),
            (0x48, "SPEC_CTRL", 5),
            (0x17A, "MCG_STATUS", 4),
            (0xC000_0103, "TSC_AUX", 0xFFFF_FFFF),
        ],
    )
    def test_msr(self, number: int, name: str, value: int) -> None:
        """EDX:EAX; "the high-order 32 bits of RAX, RCX and RDX are ignored", and cleared by RDMSR.
        Numbers: SDM vol. 4, table 2-2."""
        high = 0xFFFF_FFFF << 32
        m = machine("wrmsr", RCX=high | number, RAX=high | value & 0xFFFF_FFFF, RDX=high | value >> 32)
        before = everything(m)
        m.step()
        assert changes(before, m) == {name: value}
        m = machine("rdmsr", RCX=high | number)
        m[name] = value
        m.step()
        assert (m["RDX"], m["RAX"]) == (value >> 32, value & 0xFFFF_FFFF)

    def test_msr_refused(self) -> None:
        for number in (0xC000_0100, 0xC000_0101, 0xC000_0102):
            # #GP(0): an address that is not canonical, for these MSRs
            assert fault_of(machine("wrmsr", RCX=number, RAX=0, RDX=0x8000)) == (GP, 0)
        # TSC_AUX: bits 63:32 are reserved
        assert fault_of(machine("wrmsr", RCX=0xC000_0103, RAX=0, RDX=1)) == (GP, 0)
        for line in ("rdmsr", "wrmsr"):
            assert fault_of(machine(line, RCX=0x48, CS=0x33)) == (GP, 0)
            with pytest.raises(Unmodelled, match="MSR"):
                machine(line, RCX=0xC000_0080).step()

    def test_command(self) -> None:
        """SDM vol. 4, table 2-2: IA32_PRED_CMD and IA32_FLUSH_CMD are write only and hold nothing."""
        for number in (0x49, 0x10B):
            m = machine("wrmsr", RCX=number, RAX=1, RDX=0)
            before = everything(m)
            m.step()
            assert not changes(before, m)
            with pytest.raises(Unmodelled):
                machine("rdmsr", RCX=number).step()


class TestControl:
    """MOV to and from control and debug registers; SDM vol. 3, 4.10.4.1."""

    def test_cr3(self) -> None:
        m = machine("mov cr3, rax", RAX=0x8000_0001_2340_1801)
        before = everything(m)
        m.step()
        assert changes(before, m) == {"CR3": 0x0000_0001_2340_1801}
        assert Note.WRITE_CR3 in m.notes
        m = machine("mov r14, cr3", CR3=0x1_2340_1001)
        m.step()
        assert m["R14"] == 0x1_2340_1001

    @pytest.mark.parametrize("bit", [52, 61, 62])
    def test_cr3_reserved(self, bit: int) -> None:
        """#GP(0) "If an attempt is made to write a 1 to any reserved bit in CR3"."""
        assert fault_of(machine("mov cr3, rax", RAX=1 << bit)) == (GP, 0)

    def test_others(self) -> None:
        for line in ("mov cr3, rax", "mov rax, cr3", "mov rax, cr2", "mov rax, dr7"):
            assert fault_of(machine(line, CS=0x33, RAX=0)) == (GP, 0)
        m = machine("mov rdx, cr2", CR2=0xDEAD)
        m.step()
        assert m["RDX"] == 0xDEAD
        machine("mov cr4, rax", RAX=1 << 16).step()
        with pytest.raises(Unmodelled, match="mov cr4, rax"):
            machine("mov cr4, rax", RAX=0).step()


class TestSegments:
    """MOV, LSL, VERW, RDPID."""

    def test_mov_ss_holds_events_off_for_one_instruction(self) -> None:
        """SDM vol. 3, 6.8.3."""
        m = machine("mov ss, eax", RAX=0x18, SS=0)
        m.step()
        assert (m["SS"], m["SHADOW"]) == (0x18, 1)
        after = machine("nop", SHADOW=1)
        after.step()
        assert after["SHADOW"] == 0

    def test_second_mov_ss_holds_nothing_off(self) -> None:
        """6.8.3: of a sequence of such instructions "only the first ... is guaranteed" to."""
        m = machine("mov ss, eax", RAX=0x18, SHADOW=1)
        m.step()
        assert m["SHADOW"] == 0

    def test_mov_ss_unknown_selector(self) -> None:
        with pytest.raises(Unmodelled, match="unknown selector"):
            machine("mov ss, eax", RAX=0x2B).step()

    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("mov eax, ss", 0x18),
            ("mov rax, ss", 0x18),
            ("mov ax, ss", 0xA70A_0000_0000_0018),
            ("mov eax, cs", 0x10),
        ],
    )
    def test_mov_from_segment(self, line: str, value: int) -> None:
        """MOV: "the upper bits of the destination register" are zero, but for a 16-bit operand, kept."""
        m = machine(line)
        before = everything(m)
        m.step()
        assert changes(before, m) == {"RAX": value}

    def test_mov_from_segment_to_memory(self) -> None:
        m = machine("mov word ptr [rbx], ss", {ARENA: 0x1111_2222_3333_4444}, RBX=ARENA)
        m.step()
        assert m.memory.peek(ARENA, 8) == 0x1111_2222_3333_0018

    def test_lsl(self) -> None:
        m = machine("lsl eax, eax", RAX=0xFFFF_0000_0000_007B, CPUNODE=0x1003, CF=1, ZF=0)
        before = everything(m)
        m.step()
        assert changes(before, m) == {"RAX": 0x1003, "ZF": 1}
        with pytest.raises(Unmodelled, match="unknown selector"):
            machine("lsl eax, eax", RAX=0x10).step()

    def test_rdpid(self) -> None:
        """The MSR, which need not be what LSL reads."""
        for line in ("rdpid rdx", "rdpid r9"):
            m = machine(line, TSC_AUX=0x8000_1007, CPUNODE=0x1003)
            before = everything(m)
            m.step()
            assert changes(before, m) == {line.split()[1].upper(): 0x8000_1007}

    def test_verw(self) -> None:
        m = machine("verw word ptr [rbx]", {ARENA + 16: 0xFFFF_FFFF_FFFF_0018}, RBX=ARENA + 16, ZF=0, CF=1)
        before = everything(m)
        m.step()
        assert changes(before, m) == {"ZF": 1}
        with pytest.raises(Unmodelled, match="unknown selector"):
            machine("verw word ptr [rbx]", {ARENA: 0x33}, RBX=ARENA).step()
        assert fault_of(machine("verw word ptr [rbx]", RBX=0x5000)) == (PF, 0)


class TestFlags:
    """PUSHF, POPF, CLI, STI, CLAC, STAC at CPL 0."""

    def test_pushfq(self) -> None:
        """ "PUSHF(EFLAGS AND 00FCFFFFH)": RF and VM are pushed as zero; IOPL does not matter at CPL 0."""
        flags = dict.fromkeys(("CF", "TF", "IF", "DF", "NT", "RF", "AC", "ID"), 1)
        m = machine("pushfq", IOPL=2)
        for name, value in flags.items():
            m[name] = value
        m.step()
        assert m["RSP"] == STACK - 8
        assert m.memory.peek(STACK - 8, 8) == 0x0024_6703 & ~0x10000
        assert m["RF"] == 1

    def test_popfq(self) -> None:
        """Table "Effect of POPF/POPFD", CPL 0: VIP, VIF, VM unaffected, RF cleared, IOPL and IF from the
        stack."""
        m = machine("popfq", {STACK: 0xFFFF_FFFF}, RF=1, VIF=0, VIP=0, CF=0)
        m.step()
        assert m["RSP"] == STACK + 8
        names = ("CF", "PF", "AF", "ZF", "SF", "TF", "IF", "DF", "OF", "NT", "AC", "ID")
        assert {n: m[n] for n in names} == dict.fromkeys(names, 1)
        assert {n: m[n] for n in ("RF", "VM", "VIF", "VIP", "IOPL")} == {
            "RF": 0, "VM": 0, "VIF": 0, "VIP": 0, "IOPL": 3,
        }  # fmt: skip
        m = machine("popfq", {STACK: 0}, VIF=1, VIP=1, IOPL=3)
        m.step()
        assert (m["VIF"], m["VIP"], m["IOPL"]) == (1, 1, 0)

    def test_popfq_outside_ring_0(self) -> None:
        with pytest.raises(Unmodelled):
            machine("popfq", CS=0x33).step()

    def test_interrupt_flag(self) -> None:
        m = machine("cli", IF=1)
        m.step()
        assert m["IF"] == 0
        m = machine("sti", IF=0)
        m.step()
        assert (m["IF"], m["SHADOW"]) == (1, 0)
        for line in ("cli", "sti"):
            assert fault_of(machine(line, CS=0x33)) == (GP, 0)

    def test_alignment_check(self) -> None:
        for line, before, after in (("clac", 1, 0), ("stac", 0, 1)):
            m = machine(line, AC=before)
            was = everything(m)
            m.step()
            assert changes(was, m) == {"AC": after}


def test_ud2() -> None:
    assert fault_of(machine("ud2")) == (UD, 0)


@pytest.mark.parametrize("line", ["lfence", "mfence", "sfence", "pause", "endbr64", "nop", "prefetchw [rax]"])
def test_no_effect(line: str) -> None:
    m = machine(line)
    before = everything(m)
    m.step()
    assert not changes(before, m)
    assert m["RIP"] == CODE + len(m.target.insns[CODE].raw)


def test_invpcid() -> None:
    """INVPCID reads 16 bytes."""
    before = everything(machine("invpcid rax, [rbx]", RBX=ARENA))
    m = machine("invpcid rax, [rbx]", RBX=ARENA)
    m.step()
    assert not changes(before, m)
    assert fault_of(machine("invpcid rax, [rbx]", RBX=ARENA + 0x2FF8)) == (PF, 0)
    assert fault_of(machine("invpcid rax, [rbx]", RBX=ARENA, CS=0x33)) == (GP, 0)


def test_hlt_is_a_finding() -> None:
    with pytest.raises(Unmodelled, match="hlt"):
        machine("hlt").step()
    assert fault_of(machine("hlt", CS=0x33)) == (GP, 0)
