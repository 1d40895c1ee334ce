# SPDX-License-Identifier: GPL-2.0-only
"""Delivery of events: stack frames and registers written out by hand from the manuals.

SDM vol. 3, 6.14 (64-bit mode), 6.12 and 6.15; APM vol. 2, 8.9 and 15.35 for #VC.
"""

from typing import ClassVar

import pytest

from atomicist.isa.delivery import BY_NUMBER, DB, DF, GP, MC, NMI, NP, PF, SS, UD, VC, VECTORS, Gate, Vector
from atomicist.isa.registers import FLAG_BITS, GPRS, REGISTERS
from atomicist.machine.interpreter import Fault, Machine
from atomicist.machine.memory import PAGE, Page, PageFlag
from tests.isa.engines import target_of

TSS = 0xFFFF_FE00_0000_3000
IST_STACK = 0xFFFF_FE00_0001_0000
RSP0_STACK = 0xFFFF_FE00_0002_0000
KERNEL_STACK = 0xFFFF_C900_0000_0000
HANDLER = 0xFFFF_FFFF_8100_0000
USER_ONLY_TEXT = 0x0000_5555_5555_4000
ERROR = 0x725C_0DE5

BOTH = PageFlag.KERNEL_ROOT | PageFlag.USER_ROOT | PageFlag.WRITABLE
IST = 3
IST_TOP, RSP0_TOP, KERNEL_TOP = IST_STACK + PAGE, RSP0_STACK + PAGE, KERNEL_STACK + PAGE

ALL = (NMI, DB, MC, VC, DF, GP)
PUSHES_ERROR = {"NMI": False, "DB": False, "MC": False, "VC": True, "DF": True, "GP": True}
"""SDM vol. 3, table 6-1; APM vol. 2, table 8-1 for #VC."""
RF_IN_IMAGE = {"NMI": 0, "DB": 0, "MC": 0, "VC": 1, "DF": 0, "GP": 1}
"""SDM vol. 3, 17.3.1.1: one for a fault-class exception, else what RF is."""


def tss(rsp0: int, ist: int) -> bytes:
    """SDM vol. 3, figure 7-11: RSP0 at 4, IST1 at 36."""
    page = bytearray(PAGE)
    page[4:12] = rsp0.to_bytes(8, "little")
    page[36 + 8 * (IST - 1) : 36 + 8 * IST] = ist.to_bytes(8, "little")
    return bytes(page)


def machine(
    *, user: bool, rsp0: int = RSP0_TOP, ist: int = IST_TOP, stacks: PageFlag = BOTH, **registers: int
) -> Machine:
    pages = (
        Page(TSS, tss(rsp0, ist), BOTH & ~PageFlag.WRITABLE),
        *(Page(base, b"\xee" * PAGE, stacks) for base in (IST_STACK, RSP0_STACK, KERNEL_STACK)),
    )
    made = Machine(target_of({}, pages, 0, user_root_bit=0x1000))
    for i, name in enumerate(GPRS):
        made[name] = 0xA70A_0000_0000_0000 | i
    made["TR_BASE"] = TSS
    made["CS"], made["SS"] = (0x33, 0x2B) if user else (0x10, 0x18)
    made["RIP"] = USER_ONLY_TEXT if user else HANDLER + 0x123
    made["RSP"] = 0x7FFF_FFFF_E123 if user else KERNEL_TOP - 0x105
    for name, value in registers.items():
        made[name] = value
    return made


def words(m: Machine, count: int) -> list[int]:
    return [m.memory.peek(m["RSP"] + 8 * i, 8) for i in range(count)]


def different(before: dict[str, int], m: Machine) -> dict[str, int]:
    return {name: m[name] for name in REGISTERS if m[name] != before[name]}


def snapshot(m: Machine) -> dict[str, int]:
    return {name: m[name] for name in REGISTERS}


@pytest.mark.parametrize("ist", [0, IST])
@pytest.mark.parametrize("user", [True, False])
@pytest.mark.parametrize("vector", ALL, ids=lambda v: v.name)
def test_frame(vector: Vector, user: bool, ist: int) -> None:
    """6.14.2, figure 6-8: SS, RSP, RFLAGS, CS, RIP, and the error code, eight bytes each, on a stack aligned
    to 16; 6.14.4 and 6.14.5: which stack."""
    # CF, ZF, TF, IF, DF, NT, AC, ID, IOPL 0: 0x244743 with the bit that is always one
    flags = dict.fromkeys(("CF", "ZF", "TF", "IF", "DF", "NT", "AC", "ID"), 1)
    m = machine(user=user)
    for name, value in flags.items():
        m[name] = value
    before = snapshot(m)
    m.deliver(Gate(vector, HANDLER, ist), ERROR)
    top = IST_TOP if ist else RSP0_TOP if user else (KERNEL_TOP - 0x105) & ~15
    image = 0x0024_4743 | RF_IN_IMAGE[vector.name] << 16
    expected = [before["RIP"], before["CS"], image, before["RSP"], before["SS"]]
    if PUSHES_ERROR[vector.name]:
        expected.insert(0, ERROR)
    assert m["RSP"] == top - 8 * len(expected)
    assert words(m, len(expected)) == expected
    # Nothing but the frame was written.
    page = top - 1 & -PAGE
    rest = m.memory.peek(page, PAGE).to_bytes(PAGE, "little")
    low, high = m["RSP"] - page, top - page
    assert set(rest[:low] + rest[high:]) <= {0xEE}
    # 6.12.1.3, 6.14: an interrupt gate clears IF; TF, NT, RF and VM are cleared; AC, DF and the rest stay.
    changed = different(before, m)
    wanted = {"RIP": HANDLER, "RSP": m["RSP"], "TF": 0, "IF": 0, "NT": 0}
    if user:
        wanted |= {"CS": 0x10, "SS": 0}
    if vector is NMI:
        wanted["NMI_BLOCKED"] = 1
    if vector is MC:
        wanted["MCG_STATUS"] = 4
    assert changed == wanted


@pytest.mark.parametrize("low", range(16))
def test_alignment(low: int) -> None:
    """6.14.2: RSP is aligned down to 16 bytes before the pushes, on the stack in use as on one from the
    TSS."""
    m = machine(user=False, RSP=KERNEL_TOP - 0x200 + low)
    m.deliver(Gate(NMI, HANDLER, 0))
    assert m["RSP"] == KERNEL_TOP - 0x200 - 40
    assert words(m, 5)[3] == KERNEL_TOP - 0x200 + low
    m = machine(user=True, ist=IST_TOP - 0x100 + low, rsp0=RSP0_TOP - 0x100 + low)
    m.deliver(Gate(GP, HANDLER, IST), 0)
    assert m["RSP"] == IST_TOP - 0x100 - 48
    m = machine(user=True, ist=IST_TOP - 0x100 + low, rsp0=RSP0_TOP - 0x100 + low)
    m.deliver(Gate(GP, HANDLER, 0), 0)
    assert m["RSP"] == RSP0_TOP - 0x100 - 48


def test_ss_null_is_pushed_and_kept() -> None:
    """6.14.4: a handler from user mode runs with SS NULL, and what interrupts it pushes that."""
    m = machine(user=True)
    m.deliver(Gate(DB, HANDLER, IST))
    assert m["SS"] == 0
    m.deliver(Gate(NMI, HANDLER, 0))
    assert words(m, 5)[4] == 0
    assert m["SS"] == 0


def test_ss_stays_without_a_change_of_privilege() -> None:
    """6.14: "The new SS is set to NULL if there is a change in CPL"."""
    m = machine(user=False)
    m.deliver(Gate(NMI, HANDLER, IST))
    assert m["SS"] == 0x18


@pytest.mark.parametrize("flag", FLAG_BITS)
def test_each_flag(flag: str) -> None:
    bit, width = FLAG_BITS[flag]
    m = machine(user=False)
    m[flag] = (1 << width) - 1
    m.deliver(Gate(NMI, HANDLER, IST))
    assert words(m, 5)[2] == 2 | ((1 << width) - 1) << bit
    assert m[flag] == (0 if flag in ("TF", "IF", "NT", "RF", "VM") else (1 << width) - 1)


def test_rf_that_was_set() -> None:
    """17.3.1.1: for what is no fault, the image has RF as it is."""
    for vector in (NMI, DB, MC, DF):
        m = machine(user=False, RF=1)
        m.deliver(Gate(vector, HANDLER, IST), 0)
        image = words(m, 5)[3 if vector is DF else 2]
        assert image & 0x10000
        assert m["RF"] == 0


def test_nmi_blocking_and_mcip() -> None:
    """6.7.1 and 15.3.1.2: NMI blocks NMIs, #MC sets MCIP; no other vector touches either."""
    for vector in VECTORS.values():
        for blocked in (0, 1):
            m = machine(user=True, NMI_BLOCKED=blocked, MCG_STATUS=blocked)
            m.deliver(Gate(vector, HANDLER, IST), 0)
            assert m["NMI_BLOCKED"] == (1 if vector is NMI else blocked)
            assert m["MCG_STATUS"] == (blocked | 4 if vector is MC else blocked)


def test_shadow_of_mov_ss_ends() -> None:
    """6.8.3: it covers the next instruction.  If that faults, the handler's first is not covered."""
    m = machine(user=False, SHADOW=1)
    m.deliver(Gate(GP, HANDLER, 0), 0)
    assert m["SHADOW"] == 0


def test_what_the_manuals_say_of_vectors() -> None:
    """SDM vol. 3, table 6-1: number, error code, class; APM vol. 2, 8.2 for #VC."""
    assert {v.name: (v.number, v.has_error_code, v.fault_class) for v in VECTORS.values()} == {
        "DB": (1, False, False), "NMI": (2, False, False), "UD": (6, False, True), "DF": (8, True, False),
        "NP": (11, True, True), "SS": (12, True, True), "GP": (13, True, True), "PF": (14, True, True),
        "MC": (18, False, False), "VC": (29, True, True),
    }  # fmt: skip
    assert BY_NUMBER[29] is VC


class TestRoots:
    """Delivery does not change CR3: the frame goes through the tables in force."""

    def test_user_root(self) -> None:
        m = machine(user=True, CR3=0x1000)
        m.deliver(Gate(NMI, HANDLER, IST))
        assert m["CR3"] == 0x1000

    @pytest.mark.parametrize("ist", [0, IST])
    def test_stack_not_in_user_tables(self, ist: int) -> None:
        m = machine(user=True, CR3=0x1000, stacks=BOTH & ~PageFlag.USER_ROOT)
        before = snapshot(m)
        with pytest.raises(Fault) as e:
            m.deliver(Gate(NMI, HANDLER, ist))
        top = IST_TOP if ist else RSP0_TOP
        assert (e.value.vector, e.value.reason, e.value.address) == (14, "not-in-user-tables", top - 8)
        assert e.value.error == 2
        assert not different(before, m)

    def test_kernel_root(self) -> None:
        m = machine(user=True, CR3=0, stacks=BOTH & ~PageFlag.USER_ROOT)
        m.deliver(Gate(NMI, HANDLER, IST))
        assert m["RIP"] == HANDLER

    def test_tss_not_mapped(self) -> None:
        m = machine(user=True, TR_BASE=0x5000)
        with pytest.raises(Fault) as e:
            m.deliver(Gate(NMI, HANDLER, IST))
        assert (e.value.vector, e.value.address) == (14, 0x5024 + 8 * (IST - 1))


class TestFaultsInDelivery:
    """SDM vol. 3, 6.15, tables 6-4 and 6-5; error codes 6.13."""

    GOOD: ClassVar = {v.name: Gate(v, HANDLER + 16 * v.number, IST) for v in VECTORS.values()}
    BAD = 0x0000_9000_0000_0000

    def gates(self, *without_ist: Vector, missing: tuple[Vector, ...] = ()) -> dict[str, Gate]:
        gates = self.GOOD | {v.name: Gate(v, HANDLER + 16 * v.number, 0) for v in without_ist}
        return {name: gate for name, gate in gates.items() if gate.vector not in missing}

    def fault(self, vector: Vector, error: int = 0, address: int = 0) -> Fault:
        return Fault(vector.number, error, "", address)

    def test_delivered(self) -> None:
        m = machine(user=False)
        assert m.raise_fault(self.fault(GP, 0x50), self.gates()) == "GP"
        assert (m["RIP"], words(m, 1)[0]) == (HANDLER + 16 * 13, 0x50)

    def test_page_fault_sets_cr2(self) -> None:
        m = machine(user=False)
        assert m.raise_fault(self.fault(PF, 3, 0xDEAD_0000), self.gates()) == "PF"
        assert (m["CR2"], words(m, 1)[0]) == (0xDEAD_0000, 3)

    def test_stack_fault_becomes_double_fault(self) -> None:
        """The stack is where no push can go: #SS, raised again while #SS is delivered on it; contributory
        after contributory is #DF, with error code 0, of the state before."""
        m = machine(user=False, RSP=self.BAD)
        before = snapshot(m)
        assert m.raise_fault(self.fault(SS), self.gates(SS)) == "DF"
        assert words(m, 6) == [0, before["RIP"], 0x10, 2, self.BAD, 0x18]
        assert m["RSP"] == IST_TOP - 48

    @pytest.mark.parametrize("first", [NP, SS, GP], ids=lambda v: v.name)
    def test_contributory_then_page_fault_is_serial(self, first: Vector) -> None:
        m = machine(user=False, RSP=0x5000)
        assert m.raise_fault(self.fault(first), self.gates(first)) == "PF"
        assert m["CR2"] == 0x5000 - 8
        assert words(m, 1) == [2]

    def test_page_fault_then_page_fault_is_double(self) -> None:
        m = machine(user=False, RSP=0x5000)
        assert m.raise_fault(self.fault(PF), self.gates(PF)) == "DF"

    def test_page_fault_then_contributory_is_double(self) -> None:
        m = machine(user=False, RSP=self.BAD)
        assert m.raise_fault(self.fault(PF), self.gates(PF)) == "DF"

    def test_benign_then_contributory_is_serial(self) -> None:
        """#UD is benign: the #SS that its delivery raises is delivered, with EXT in its error code."""
        m = machine(user=False, RSP=self.BAD)
        assert m.raise_fault(self.fault(UD), self.gates(UD)) == "SS"
        assert words(m, 1) == [1]

    def test_three_in_a_row_is_shutdown(self) -> None:
        """#GP, then #GP's delivery, then that of #DF."""
        m = machine(user=False, RSP=self.BAD)
        before = snapshot(m)
        assert m.raise_fault(self.fault(GP), self.gates(GP, DF)) == "shutdown"
        assert not different(before, m)

    def test_no_gate(self) -> None:
        """A gate that is not present: #NP of the vector, EXT and IDT set."""
        m = machine(user=False)
        assert m.raise_fault(self.fault(UD), self.gates(missing=(UD,))) == "NP"
        assert words(m, 1) == [6 << 3 | 3]
        m = machine(user=False)
        assert m.raise_fault(self.fault(GP), self.gates(missing=(GP,))) == "DF"
        m = machine(user=False)
        assert m.raise_fault(self.fault(GP), {}) == "shutdown"

    def test_half_a_frame(self) -> None:
        """The stack ends in the middle of the frame: registers stay, words already pushed are there."""
        m = machine(user=False, RSP=KERNEL_STACK + 16)
        before = snapshot(m)
        with pytest.raises(Fault) as e:
            m.deliver(Gate(NMI, HANDLER, 0))
        assert (e.value.vector, e.value.address) == (14, KERNEL_STACK - 8)
        assert not different(before, m)
        assert m.memory.peek(KERNEL_STACK + 8, 8) == 0x18

    def test_two_gates_of_one_vector(self) -> None:
        """A machine may be asked to deliver through another gate than last time."""
        m = machine(user=False)
        m.deliver(Gate(NMI, HANDLER, IST))
        m.deliver(Gate(NMI, HANDLER + 0x40, 0))
        assert (m["RIP"], m["RSP"]) == (HANDLER + 0x40, IST_TOP - 48 - 40)


def test_watch_is_told_of_the_frame() -> None:
    m = machine(user=False)
    seen: list[tuple[int, int, int]] = []
    m.watch = lambda address, size, value: seen.append((address, size, value))
    m.deliver(Gate(MC, HANDLER, IST))
    assert seen == [
        (IST_TOP - 8, 8, 0x18), (IST_TOP - 16, 8, KERNEL_TOP - 0x105), (IST_TOP - 24, 8, 2),
        (IST_TOP - 32, 8, 0x10),
        (IST_TOP - 40, 8, HANDLER + 0x123),
    ]  # fmt: skip
