# SPDX-License-Identifier: GPL-2.0-only
"""What is called wrong in a trace of a CPU whose stack is known exactly, and in /proc/PID/stack."""

from typing import cast

import pytest

from atomicist.guest.held import Held, wrong
from atomicist.guest.stress import stacks_wrong
from atomicist.guest.traces import Told
from atomicist.image.kernel import Kernel

NAMES = {
    "perf_bp_event": 0x1000, "notify_die": 0x2000, "exc_debug": 0x3000, "atomic_ist_committed_db": 0x4000,
    "__x64_sys_getppid": 0x5000, "do_syscall_64": 0x6000, "entry_SYSCALL_64_after_hwframe": 0x7000,
    "other": 0x8000,
}  # fmt: skip
NO_CALL = 0x99


class Symbols:
    """A kernel with those names, of which one has two; it calls everywhere but at an offset."""

    names = {name: (address,) for name, address in NAMES.items()} | {"__do_sys_getppid": (0x9000, 0x5000)}

    def where(self, va: int) -> str:
        name = next(n for n, a in NAMES.items() if a == va & -0x1000)
        return f"{name}+{va & 0xFFF:#x}" if va & 0xFFF else name

    def read(self, va: int, size: int) -> bytes:
        return b"\x90" * size if va + 7 & 0xFFF == NO_CALL else b"..\xe8\0\0\0\0"

    def is_text(self, _va: int) -> bool:
        return True


HELD = Held((0x2010, 0x3010, 0x4010, 0x6010, 0x7010), (0x1000, 0x5000), 0x1000, 29)
TRACE = """\
RIP: 0010:perf_bp_event+0x0/0xa0
Call Trace:
 <IST>
 notify_die+0x10/0xa0
 ? other+0x10/0x20
 exc_debug+0x10/0x170
 atomic_ist_committed_db+0x10/0x1f1
RIP: 0010:__do_sys_getppid+0x0/0x30
 </IST>
 <TASK>
 do_syscall_64+0x10/0x50
 entry_SYSCALL_64_after_hwframe+0x10/0xd8
RIP: 0033:0x446f79
 </TASK>
"""


def problems(trace: str, held: Held = HELD) -> list[str]:
    kernel = cast("Kernel", Symbols())
    return wrong(Told("test"), kernel, trace.splitlines(), held, ("IST", "TASK"))


def test_a_trace_that_is_full_and_correct() -> None:
    assert problems(TRACE) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            " exc_debug+0x10/0x170\n",
            "",
            "frame 1 is atomic_ist_committed_db; really called from exc_debug+0x10",
        ),
        (" exc_debug+0x10", " exc_debug+0x20", "frame 1 is exc_debug; really called from exc_debug+0x10"),
        (" exc_debug+0x10", " ? exc_debug+0x10", "frame 1 is atomic_ist_committed_db"),
        (" do_sys", " other+0x10/0x20\n do_sys", "6 frames are shown, 5 calls were made"),
        (" </TASK>", f" other+{NO_CALL:#x}/0x200\n </TASK>", "other is behind no CALL"),
        ("RIP: 0010:__do_sys_getppid+0x0/0x30\n", "", "as interrupted are shown perf_bp_event+0x0/0xa0;"),
        ("getppid+0x0", "getppid+0x1", "really were perf_bp_event, __x64_sys_getppid"),
        (" </IST>\n <TASK>\n", "", "it leads through the stacks IST"),
        ("IST>", "IST-PAD>", "it leads through the stacks IST-PAD, TASK"),
        (" </IST>\n", "", "<IST> is not left"),
    ],
)
def test_whatever_is_missing_or_too_much_is_said(old: str, new: str, says: str) -> None:
    assert old in TRACE
    found = problems(TRACE.replace(old, new))
    assert any(says in problem for problem in found), found


def test_the_truth_begins_at_a_system_call() -> None:
    assert problems(TRACE, Held(HELD.calls[:-1], HELD.interrupted, HELD.at, HELD.pid)) == [
        "5 frames are shown, 4 calls were made",
        "single steps have not seen a call in entry_SYSCALL_64_after_hwframe",
    ]


GOOD = {"tasks": 2, "empty": 1, "frames": 9, "odd": 0, "ends": ["ret_from_fork+0x22/0x30"]}


def test_stacks_of_tasks_are_full_where_there_are_any() -> None:
    assert stacks_wrong(GOOD) == []
    assert stacks_wrong({**GOOD, "odd": 3}) == ["/proc/PID/stack: 3 lines are no frames"]
    assert stacks_wrong({**GOOD, "frames": 1}) == ["/proc/PID/stack: 1 frames of 2 tasks"]
    assert stacks_wrong({**GOOD, "ends": [*GOOD["ends"], "vfs_read+0x1/0x2"]}) == [  # type: ignore[misc]
        "/proc/PID/stack: a trace ends at vfs_read+0x1/0x2"
    ]
