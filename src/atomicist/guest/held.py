# SPDX-License-Identifier: GPL-2.0-only
"""A CPU held deep in a handler on the main stack, while the others go on: what do they see of it?

CPU 1 runs into a breakpoint on a system call.  It is single-stepped from the system call's entry to a
place deep in the handler of #DB, where perhaps a machine check comes, and on to a place deep in its handler;
there an instruction is replaced by a jump to itself, and all CPUs go on.  At the end the instruction is put
back, the handlers return, and the self-test must find nothing.

================  ======================================================================
sysrq-l           an NMI on the main stack shows the trace of what it interrupted there: all
                  return addresses, what each event interrupted, and the stacks, in order
/proc/PID/stack   of a task that runs on another CPU nothing is shown, whatever stack it is on
                  (arch/x86/include/asm/unwind.h, task_on_another_cpu()); of all others, all
================  ======================================================================
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import contains
from typing import Any, Final

from atomicist.guest import obituary
from atomicist.guest.errors import GuestError
from atomicist.guest.linux import Boot, Linux
from atomicist.guest.rsp import SSTEP_ENABLE, SSTEP_NOTIMER, Rsp
from atomicist.guest.stress import PAIRS, stacks_wrong, stress
from atomicist.guest.traces import (
    LOG_LIMIT,
    OUTERMOST,
    CallStack,
    Told,
    addresses,
    follow,
    interrupted,
    judge,
    stacks,
    unbalanced,
)
from atomicist.guest.under_test import ATOMIC, is_legacy, read_kernel, symbol
from atomicist.guest.walk import IDLE_STEPS
from atomicist.image.kernel import Kernel

CHAINS: Final = (("DB",), ("DB", "MC"))
"""Events, each in the handler of the one before."""
DEEP: Final = {"DB": "perf_bp_event", "MC": "mce_gen_pool_add"}
"""Where their handlers get to."""
ENTRY: Final = {"DB": "asm_exc_debug", "MC": "asm_exc_machine_check"}
LEGACY_STACKS: Final = {"DB": "#DB", "MC": "#MC"}
MAIN_STACK: Final = "IST"
TASK_STACK: Final = "TASK"
"""What the kernel calls them in its traces."""

BOOT: Final = Boot("smp2", "irqaffinity=0 tsc=reliable", cpus=2)
"""So that CPU 0 does not wait for CPU 1: for the serial port's interrupts, nor to find out whether all CPUs
have the same time."""
CPU: Final = 1
BREAKPOINTS: Final = 4
"""Payload/init.c: a worker with breakpoints, one of them on this system call."""
SYSTEM_CALL: Final = "__x64_sys_getppid"
NUMBER: Final = 110
FROM_USER: Final = "entry_SYSCALL_64"
MAX_CALLS: Final = 2000
JUMP_TO_ITSELF: Final = b"\xeb\xfe"
TRACE_LIMIT: Final = LOG_LIMIT
SELF_TEST: Final = 2.0


@dataclass(frozen=True, slots=True)
class Held:
    """What CPU 1 is really doing: return addresses, and the addresses that the events interrupted, innermost
    first; where it is held, by which task."""

    calls: tuple[int, ...]
    interrupted: tuple[int, ...]
    at: int
    pid: int


@contextlib.contextmanager
def hold(linux: Linux, kernel: Kernel, events: tuple[str, ...], told: Told) -> Iterator[Held]:
    """Hold CPU 1 of the running guest in the handlers of ``events``, and let it go again; what then is not as
    it should be is added to ``told``. Raises `GuestError` if it does not get there."""
    rsp = linux.vm.rsp
    (pid,) = linux.ask(f"start {BREAKPOINTS} {CPU}")
    rsp.interrupt()
    stack, places = CallStack(), []
    _to_the_entry(rsp, symbol(kernel, FROM_USER))
    for event in events:
        places.append(_deliver(linux, kernel, stack, event))
        follow(rsp, stack, symbol(kernel, DEEP[event]))
    at = rsp["RIP"]
    instruction = rsp.read(at, len(JUMP_TO_ITSELF))
    rsp.write(at, JUMP_TO_ITSELF)
    rsp.go()
    yield Held(tuple(stack.addresses), (at, *reversed(places)), at, pid)
    rsp.interrupt()
    rsp.thread(CPU + 1)  # the other may have the user's page tables
    rsp.write(at, instruction)
    rsp.go()
    told.problems += _sums(linux.ask("stop"))


def _to_the_entry(rsp: Rsp, entry: int) -> None:
    """Let the guest run until CPU 1 enters the system call."""
    for _ in range(MAX_CALLS):
        rsp.only({entry})
        stop = rsp.resume()
        rsp.only(set())
        if stop.thread == CPU + 1 and rsp["RAX"] == NUMBER:
            return
        rsp.step()
    raise GuestError(f"the worker on CPU {CPU} does not make the system call {NUMBER}")


def _deliver(linux: Linux, kernel: Kernel, stack: CallStack, event: str) -> int:
    """Have ``event`` come on the stopped CPU 1; the address that it interrupts."""
    rsp = linux.vm.rsp
    entry = symbol(kernel, ENTRY[event] + ("" if is_legacy(kernel, rsp) else ATOMIC))
    if event == "DB":  # from the guest's own breakpoint
        follow(rsp, stack, entry, {entry})
    else:
        linux.vm.inject_mce(CPU, local=True)
        before = rsp["RIP"], rsp["RSP"]
        rsp.single_step(SSTEP_ENABLE | SSTEP_NOTIMER)
        for _ in range(IDLE_STEPS):
            rsp.step()
            if rsp["RIP"] != before[0]:
                break
        now = rsp["RIP"], rsp["RSP"]
        if now[0] != entry:
            raise GuestError(
                f"{event} does not come at {kernel.where(before[0])}, but {kernel.where(now[0])}"
            )
        stack.interrupted()
        stack.step(*before, *now, lambda: rsp.words(now[1], 1)[0])
    return rsp.words(rsp["RSP"], 1)[0]


def _sums(sums: Mapping[str, Any]) -> list[str]:
    found = [f"a worker says: {sums['trouble']}"] if sums["trouble"] else []
    for did, counted, what in PAIRS:
        if sums[did] != sums[counted]:
            found.append(f"{what}: {sums[did]} were made, #DB counted {sums[counted]}")
    if not sums["calls"]:
        found.append("no breakpoint in the kernel was hit")
    return found


def _well(linux: Linux, told: Told) -> None:
    told.problems += [f"afterwards: {problem}" for problem in stress(linux, SELF_TEST).problems]


def sysrq(linux: Linux) -> Told:
    """sysrq-l while CPU 1 is in a handler on the main stack."""
    told = Told("sysrq-l of a CPU in the handler of #DB, and of #MC in that")
    kernel = read_kernel(linux.kernel)
    legacy = is_legacy(kernel, linux.vm.rsp)
    linux.vm.rsp.go()
    for events in CHAINS:
        seen = len(_traces(linux))
        with hold(linux, kernel, events, told) as held:
            if linux.ask("write /proc/sysrq-trigger l") != "ok":
                raise GuestError(f"{linux.boot.name}: the guest does not take sysrq-l")
            block = _next_trace(linux, seen)
        told.samples += 1
        expected = [LEGACY_STACKS[e] for e in reversed(events)] if legacy else [MAIN_STACK]
        told.problems += [
            f"{' in '.join(reversed(events))}: {problem}"
            for problem in wrong(told, kernel, block, held, [*expected, TASK_STACK])
        ]
    _well(linux, told)
    return told


def wrong(told: Told, kernel: Kernel, block: Sequence[str], held: Held, through: Sequence[str]) -> list[str]:
    """What is wrong with the trace in ``block``, lines of a log, where ``held`` is the truth; it should lead
    ``through`` these stacks. Its frames are noted in ``told``."""
    found, count = judge(told, kernel, block, held.calls)
    if count != len(held.calls):
        found.append(f"{count} frames are shown, {len(held.calls)} calls were made")
    if kernel.where(held.calls[-1]).partition("+")[0] != OUTERMOST:
        found.append(f"single steps have not seen a call in {OUTERMOST}")
    shown = interrupted(block)
    places = [addresses(kernel, place) for place in shown]
    if len(places) != len(held.interrupted) or not all(map(contains, places, held.interrupted)):
        really = ", ".join(kernel.where(address) for address in held.interrupted)
        found.append(f"as interrupted are shown {', '.join(shown) or 'none'}; really were {really}")
    if stacks(block) != list(through):
        found.append(f"it leads through the stacks {', '.join(stacks(block)) or 'none'}")
    return found + unbalanced(block)


def _traces(linux: Linux) -> list[list[str]]:
    """The traces of CPU 1 that are complete in the log."""
    found: list[list[str]] = []
    lines = obituary.lines(linux.log)
    for start, line in enumerate(lines):
        if line == f"NMI backtrace for cpu {CPU}":
            end = next((i for i in range(start, len(lines)) if lines[i] == f" </{TASK_STACK}>"), None)
            if end is not None:
                found.append(lines[start : end + 1])
    return found


def _next_trace(linux: Linux, seen: int) -> list[str]:
    end = time.monotonic() + TRACE_LIMIT
    while time.monotonic() < end:
        found = _traces(linux)
        if len(found) > seen:
            return found[seen]
        time.sleep(0.2)
    raise GuestError(f"no trace of CPU {CPU} to the task's stack within {TRACE_LIMIT:g} s; log: {linux.log}")


def proc(linux: Linux) -> Told:
    """/proc/PID/stack of all tasks while CPU 1 is in a handler on the main stack."""
    told = Told("/proc/PID/stack beside such a CPU")
    kernel = read_kernel(linux.kernel)
    linux.vm.rsp.go()
    for events in CHAINS:
        with hold(linux, kernel, events, told) as held:
            shown = linux.ask(f"file /proc/{held.pid}/stack")
            found = linux.ask("stacks")
        if shown != "":
            told.problems.append(f"the task on CPU {CPU}, which runs, is shown at {shown!r:.200}")
        told.problems += stacks_wrong(found)
        told.samples += int(found["tasks"])
        told.frames = sorted(found["ends"])
    _well(linux, told)
    return told
