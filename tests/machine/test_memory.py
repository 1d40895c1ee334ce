# SPDX-License-Identifier: GPL-2.0-only
"""Every reason for which memory refuses an access, with the fault that it becomes; and what is not
refused."""

import pytest

from atomicist.crosscheck.states import CODE
from atomicist.machine.interpreter import Fault, ForeignGsBase, Machine
from atomicist.machine.memory import PAGE, Memory, Page, PageFlag, Refused, canonical
from tests.isa.engines import lifter, target_of
from tests.isa.ring0 import KERNEL_GSBASE, code, machine

K, U, W, X, P = (
    PageFlag.KERNEL_ROOT, PageFlag.USER_ROOT, PageFlag.WRITABLE, PageFlag.EXECUTABLE, PageFlag.USER_PAGE,
)  # fmt: skip
BOTH, KERNEL_ONLY, READ_ONLY, OF_USER, USER_ONLY = 0x10000, 0x20000, 0x30000, 0x40000, 0x50000
TEXT, DATA = 0x60000, 0x70000
PAGES = (
    Page(BOTH, bytes(range(256)) * 16, K | U | W),
    Page(BOTH + PAGE, bytes(PAGE), K | U | W),
    Page(KERNEL_ONLY, bytes(PAGE), K | W),
    Page(READ_ONLY, bytes(PAGE), K | U),
    Page(OF_USER, bytes(PAGE), K | U | W | P | X),
    Page(USER_ONLY, bytes(PAGE), U | W),
    Page(TEXT, bytes(PAGE), K | X),
    Page(CODE, bytes(PAGE), K | U | X),
)

REFUSALS = [
    # address, write, user root, reason, vector, error code (SDM vol. 3, 4.7: P 1, W/R 2, U/S 4, I/D 16)
    (1 << 47, False, False, "non-canonical", 13, 0),
    (0xFFFF_7FFF_FFFF_FFFF, True, False, "non-canonical", 13, 0),
    (0x1000, False, False, "unmapped", 14, 0),
    (0x1000, True, False, "unmapped", 14, 2),
    (KERNEL_ONLY, False, True, "not-in-user-tables", 14, 0),
    (KERNEL_ONLY + 8, True, True, "not-in-user-tables", 14, 2),
    (USER_ONLY, False, False, "not-in-user-tables", 14, 0),
    (OF_USER, False, False, "user-memory", 14, 1),
    (OF_USER, True, True, "user-memory", 14, 3),
    (READ_ONLY, True, False, "read-only", 14, 3),
    (READ_ONLY, True, True, "read-only", 14, 3),
]
ALLOWED = [
    (BOTH, False, False), (BOTH, True, True), (KERNEL_ONLY, True, False), (READ_ONLY, False, True),
    (USER_ONLY, True, True), (TEXT, False, False),
]  # fmt: skip


def accessing(line: str, *, user_root: bool, **registers: int) -> Machine:
    insn = lifter().lift(CODE, code(line))
    made = Machine(target_of({CODE: insn}, PAGES, KERNEL_GSBASE, user_root_bit=0x1000))
    made["RIP"], made["CS"], made["CR3"] = CODE, 0x10, 0x1000 if user_root else 0
    for name, value in registers.items():
        made[name] = value
    return made


@pytest.mark.parametrize(("address", "write", "user_root", "reason", "vector", "error"), REFUSALS)
def test_refused(address: int, write: bool, user_root: bool, reason: str, vector: int, error: int) -> None:
    with pytest.raises(Refused) as e:
        Memory(PAGES).check(address, write=write, user_root=user_root)
    assert (e.value.reason, e.value.address) == (reason, address)
    line = "mov [rbx], al" if write else "mov al, [rbx]"
    with pytest.raises(Fault) as f:
        accessing(line, user_root=user_root, RBX=address).step()
    assert (f.value.reason, f.value.address) == (reason, address)
    assert (f.value.vector, f.value.error) == (vector, error)


@pytest.mark.parametrize(("address", "write", "user_root"), ALLOWED)
def test_allowed(address: int, write: bool, user_root: bool) -> None:
    Memory(PAGES).check(address, write=write, user_root=user_root)
    accessing("mov [rbx], al" if write else "mov al, [rbx]", user_root=user_root, RBX=address).step()


def test_all_reasons_have_a_specimen() -> None:
    assert {r[3] for r in REFUSALS} == {
        "non-canonical", "unmapped", "not-in-user-tables", "user-memory", "read-only",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "vector"),
    [
        # SDM vol. 3, 6.15 (#SS, #GP): by the stack segment, that is RSP or RBP as base without override,
        # #SS(0)
        ("mov rax, [rbx]", 13), ("mov rax, [rsp]", 12), ("mov [rsp+rcx], rax", 12), ("mov rax, [rbp-8]", 12),
        ("mov rax, [rcx+rbp]", 13), ("mov rax, [rbp+rcx]", 12), ("push rax", 12), ("pop rax", 12),
        ("ret", 12),
        ("call .+16", 12), ("leave", 12), ("pushfq", 12), ("popfq", 12), ("push [rbx]", 13),
        ("pop [rbx]", 12),
        ("mov rax, [r12]", 13), ("add [rbx], rax", 13), ("rep movsq", 13), ("stosb", 13),
        ("mov rax, gs:[rbp]", 13),
        ("verw word ptr [rbx]", 13), ("mov word ptr [rsp], ss", 12), ("xchg [rbp], rax", 12),
    ],
)  # fmt: skip
def test_not_canonical_by_segment(line: str, vector: int) -> None:
    bad = 0x0000_9000_0000_0000
    registers = dict.fromkeys(("RBX", "RSP", "RBP", "R12", "RSI", "RDI"), bad) | {"RCX": 4}
    m = accessing(line, user_root=False, **registers)
    m["GSBASE"] = m.target.kernel_gsbase
    if "gs:" in line:
        m["RBP"] = bad - m.target.kernel_gsbase
    before = list(m.registers)
    with pytest.raises(Fault) as e:
        m.step()
    assert (e.value.vector, e.value.error, e.value.reason) == (vector, 0, "non-canonical")
    assert m.registers == before


def test_crossing_a_page() -> None:
    """#PF names the first byte that is refused; nothing is written before both pages are seen to be there."""
    m = accessing("mov [rbx], rax", user_root=False, RBX=BOTH + 2 * PAGE - 3, RAX=(1 << 64) - 1)
    with pytest.raises(Fault) as e:
        m.step()
    assert (e.value.address, e.value.error) == (BOTH + 2 * PAGE, 2)
    assert m.memory.peek(BOTH + 2 * PAGE - 3, 3) == 0
    m = accessing("mov [rbx], rax", user_root=False, RBX=BOTH + PAGE - 3, RAX=0x1122_3344_5566_7788)
    m.step()
    assert m.memory.peek(BOTH + PAGE - 3, 8) == 0x1122_3344_5566_7788
    # The low end is looked at first.
    m = accessing("mov rax, [rbx]", user_root=False, RBX=BOTH - 4)
    with pytest.raises(Fault) as e:
        m.step()
    assert e.value.address == BOTH - 4


@pytest.mark.parametrize(
    ("rip", "user_root", "vector", "error"),
    [
        (0x1000, False, 14, 16),  # not mapped
        (TEXT, True, 14, 16),  # not in the user's tables
        (BOTH, False, 14, 17),  # not executable
        (OF_USER, False, 14, 17),  # user memory: SMEP
        (1 << 47, False, 13, 0),  # not canonical
    ],
)
def test_fetch_refused(rip: int, user_root: bool, vector: int, error: int) -> None:
    m = accessing("nop", user_root=user_root, RIP=rip)
    with pytest.raises(Fault) as e:
        m.step()
    assert (e.value.vector, e.value.error, e.value.reason, e.value.address) == (vector, error, "fetch", rip)


def test_fetchable() -> None:
    memory = Memory(PAGES)
    assert memory.fetchable(TEXT, user_root=False)
    assert memory.fetchable(CODE, user_root=True)
    assert not memory.fetchable(TEXT, user_root=True)


def test_foreign_gsbase() -> None:
    m = accessing("mov rax, gs:[rbx]", user_root=False, GSBASE=BOTH, RBX=16)
    with pytest.raises(ForeignGsBase) as e:
        m.step()
    assert e.value.address == BOTH + 16
    # Without GS the same base is no concern; with it the base is named, not where it led.
    accessing("mov rax, [rbx]", user_root=False, GSBASE=BOTH, RBX=BOTH).step()
    with pytest.raises(ForeignGsBase):
        accessing("mov rax, gs:[rbx]", user_root=False, GSBASE=0x1000, RBX=16).step()


def test_words_and_bytes() -> None:
    memory = Memory(PAGES)
    assert memory.peek(BOTH + 1, 4) == 0x04030201
    memory.poke(BOTH + PAGE - 1, 2, 0xBEEF)
    assert (memory.peek(BOTH + PAGE - 1, 1), memory.peek(BOTH + PAGE, 1)) == (0xEF, 0xBE)
    assert memory.word(BOTH) == 0x0706050403020100
    assert memory.word(BOTH + 4) is None
    assert memory.word(0x1000) is None
    assert memory.flags(0x1000) is None
    assert memory.flags(READ_ONLY + 5) == K | U


def test_canonical() -> None:
    for address in (0, (1 << 47) - 1, 0xFFFF_8000_0000_0000, (1 << 64) - 1):
        assert canonical(address)
    for address in (1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63):
        assert not canonical(address)


def test_scratch() -> None:
    m = machine("nop")
    assert not m.scratch(0x1000)
    assert not m.scratch(CODE)
    scratch = Machine(target_of({}, (Page(0, bytes(PAGE), K | W | PageFlag.SCRATCH),), 0))
    assert scratch.scratch(0x10)
