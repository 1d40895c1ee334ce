# SPDX-License-Identifier: GPL-2.0-only
"""What is taken for the truth about a stack trace, and what is called wrong in one."""

from typing import cast

from atomicist.guest.traces import CallStack, _chain_problems, unbalanced
from atomicist.image.kernel import Kernel


def run(*steps: tuple[int, int, int, int, int]) -> list[int]:
    """Steps as (RIP, RSP, RIP then, RSP then, the word at that RSP)."""
    stack = CallStack()
    for rip, rsp, now_rip, now_rsp, word in steps:
        stack.step(rip, rsp, now_rip, now_rsp, lambda word=word: word)  # type: ignore[misc]
    return stack.addresses


def test_a_call_pushes_and_a_return_takes() -> None:
    outer, inner = (0x1000, 0x800, 0x2000, 0x7F8, 0x1005), (0x2000, 0x7F8, 0x3000, 0x7F0, 0x2005)
    assert run(outer, inner) == [0x2005, 0x1005]
    assert run(outer, inner, (0x3000, 0x7F0, 0x2005, 0x7F8, 0)) == [0x1005]


def test_a_push_is_no_call() -> None:
    assert run((0x1000, 0x800, 0x1001, 0x7F8, 0x1001)) == []


def test_a_tail_call_leaves_the_return_address() -> None:
    outer = (0x1000, 0x800, 0x2000, 0x7F8, 0x1005)
    assert run(outer, (0x2000, 0x7F8, 0x5000, 0x7F8, 0x1005)) == [0x1005]


def test_a_retpoline_returns_elsewhere() -> None:
    outer, call = (0x1000, 0x800, 0x2000, 0x7F8, 0x1005), (0x2000, 0x7F8, 0x2010, 0x7F0, 0x2005)
    assert run(outer, call, (0x2014, 0x7F0, 0x9000, 0x7F8, 0)) == [0x1005]


def test_a_return_address_that_was_moved_is_taken() -> None:
    outer, call = (0x1000, 0x800, 0x2000, 0x7F8, 0x1005), (0x2000, 0x7F8, 0x3000, 0x7F0, 0x2005)
    assert run(outer, call, (0x3001, 0x780, 0x2005, 0x788, 0)) == [0x1005]


def test_a_switch_to_another_stack_is_no_return() -> None:
    outer = (0x1000, 0x800, 0x2000, 0x7F8, 0x1005)
    assert run(outer, (0x2000, 0x7F8, 0x2003, 0x90000, 0)) == [0x1005]


def test_an_event_on_a_stack_close_above_ends_no_call() -> None:
    """As the legacy stacks of #MC and #DB are."""
    outer, delivered = (0x1000, 0x800, 0x2000, 0x7F8, 0x1005), (0x2000, 0x7F8, 0x9000, 0x1FD8, 0)
    for known, wanted in ((True, [0x1005]), (False, [])):
        stack = CallStack()
        stack.step(*outer[:4], lambda: 0x1005)
        if known:
            stack.interrupted()
        stack.step(*delivered[:4], lambda: 0)
        assert stack.addresses == wanted


def test_a_stack_that_is_not_left_is_named() -> None:
    assert unbalanced([" <IST>", " <TASK>", " </TASK>"]) == ["<IST> is not left"]
    assert unbalanced([" <IST>", " </IST>", " <TASK>", " </TASK>"]) == []
    assert unbalanced([" <#DB>", " <TASK>", " </TASK>"]) == ["<#DB> is not left"]
    assert unbalanced([" </IST>"]) == ["</IST> ends what has not begun"]


DIRECT, INDIRECT = b"..\xe8\0\0\0\0", b".....\xff\xd0"
CALLS = {0x1100: DIRECT, 0x1200: DIRECT, 0x1300: INDIRECT, 0x2000: DIRECT}


class Text:
    """A kernel that calls before these addresses, and nowhere else."""

    def read(self, va: int, size: int) -> bytes:
        return CALLS.get(va + 7, b"\x90" * size)

    def range(self, _start: str, _end: str) -> tuple[int, int]:
        return 0x2000, 0x3000

    def is_text(self, _va: int) -> bool:
        return True

    def where(self, va: int) -> str:
        return "__x86_indirect_thunk_rax+0x10" if va == RETPOLINED else f"{va:#x}"


RETPOLINED = 0x1600


def problems(*chain: tuple[int, str]) -> list[str]:
    names = [name for _, name in chain]
    entry = names.index("asm_exc_nmi")
    return _chain_problems(cast("Kernel", Text()), [address for address, _ in chain], names, entry)


GOOD = (
    (0x1050, "_printk"), (0x1100, "exc_nmi"), (0x1200, "asm_exc_nmi"), (0x1055, "vfs_read"),
    (0x1300, "ksys_read"), (0x2000, "entry_SYSCALL_64_after_hwframe"),
)  # fmt: skip


def test_chains_are_behind_calls_and_end_in_an_entry() -> None:
    assert problems(*GOOD) == []
    assert problems(*GOOD[:3], (0x2010, "entry_SYSCALL_64")) == []
    assert problems(*GOOD[:3]) == []  # from user mode
    assert problems(*GOOD[:5]) == ["the chain ends at ksys_read"]
    assert problems(GOOD[0], *GOOD[2:3]) == ["exc_nmi is not in the chain"]
    assert problems(*GOOD[:4], (0x1056, "odd"), (0x1300, "x"))[0] == "0x1056 is behind no CALL"


def test_what_a_retpoline_hides_is_not_judged_but_what_is_before_it_is() -> None:
    """There the target of the branch lies where the caller's return address was."""
    hidden = (RETPOLINED, "__x86_indirect_thunk_rax"), (0x1700, "s_next")
    assert problems(*GOOD[:3], *hidden) == []
    assert problems(GOOD[0], *GOOD[2:3], *hidden) == ["exc_nmi is not in the chain"]
    assert problems(*GOOD[:3], (0x1055, "vfs_read"), hidden[1])[0] == "0x1700 is behind no CALL"
