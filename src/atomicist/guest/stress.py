# SPDX-License-Identifier: GPL-2.0-only
"""The self-test of a booted kernel, quiet and under fire.

In the guest, workers on every CPU hold values in their registers, single-step themselves, and run into
hardware breakpoints and watchpoints in user and kernel mode (payload/); from outside come NMIs and
machine checks; and init reads the stack trace of every task in /proc.  At the end all counts are compared:

========  =====================================================================
#DB       every one is raised by an instruction, so the counts must be equal
#MC       the next is sent when the one before was counted: equal
NMI, slow the same: equal
NMI, fast sent without waiting; those that arrive while one waits are merged by the
          hardware, so no more are counted than were sent, and some are
========  =====================================================================
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from atomicist.guest import obituary
from atomicist.guest.errors import GuestError
from atomicist.guest.linux import Linux

ALL: Final = 7
"""Registers, single steps and breakpoints (payload/init.c)."""

ROUNDS_LEAST: Final = 20_000
"""Of the loop that holds registers; in a run of seconds, millions are made."""

COUNT_LIMIT: Final = 30.0
BURST: Final = 0.1
PAUSE: Final = 0.3
"""Seconds of NMIs in a row, then without: each is reported on the console, which takes all the time."""

PAIRS: Final = (
    ("traced", "traps", "single steps"), ("executed", "executions", "breakpoints in user mode"),
    ("written", "writes", "watchpoints in user mode"), ("called", "calls", "breakpoints in the kernel"),
)  # fmt: skip
"""What the guest did, and how many #DB the kernel counted of it."""

TAINTS: Final = {7: "it oopsed", 9: "it warned", 14: "a soft lockup"}
"""Bits of /proc/sys/kernel/tainted (Documentation/admin-guide/tainted-kernels.rst)."""

REGISTERS: Final = (
    "RAX", "RCX", "RDX", "RBX", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
    "RSP", "RFLAGS", "GSBASE", "the result of getpid",
)  # fmt: skip
"""What hold_registers() looks at, in its order."""


@dataclass(slots=True)
class Report:
    """What was sent and counted; ``problems`` in words, none if all is well."""

    boot: str
    seconds: float = 0.0
    rounds: int = 0
    debug: int = 0
    nmi_sent: int = 0
    nmi_counted: int = 0
    nmi_slow: int = 0
    mce_sent: int = 0
    mce_counted: int = 0
    stacks: int = 0
    """Stack traces of tasks that init has read in /proc."""
    counters: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be tried, in words."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


Tick = Callable[[Report], None]


def quiet(_: Report) -> None:
    """A listener that says nothing."""


def stress(linux: Linux, seconds: float, listener: Tick = quiet) -> Report:
    """Run the self-test for ``seconds`` with all events at once. Raises `GuestError` if the guest dies."""
    report = Report(linux.boot.name)
    started = time.monotonic()
    before = {name: linux.counts(name) for name in ("NMI", "MCE")}
    linux.ask(f"start {ALL}")
    cpus = int(linux.facts["cpus"])
    machine_checks = _has_machine_checks(linux)
    while True:
        _one_by_one(linux, report, cpus, machine_checks)
        end = time.monotonic() + BURST
        while time.monotonic() < end:
            linux.vm.inject_nmi()
            report.nmi_sent += 1
        time.sleep(PAUSE)
        _read_stacks(linux, report, cpus)
        report.seconds = time.monotonic() - started
        listener(report)
        if report.seconds >= seconds:
            break
    _settle(linux, report, before, cpus, linux.ask("stop"))
    report.seconds = time.monotonic() - started
    tainted = int(str(linux.ask("file /proc/sys/kernel/tainted") or "0").strip() or "0")
    report.problems += [
        f"the kernel says it is tainted: {what}" for bit, what in TAINTS.items() if tainted >> bit & 1
    ]
    report.problems += [f"in the log: {line.strip()[:100]}" for line in obituary.trouble(linux.log)[:5]]
    return report


NO_STACKS: Final = "/proc/PID/stack: not tried, it has no CONFIG_STACKTRACE"


def _read_stacks(linux: Linux, report: Report, cpus: int) -> None:
    """Every /proc/PID/stack, while tasks run and events arrive."""
    found = linux.ask("stacks")
    report.stacks += int(found["tasks"])
    if not found["tasks"] and NO_STACKS not in report.notes:
        report.notes.append(NO_STACKS)
    # With another CPU, a task may begin to run while its stack is read.
    wrong = stacks_wrong(found) if cpus == 1 else []
    report.problems += [problem for problem in wrong if problem not in report.problems]


ENDS: Final = re.compile(
    r"(ret_from_fork|entry_\w+|asm_\w+|atomic_ist_committed_\w+)\+0x[0-9a-f]+/0x[0-9a-f]+"
)
"""Where a task was created, or has entered the kernel: the last line of a trace that is full."""


def stacks_wrong(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with what init has read of every /proc/PID/stack, while no other CPU changed a task."""
    wrong = [f"/proc/PID/stack: a trace ends at {end}" for end in found["ends"] if not ENDS.fullmatch(end)]
    if found["odd"]:
        wrong.append(f"/proc/PID/stack: {found['odd']} lines are no frames")
    if found["frames"] < found["tasks"]:
        wrong.append(f"/proc/PID/stack: {found['frames']} frames of {found['tasks']} tasks")
    return wrong


def _has_machine_checks(linux: Linux) -> bool:
    # QEMU injects into AMD models only what AMD's kernel code takes for fatal.
    return not linux.boot.cpu.startswith("EPYC")


def _one_by_one(linux: Linux, report: Report, cpus: int, machine_checks: bool) -> None:
    """One event of a kind, counted before the next."""
    seen = linux.counts("NMI")
    linux.vm.inject_nmi()
    report.nmi_sent += 1
    report.nmi_slow += 1
    _until(linux, "NMI", [n + 1 for n in seen], report)
    if not machine_checks:
        return
    seen = linux.counts("MCE")
    linux.vm.inject_mce(0, broadcast=cpus > 1)
    report.mce_sent += 1
    _until(linux, "MCE", [n + 1 for n in seen], report)


def _until(linux: Linux, name: str, wanted: list[int], report: Report) -> None:
    end = time.monotonic() + COUNT_LIMIT
    while (now := linux.counts(name)) != wanted:
        if any(a > b for a, b in zip(now, wanted, strict=True)):
            report.problems.append(f"{name}: one was sent to each CPU, but counted are {now}, not {wanted}")
            return
        if time.monotonic() > end:
            raise GuestError(
                f"{linux.boot.name}: {name} sent, but counted are {now}, not {wanted}: it is lost"
            )


def _settle(
    linux: Linux, report: Report, before: Mapping[str, list[int]], cpus: int, sums: Mapping[str, Any]
) -> None:
    after = {name: linux.counts(name) for name in before}
    nmis = [b - a for a, b in zip(before["NMI"], after["NMI"], strict=True)]
    report.nmi_counted = sum(nmis)
    report.mce_counted = sum(after["MCE"]) - sum(before["MCE"])
    report.rounds = int(sums["rounds"])
    report.debug = sum(int(sums[counted]) for _, counted, _ in PAIRS) + int(sums["copies"])
    problems = report.problems
    if sums["changed"]:
        name = REGISTERS[int(sums["changed"]) - 1]
        problems.append(f"{name} of a user's loop was {int(sums['found']):#x} after an event")
    if sums["trouble"]:
        problems.append(f"a worker says: {sums['trouble']}")
    if report.rounds < ROUNDS_LEAST:
        problems.append(f"only {report.rounds} rounds of the register loop were made")
    for did, counted, what in PAIRS:
        if did == "called" and not sums[did]:
            report.notes.append("breakpoints in the kernel: not tried, it has no CONFIG_KPROBES")
        elif not sums[did] or sums[did] != sums[counted]:
            problems.append(f"{what}: {sums[did]} were made, #DB counted {sums[counted]}")
    if sums["copies"] < sums["copied"]:
        problems.append(f"copies into a watched word: {sums['copied']}, #DB counted only {sums['copies']}")
    if any(not report.nmi_slow <= n <= report.nmi_sent for n in nmis):
        problems.append(f"NMI: {report.nmi_sent} were sent, counted are {nmis}")
    if report.mce_counted != report.mce_sent * cpus:
        problems.append(f"#MC: {report.mce_sent} were sent to {cpus} CPUs, counted are {report.mce_counted}")
    report.counters = counters(linux)


def counters(linux: Linux) -> dict[str, str]:
    """The kernel's own counters of the atomic entry; none if it has none."""
    text = linux.ask("file /sys/kernel/debug/x86/atomic_ist")
    rows = (line.partition(":") for line in str(text or "").splitlines())
    return {key.strip(): value.strip() for key, colon, value in rows if colon}
