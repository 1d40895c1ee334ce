# SPDX-License-Identifier: GPL-2.0-only
"""Delivery and IRET as QEMU's processor does them, compared with our microcode in the same state.

Where QEMU does not do what the manuals say, the microcode keeps to the manuals; each such difference is a
row of `KNOWN`, and is asserted, so that it is noticed when QEMU changes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from atomicist.guest.errors import GuestError, GuestGone
from atomicist.guest.qemu import Hardware, Vm
from atomicist.isa.registers import FLAG_BITS
from tests.guest import bare
from tests.guest.bare import KERNEL, USER, Bare

KNOWN = {
    "ss-null": "SDM vol. 3, 6.14.4: SS is set to NULL if the privilege changes."
    " QEMU does it for every stack switch, also by IST from ring 0.",
    "iret-fault": "SDM vol. 3, 6.7.1: NMIs are unblocked by the IRET instruction, even if it faults."
    " QEMU unblocks only behind an IRET that succeeds.",
    "mov-ss": "SDM vol. 3, 6.8.3: behind MOV SS NMIs too are held off for one instruction."
    " QEMU holds off only INTR.",
    "priority": "SDM vol. 3, 6.9, table 6-2: machine checks (class 1) come before NMIs (class 5)."
    " QEMU takes the NMI first.",
    "iret-rip": "SDM vol. 2A, IRET: #GP(0) if the return instruction pointer is not canonical, or beyond"
    " the code segment's limit. QEMU loads it, or what fits of it, and faults at the fetch if at all.",
    "rf": "SDM vol. 3, 17.3.1.1: the image of RFLAGS that a fault-class exception pushes has RF set."
    " QEMU leaves it clear.",
}

ID, AC, RF, NT, OF, DF, IF, TF, SF, ZF, AF, PF, CF = (
    1 << FLAG_BITS[f][0]
    for f in ("ID", "AC", "RF", "NT", "OF", "DF", "IF", "TF", "SF", "ZF", "AF", "PF", "CF")
)
PLAIN = 0x202
ALL = ID | AC | OF | DF | IF | SF | ZF | AF | PF | CF | 2


def same(guest: Bare, *known: str) -> None:
    """Both engines agree but for the ``known`` differences, each of which must show."""
    found = {k: tuple(map(hex, v)) for k, v in guest.differences().items()}
    if "ss-null" in known:
        assert found.pop("SS") == ("0x0", "0x18"), KNOWN["ss-null"]
    if "rf" in known:
        key = next((k for k, (q, m) in found.items() if int(q, 16) ^ int(m, 16) == RF), None)
        assert key is not None, KNOWN["rf"]
        found.pop(key)
    assert not found


def enter(guest: Bare, selectors: tuple[int, int], flags: int = PLAIN, rsp: int = 0, **other: int) -> None:
    """To the small program in ring 3 or 0, on its stack, with recognisable registers."""
    top = guest.at["user_stack_top" if selectors is USER else "task_stack_top"]
    values = {name: 0xA70A_11C0_DE00_0000 | i for i, name in enumerate(("RAX", "RBX", "RCX", "RDX", "R15"))}
    guest.enter(guest.at["program"], rsp or top - 0x100, flags, selectors, **(values | other))
    same(guest)


@pytest.mark.parametrize("boundary", range(9))
@pytest.mark.parametrize("selectors", [USER, KERNEL], ids=["user", "kernel"])
@pytest.mark.parametrize("vector", ["NMI", "MC"])
def test_every_boundary_of_a_program(
    guest: Bare, vector: str, selectors: tuple[int, int], boundary: int
) -> None:
    """The frame, the stack and the registers, at each boundary; then the handler and its IRET."""
    enter(guest, selectors)
    for _ in range(boundary):
        guest.step()
    same(guest)
    guest.deliver(vector)
    same(guest, *(["ss-null"] if selectors is KERNEL else []))
    for _ in range(3):
        guest.step()
    assert guest.step() == ""
    same(guest)
    for _ in range(3):
        guest.step()
    same(guest)


@pytest.mark.parametrize("selectors", [USER, KERNEL], ids=["user", "kernel"])
@pytest.mark.parametrize("ist", [0, 1, 3])
@pytest.mark.parametrize("low", [0, 1, 7, 8, 15])
def test_alignment_and_stack(guest: Bare, low: int, ist: int, selectors: tuple[int, int]) -> None:
    """6.14.2: IST, RSP0 or the stack in use, each aligned down to 16."""
    guest.gate("NMI", ist)
    top = guest.at["user_stack_top" if selectors is USER else "task_stack_top"]
    enter(guest, selectors, rsp=top - 0x200 + low)
    at = guest.at
    for offset, name in ((4, "rsp0_stack_top"), (36, "nmi_stack_top"), (52, "mc_stack_top")):
        guest.write(at["tss"] + offset, (at[name] - 0x40 + low).to_bytes(8, "little"))
    guest.deliver("NMI")
    same(guest, *(["ss-null"] if selectors is KERNEL and ist else []))


@pytest.mark.parametrize("selectors", [USER, KERNEL], ids=["user", "kernel"])
@pytest.mark.parametrize(
    "flags", [2, IF | 2, ALL, DF | 2, AC | 2, NT | 2, RF | 2, ID | 2, 0x3000 | 2], ids=hex
)
def test_flags(guest: Bare, flags: int, selectors: tuple[int, int]) -> None:
    """6.12.1.3, 6.14: IF, TF, NT, RF are cleared; AC, DF, IOPL and the rest stay; the image has all."""
    enter(guest, selectors, flags)
    guest.deliver("NMI")
    same(guest, *(["ss-null"] if selectors is KERNEL else []))
    for _ in range(4):
        guest.step()
    same(guest)


@pytest.mark.parametrize("selectors", [USER, KERNEL], ids=["user", "kernel"])
def test_single_step(guest: Bare, selectors: tuple[int, int]) -> None:
    """#DB as a trap: behind the instruction, with TF in the image and cleared for the handler."""
    enter(guest, selectors, PLAIN | TF)
    guest.advance()
    assert guest.where() == "DB"
    guest.model_step()
    guest.model.deliver(guest.gates["DB"])
    same(guest, *(["ss-null"] if selectors is KERNEL else []))


def test_nested_ss(guest: Bare) -> None:
    """6.14.4: a handler from user mode runs with SS NULL, and an event within pushes that."""
    enter(guest, USER)
    guest.deliver("NMI")
    guest.step()
    guest.deliver("MC")
    assert guest.rsp.words(guest.rsp["RSP"], 5)[4] == 0
    same(guest)


class TestBlocking:
    def test_blocked_until_iret_and_one_is_latched(self, guest: Bare) -> None:
        """6.7.1: of three NMIs that arrive while one is handled, one is taken, behind the IRET."""
        enter(guest, USER)
        guest.deliver("NMI")
        for _ in range(3):
            guest.pend("NMI")
        for _ in range(3):
            guest.step()
            assert guest.model["NMI_BLOCKED"]
            same(guest)
        taken = 0
        guest.step()  # IRET
        for _ in range(4):
            if guest.where() == "NMI":
                taken += 1
                guest.model.deliver(guest.gates["NMI"])
                same(guest)
                for _ in range(4):
                    guest.step()
            else:
                guest.advance()
                if guest.where() != "NMI":
                    guest.model_step()
        assert taken == 1
        same(guest)

    def test_unblocked_by_the_iret_of_another(self, guest: Bare) -> None:
        """The hole: a #MC within an NMI returns, and the next NMI lands on the first one's frame."""
        enter(guest, USER)
        guest.deliver("NMI")
        guest.step()
        guest.pend("NMI")
        guest.deliver("MC")
        same(guest)
        for _ in range(4):
            guest.step()
        assert not guest.model["NMI_BLOCKED"]
        if guest.where() != "NMI":
            guest.advance()
        guest.model.deliver(guest.gates["NMI"])
        same(guest)
        assert guest.rsp.words(guest.rsp["RSP"], 1) == [guest.stub(2) + 1]

    @pytest.mark.parametrize("vector", ["MC", "DB"])
    def test_others_do_not_block(self, guest: Bare, vector: str) -> None:
        enter(guest, USER, PLAIN | (TF if vector == "DB" else 0))
        if vector == "DB":
            guest.advance()
            guest.model_step()
            guest.model.deliver(guest.gates["DB"])
        else:
            guest.deliver(vector)
        assert not guest.model["NMI_BLOCKED"]
        guest.deliver("NMI")
        assert guest.where() == "NMI"
        same(guest)

    def test_a_faulting_iret(self, guest: Bare) -> None:
        enter(guest, USER)
        guest.deliver("NMI")
        guest.frame(guest.at["program"], 0, PLAIN, guest.at["user_stack_top"], 0x2B)
        guest.set(RIP=guest.at["go"], RSP=guest.at["frames"] + 0x800)
        assert guest.step() == guest.where() == "GP"
        assert not guest.model["NMI_BLOCKED"]
        guest.pend("NMI")
        guest.advance()
        assert guest.where() != "NMI", KNOWN["iret-fault"]

    def test_behind_mov_ss(self, guest: Bare) -> None:
        enter(guest, KERNEL, RAX=0x18)
        guest.set(RIP=guest.at["shadow"])
        guest.step()
        assert guest.rsp["RIP"] == guest.at["shadow"] + 2
        assert guest.model["SHADOW"]
        guest.pend("NMI")
        guest.advance()
        assert guest.where() == "NMI", KNOWN["mov-ss"]


class TestMachineCheck:
    def test_mcip(self, guest: Bare) -> None:
        """15.3.1.2: MCIP is set at delivery, and no other vector sets it; software clears it."""
        enter(guest, KERNEL)
        for vector, wanted in (("NMI", 0), ("MC", 4)):
            guest.deliver(vector)
            back = guest.rsp["RIP"]
            guest.set(RIP=guest.at["read_msr"], RCX=0x17A)
            now = guest.advance()
            guest.model_step()
            # HMP mce sets RIPV beside it, as a bank would
            assert (now["RAX"] & 4, guest.model["RAX"] & 4) == (wanted, wanted)
            guest.set(RIP=back)
        guest.set(RIP=guest.at["write_msr"], RAX=0, RCX=0x17A, RDX=0)
        guest.step()
        assert not guest.model["MCG_STATUS"]
        guest.deliver("MC")
        assert guest.where() == "MC"

    def test_before_an_nmi(self, guest: Bare) -> None:
        enter(guest, USER)
        guest.pend("NMI")
        guest.pend("MC")
        guest.advance()
        assert guest.where() == "NMI", KNOWN["priority"]
        guest.advance()
        assert guest.where() == "MC"

    def test_while_one_is_in_progress(self) -> None:
        """15.3.1.2: with MCIP set the processor shuts down; QEMU resets it."""
        vm = bare.start()
        try:
            guest = Bare(vm)
            enter(guest, USER)
            guest.deliver("MC")
            with contextlib.suppress(GuestError):  # the connections may be gone before an answer
                guest.pend("MC")
                guest.advance()
            with pytest.raises(GuestGone, match="reset"):
                vm.wait(30)
        finally:
            vm.end()


USER_RIP = 0x40_0000
BAD_IRETS = {
    "null CS": (USER_RIP, 0, PLAIN, 0x5000, 0x2B),
    "CS that is data": (USER_RIP, 0x2B, PLAIN, 0x5000, 0x2B),
    "CS beyond the table": (USER_RIP, 0xF3, PLAIN, 0x5000, 0x2B),
    "CS of ring 3 that is ring 0's": (USER_RIP, 0x13, PLAIN, 0x5000, 0x2B),
    "SS of ring 0": (USER_RIP, 0x33, PLAIN, 0x5000, 0x18),
    "null SS for ring 3": (USER_RIP, 0x33, PLAIN, 0x5000, 0x3),
    "SS that is code": (USER_RIP, 0x33, PLAIN, 0x5000, 0x33),
    "SS beyond the table": (USER_RIP, 0x33, PLAIN, 0x5000, 0xF3),
}
BAD_RIPS = {
    "not canonical": (0x0000_8000_0000_0000, 0x33, PLAIN, 0x5000, 0x2B),
    "not canonical, to ring 0": (0x8000_0000_0000_0000, 0x10, PLAIN, 0x5000, 0x18),
    "beyond 4 GiB in 32-bit code": (0x1_0000_0000, 0x23, PLAIN, 0x5000, 0x2B),
}


@pytest.mark.parametrize("name", BAD_IRETS)
def test_bad_iret(guest: Bare, name: str) -> None:
    """#GP with the selector in its error code, in the state that IRET found (vol. 2A, IRET)."""
    guest.set(RIP=guest.at["go"], RSP=guest.at["frames"] + 0x800)
    guest.frame(*BAD_IRETS[name])
    raised = guest.step()
    assert (raised, guest.where()) == ("GP", "GP")
    same(guest, "rf")


@pytest.mark.parametrize("name", BAD_RIPS)
def test_bad_iret_rip(guest: Bare, name: str) -> None:
    guest.set(RIP=guest.at["go"], RSP=guest.at["frames"] + 0x800)
    guest.frame(*BAD_RIPS[name])
    before = guest.at["go"]
    assert guest.step() == "GP"
    assert guest.model.memory.peek(guest.model["RSP"] + 8, 8) == before
    rip, selector, *_ = BAD_RIPS[name]
    assert guest.rsp["RIP"] == (rip & 0xFFFF_FFFF if selector == 0x23 else rip), KNOWN["iret-rip"]


def test_iret_with_nt(guest: Bare) -> None:
    """Vol. 2A: with NT set, #GP(0) in 64-bit mode."""
    enter(guest, KERNEL, PLAIN | NT)
    guest.set(RIP=guest.at["go"], RSP=guest.at["frames"] + 0x800)
    assert (guest.step(), guest.where()) == ("GP", "GP")
    same(guest, "rf")


def test_double_fault(guest: Bare) -> None:
    """6.15: a stack that no push can reach: #GP, then #SS while it is delivered, is #DF with error code 0."""
    enter(guest, KERNEL)
    guest.frame(*BAD_IRETS["null CS"])
    guest.gate("GP", 5)
    guest.write(guest.at["tss"] + 68, (0x0000_9000_0000_0000).to_bytes(8, "little"))
    guest.set(RIP=guest.at["go"], RSP=guest.at["frames"] + 0x800)
    assert (guest.step(), guest.where()) == ("DF", "DF")
    same(guest, "ss-null")


def test_every_difference_is_asserted() -> None:
    """The table has no row that no test looks at."""
    text = Path(__file__).read_text(encoding="utf-8")
    for name in KNOWN:
        assert text.count(f'"{name}"') >= 2, name


def test_no_guest() -> None:
    with pytest.raises(GuestError, match="there is no such file"):
        Vm(Hardware(bare.HERE / "nothing"), bare.HERE / "log").__enter__()
