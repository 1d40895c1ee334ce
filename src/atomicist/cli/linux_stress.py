# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux stress``: one boot, and all events at random for as long as is asked for."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Final

from atomicist.cli import linux_guest, selection
from atomicist.cli.errors import FINDINGS, PASSED, UsageError
from atomicist.guest.linux import Linux
from atomicist.guest.stress import Report, stress
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean

SECONDS: Final = 60.0
SOAK: Final = 600


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_arguments(parser, SECONDS)


def add_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Add the options, with ``seconds`` as the default length of a self-test."""
    linux_guest.arguments(parser, several=True)
    parser.add_argument(
        "--seconds", type=float, default=seconds, metavar="S",
        help=f"length of the self-test of a boot (%(default)g; a soak: {SOAK})",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Stress; the exit status."""
    return run_boots(args, "stress", ("default",), "inject")


def run_boots(args: argparse.Namespace, verb: str, default: Sequence[str], following: str) -> int:
    """Run the self-test in every boot that is asked for; the status. ``following``: the verb after it."""
    if args.seconds <= 0:
        raise UsageError("--seconds must be more than 0")
    kernel, boots = linux_guest.image(args), linux_guest.boots(args, default)
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    progress = linux_guest.Progress(terminal)
    reports = []
    for boot in boots:
        progress(f"{boot.name}: booting", now=terminal.live)
        with Linux(kernel, boot, linux_guest.log(boot, verb)) as linux:

            def tick(report: Report) -> None:
                progress(
                    f"{report.boot}: {report.seconds:.0f} of {args.seconds:.0f} s, {report.nmi_sent} NMIs"
                    f" and {report.mce_sent} machine checks sent"
                )

            report = stress(linux, args.seconds, tick)
            linux.finish()
        progress.clear()
        reports.append(report)
        _show(terminal, report)
        if not report.good:
            terminal.say(f"    log: {clean(str(linux.log))}")
    if args.json:
        found = [dataclasses.asdict(r) for r in reports]
        Terminal(sys.stdout).data(json.dumps({"kernel": str(kernel), "boots": found}, indent=2) + "\n")
    good = all(r.good for r in reports)
    where = ("--kernel", str(args.kernel)) if args.kernel else (str(args.tree),)
    terminal.say(f"next: {selection.command('linux', following, *where)}")
    return PASSED if good else FINDINGS


def _show(terminal: Terminal, r: Report) -> None:
    terminal.say(
        f"{r.boot}: {'passed' if r.good else 'FAILED'}, {r.seconds:.0f} s: registers held for"
        f" {r.rounds} rounds; #DB {r.debug}, NMI {r.nmi_counted} of {r.nmi_sent} sent to each CPU,"
        f" #MC {r.mce_counted}",
        "green" if r.good else "bold red",
    )
    for problem in r.problems:
        terminal.say(f"    {clean(problem)}")
    for note in r.notes:
        terminal.say(f"    {clean(note)}", "dim")
    if r.counters:
        shown = ", ".join(f"{k} {v}" for k, v in r.counters.items() if v not in ("0", "0 0"))
        terminal.say(f"    {clean(shown)}", "dim")
