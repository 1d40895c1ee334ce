# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux traces``: stack traces from inside the handlers, compared with what was called."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, Final

from atomicist.cli import linux_guest, selection
from atomicist.cli.errors import FINDINGS, PASSED
from atomicist.guest import held
from atomicist.guest.boots import BOOTS
from atomicist.guest.linux import Boot, Linux, by_name, named
from atomicist.guest.traces import Told, perf, sysrq, warn
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean

DEFAULT, SMP = by_name(BOOTS, ("default", "smp2"))
WAYS: Final[tuple[tuple[str, Boot, Callable[[Linux], Told]], ...]] = (
    ("WARN", DEFAULT, warn), ("perf", DEFAULT, perf), ("sysrq-l", SMP, sysrq),
    ("sysrq-l main stack", held.BOOT, held.sysrq), ("proc main stack", held.BOOT, held.proc),
)  # fmt: skip
"""The boot that each way of taking traces needs."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    linux_guest.which_kernel(parser)


def run(args: argparse.Namespace) -> int:
    """Take traces; the exit status."""
    kernel = linux_guest.image(args)
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    progress = linux_guest.Progress(terminal)
    found: list[dict[str, Any]] = []
    for entry in args.entry or [""]:
        for name, plain, way in WAYS:
            boot = named(plain, entry)
            progress(f"{boot.name}: {name}", now=terminal.live)
            with Linux(kernel, boot, linux_guest.log(boot, f"traces {name}")) as linux:
                told = way(linux)
            progress.clear()
            found.append({"boot": boot.name, **dataclasses.asdict(told)})
            _show(terminal, boot, told)
    if args.json:
        Terminal(sys.stdout).data(json.dumps({"kernel": str(kernel), "traces": found}, indent=2) + "\n")
    where = ("--kernel", str(args.kernel)) if args.kernel else (str(args.tree),)
    terminal.say(f"next: {selection.command('linux', 'inject', *where)}")
    return FINDINGS if any(row["problems"] for row in found) else PASSED


def _show(terminal: Terminal, boot: Boot, told: Told) -> None:
    verdict = "NOT as it was" if told.problems else "full and correct"
    terminal.say(
        f"{boot.name}: {told.way}: {told.samples} {'trace' if told.samples == 1 else 'traces'}, {verdict}",
        "bold red" if told.problems else "green",
    )
    terminal.say(f"    {clean(' < '.join(told.frames))}", "dim")
    for problem in told.problems:
        terminal.say(f"    {clean(problem)}")
