# SPDX-License-Identifier: GPL-2.0-only
"""Stack traces that the running kernel takes inside its handlers, compared with what was really called.

What was called is found without the kernel's unwinder, and without the data it works with (ORC): the guest
is single-stepped from the delivery of an NMI to a place deep in its handler, and a return address is
whatever a CALL has pushed and no RET has taken.  Three ways in which the kernel tells the same (and
more, of a CPU that is on the main stack while others go on, in ``held``):

=====  ==============================================================================
WARN   the handler is made to call refcount_warn_saturate(), which warns; the trace is in the log
perf   a kprobe on printk, which the handler calls, with call chains as perf takes them
l      sysrq: an NMI for every other CPU, which shows the trace of what it interrupted there
=====  ==============================================================================
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atomicist.guest import obituary
from atomicist.guest.errors import GuestError
from atomicist.guest.linux import Linux
from atomicist.guest.rsp import SSTEP_ENABLE, SSTEP_NOIRQ, SSTEP_NOTIMER, Rsp
from atomicist.guest.under_test import SYSTEM_CALL, read_kernel, symbol
from atomicist.guest.walk import IDLE_STEPS
from atomicist.image.kernel import Kernel
from atomicist.isa.lift import Lifter

DEEP: Final = "unknown_nmi_error"
"""Where an NMI gets to that nobody has asked for."""
WARNS: Final = "refcount_warn_saturate"
USE_AFTER_FREE: Final = 3
"""Its second argument, enum refcount_saturation_type; the first is a refcount_t, which it writes to."""
OUTERMOST: Final = "entry_SYSCALL_64_after_hwframe"
"""What has called a system call in the end."""
PRINTS: Final = "_printk"
MAX_STEPS: Final = 20_000
MAX_INSN: Final = 15
LOG_LIMIT: Final = 30.0
CHAINS_MS: Final = 3000
NMIS: Final = 30
IN_SYSTEM_CALLS: Final = 8
"""Payload/init.c: workers that stay in the kernel."""
ASKED: Final = 5
"""Times that sysrq-l is asked for."""
KERNEL_CONTEXT: Final = 2**64 - 128
USER_CONTEXT: Final = 2**64 - 512
"""PERF_CONTEXT_KERNEL and _USER, marks among the addresses of a call chain (perf_event.h)."""
KERNEL_HALF: Final = 1 << 63

_TRACED: Final = re.compile(r"^ (?P<guess>\? )?(?P<name>[\w.]+)\+(?P<offset>0x[0-9a-f]+)/0x[0-9a-f]+")
_RIP: Final = re.compile(r"^RIP: (?P<cs>[0-9a-f]{4}):(?P<place>\S+)")
_MARK: Final = re.compile(r"^ <(/?#?[\w-]+)>$")


@dataclass(slots=True)
class Told:
    """What one way of taking traces showed: ``frames`` of the longest, ``samples`` how many there were,
    ``problems`` in words, none if all of them are full and correct."""

    way: str
    samples: int = 0
    frames: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class CallStack:
    """Return addresses, by what RSP and the word at it do: exact, whatever calls and returns look like."""

    def __init__(self) -> None:
        self._slots: list[tuple[int, int]] = []
        self._kept = 0

    def interrupted(self) -> None:
        """An event comes now, which will not return: whatever stack it uses, no call until now is over."""
        self._kept = len(self._slots)

    def step(self, rip: int, rsp: int, now_rip: int, now_rsp: int, top: Callable[[], int]) -> None:
        """The instruction at ``rip`` was executed; ``top`` reads the word at the stack's new top."""
        if now_rsp == rsp - 8 and not rip < now_rip <= rip + MAX_INSN:
            pushed = top()
            if rip < pushed <= rip + MAX_INSN:
                self._slots.append((now_rsp, pushed))
                return
        if now_rsp == rsp + 8:
            # A return, perhaps from elsewhere: entry code moves return addresses to save registers.
            for index in reversed(range(self._kept, len(self._slots))):
                if self._slots[index][1] == now_rip:
                    del self._slots[index:]
                    return
        # A switch to another stack is no return: only what lies below RSP on the same stack is over.
        while len(self._slots) > self._kept and 0 < now_rsp - self._slots[-1][0] <= MAX_STACK:
            self._slots.pop()

    @property
    def addresses(self) -> list[int]:
        """The return addresses, innermost first."""
        return [address for _, address in reversed(self._slots)]


MAX_STACK: Final = 16384


def follow(rsp: Rsp, stack: CallStack, until: int, entries: Collection[int] = ()) -> None:
    """Single-step to ``until``, and note calls and returns in ``stack``; at ``entries`` an event has come in
    the same step. Raises `GuestError` if it is not reached."""

    def top(at: int) -> Callable[[], int]:
        return lambda: rsp.words(at, 1)[0]

    rsp.single_step(SSTEP_ENABLE | SSTEP_NOTIMER | SSTEP_NOIRQ)
    rip, sp = rsp["RIP"], rsp["RSP"]
    for _ in range(MAX_STEPS):
        rsp.step()
        now_rip, now_sp = rsp["RIP"], rsp["RSP"]
        if now_rip in entries:
            between, _, _, between_sp = rsp.words(now_sp, 4)
            stack.step(rip, sp, between, between_sp, top(between_sp))
            stack.interrupted()
            rip, sp = between, between_sp
        stack.step(rip, sp, now_rip, now_sp, top(now_sp))
        rip, sp = now_rip, now_sp
        if rip == until:
            return
    raise GuestError(f"{until:#x} is not reached in {MAX_STEPS} instructions, but {rip:#x}")


def warn(linux: Linux) -> Told:
    """A WARN inside the handler of an NMI that interrupts a system call."""
    told = Told("WARN in an NMI handler")
    kernel, rsp = read_kernel(linux.kernel), linux.vm.rsp
    here, deep = symbol(kernel, SYSTEM_CALL), symbol(kernel, DEEP)
    rsp.only({here})
    linux.tell("hello")
    rsp.resume(LOG_LIMIT)
    rsp.only(set())
    back = rsp.words(rsp["RSP"], 1)[0]
    linux.vm.inject_nmi()
    rsp.single_step(SSTEP_ENABLE | SSTEP_NOTIMER)
    for _ in range(IDLE_STEPS):
        rsp.step()
        if rsp["RIP"] != here:
            break
    stack = CallStack()
    follow(rsp, stack, deep)
    truth = [*stack.addresses, back]
    rsp.set(RIP=symbol(kernel, WARNS), RDI=rsp["RSP"] - 1024, RSI=USE_AFTER_FREE)
    rsp.go()
    linux.vm.port.line(LOG_LIMIT)
    block = _logged(linux.log, WARNS, "---[ end trace")
    told.samples = 1
    told.problems += judge(told, kernel, block, truth)[0]
    if not told.frames or told.frames[-1] != OUTERMOST:
        told.problems.append(f"the trace ends at {told.frames[-1] if told.frames else 'once'}")
    if not any(place.startswith(f"{SYSTEM_CALL}+") for place in interrupted(block)):
        told.problems.append(f"where {SYSTEM_CALL} was interrupted is not shown")
    told.problems += unbalanced(block)
    return told


def judge(told: Told, kernel: Kernel, block: Sequence[str], truth: Sequence[int]) -> tuple[list[str], int]:
    """What is wrong with the frames of the trace in ``block``, lines of a log, where ``truth`` are the return
    addresses, and how many frames it has. Their names are noted in ``told`` if there are more than before."""
    shown = [m for line in block if (m := _TRACED.match(line)) and not m["guess"]]
    names = [m["name"] for m in shown]
    places = [addresses(kernel, m[0].strip()) for m in shown]
    found = []
    for index, wanted in enumerate(truth):
        if wanted not in (places[index] if index < len(places) else ()):
            name = names[index] if index < len(names) else "nothing"
            found.append(f"frame {index} is {name}; really called from {kernel.where(wanted)}")
            break
    found += [
        f"{name} is behind no CALL"
        for name, place in zip(names, places, strict=True)
        if not any(_behind_a_call(kernel, address) for address in place)
    ]
    if len(names) > len(told.frames):
        told.frames = names
    return found, len(names)


def addresses(kernel: Kernel, place: str) -> tuple[int, ...]:
    """What ``place``, a name as vfs_write+0xc2/0x300, may stand for: symbols are not unique."""
    name, _, offset = place.partition("/")[0].partition("+")
    return tuple(address + int(offset or "0", 16) for address in kernel.names.get(name, ()))


def interrupted(block: Sequence[str]) -> list[str]:
    """The places in the kernel at which the trace in ``block`` says that something was interrupted."""
    return [m["place"] for line in block if (m := _RIP.match(line)) and m["cs"] == "0010"]


def stacks(block: Sequence[str]) -> list[str]:
    """The stacks that the trace in ``block`` enters, in order."""
    return [m[1] for line in block if (m := _MARK.match(line)) and not m[1].startswith("/")]


def _logged(log: Path, first: str, last: str) -> list[str]:
    """The lines of ``log`` from the first "cut here" before ``first`` to one with ``last``."""
    end = time.monotonic() + LOG_LIMIT
    while time.monotonic() < end:
        lines = obituary.lines(log)
        start = next((i for i, line in enumerate(lines) if "WARNING:" in line and first in line), None)
        if start is not None:
            stop = next((i for i in range(start, len(lines)) if last in lines[i]), None)
            if stop is not None:
                return lines[start:stop]
        time.sleep(0.2)
    raise GuestError(f"no warning of {first} in the log within {LOG_LIMIT:g} s; log: {log}")


def unbalanced(lines: Sequence[str]) -> list[str]:
    """Stacks that a trace enters and does not leave."""
    marks = [m[1] for line in lines if (m := _MARK.match(line))]
    depth: list[str] = []
    for mark in marks:
        if not mark.startswith("/"):
            depth.append(mark)
        elif not depth or depth.pop() != mark[1:]:
            return [f"<{mark}> ends what has not begun"]
    return [f"<{mark}> is not left" for mark in depth]


def perf(linux: Linux) -> Told:
    """Call chains of perf from within NMI handlers."""
    told = Told("perf's call chains in NMI handlers")
    kernel = read_kernel(linux.kernel)
    linux.ask("quiet")
    linux.tell(f"chains {PRINTS} {_offset_for_a_probe(kernel, PRINTS)} {CHAINS_MS}")
    for _ in range(NMIS):
        linux.vm.inject_nmi()
        time.sleep(CHAINS_MS / 1000 / NMIS)
    answer = linux.vm.port.line(LOG_LIMIT)
    chains = [[int(a, 16) for a in chain] for chain in _json(answer)]
    for chain in chains:
        addresses = [a for a in chain if a >= KERNEL_HALF and a not in (KERNEL_CONTEXT, USER_CONTEXT)]
        names = [kernel.where(a - 1).partition("+")[0] for a in addresses]
        entry = next((i for i, n in enumerate(names) if n.startswith(ENTRY_NAMES)), None)
        if entry is None:
            continue
        told.samples += 1
        if len(names) > len(told.frames):
            told.frames = names
        told.problems += _chain_problems(kernel, addresses, names, entry)
    if not told.samples:
        told.problems.append(f"no call chain through an NMI's entry among {len(chains)}: {answer[:200]}")
    if OUTERMOST not in told.frames:
        told.problems.append("no call chain through an NMI's entry to a system call")
    told.problems = list(dict.fromkeys(told.problems))
    return told


def _offset_for_a_probe(kernel: Kernel, name: str) -> int:
    """The first instruction of ``name`` of two bytes or more. A kprobe's RIP is one byte behind its place:
    behind a PUSH of one byte, the unwinder would take it to be executed."""
    lifter, start = Lifter(), symbol(kernel, name)
    at = start
    while (insn := lifter.lift(at, kernel.read(at, MAX_INSN))).next == at + 1:
        at = insn.next
    return at - start


ENTRY_NAMES: Final = ("asm_exc_nmi", "atomic_ist_committed_nmi", "end_repeat_nmi")
RETPOLINE: Final = "__x86_indirect_thunk"
"""Before its RET a retpoline has the branch's target where the caller's return address belongs, and the
unwinder takes it for one, whatever entry was interrupted there: nothing behind it can be judged."""


def _json(text: str) -> list[list[str]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise GuestError(f"the guest's init takes no call chains: {text[:80]}")
    return found


def _chain_problems(kernel: Kernel, addresses: Sequence[int], names: Sequence[str], entry: int) -> list[str]:
    """What is wrong with a chain: all of it is behind a CALL, or interrupted; the last is in an entry."""
    found = []
    low, high = kernel.range("__entry_text_start", "__entry_text_end")
    thunk = len(addresses) > entry + 1 and kernel.where(addresses[entry + 1]).startswith(RETPOLINE)
    for index, address in enumerate(addresses[: entry + 2] if thunk else addresses):
        # Behind the entry of an event comes what it interrupted.
        interrupted = index == 0 or index == entry + 1 or names[index - 1].startswith("asm_")
        if not interrupted and not _behind_a_call(kernel, address):
            found.append(f"{kernel.where(address)} is behind no CALL")
    if "exc_nmi" not in names[:entry]:
        found.append("exc_nmi is not in the chain")
    if len(names) > entry + 1 and not thunk and not low <= addresses[-1] < high:
        found.append(f"the chain ends at {names[-1]}")
    return found


def _behind_a_call(kernel: Kernel, address: int) -> bool:
    """Whether a CALL ends at ``address``: E8 with a target in the kernel, or FF /2."""
    before = kernel.read(address - 7, 7)
    if before[2] == 0xE8:
        target = address + int.from_bytes(before[3:], "little", signed=True)
        if kernel.is_text(target):
            return True
    return any(before[7 - size] == 0xFF and before[8 - size] >> 3 & 7 == 2 for size in range(2, 8))


def sysrq(linux: Linux) -> Told:
    """sysrq-l, with the other CPUs in system calls."""
    told = Told("sysrq-l")
    linux.ask(f"start {IN_SYSTEM_CALLS}")
    for _ in range(ASKED):
        time.sleep(0.3)
        if linux.ask("write /proc/sysrq-trigger l") != "ok":
            raise GuestError(f"{linux.boot.name}: the guest does not take sysrq-l")
    linux.ask("stop")
    time.sleep(1)
    lines = obituary.lines(linux.log)
    starts = [i for i, line in enumerate(lines) if re.match(r"^NMI backtrace for cpu \d+$", line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        block = lines[start:end]
        rip = next((m for line in block if (m := _RIP.match(line))), None)
        if rip is None or rip["cs"] != "0010":
            continue  # user mode, or the CPU that asked
        names = [m["name"] for line in block if (m := _TRACED.match(line)) and not m["guess"]]
        if not names and rip["place"].startswith(OUTERMOST.removesuffix("_after_hwframe")):
            continue  # on the way in, where nothing has been called
        if rip["place"].startswith(RETPOLINE):
            continue
        told.samples += 1
        if len(names) > len(told.frames):
            told.frames = names
        if not names or names[-1] != OUTERMOST:
            told.problems.append(f"the trace of {rip['place']} ends at {names[-1] if names else 'once'}")
        told.problems += unbalanced(block)
    if not told.samples:
        told.problems.append("no CPU was in the kernel when it was asked")
    return told
