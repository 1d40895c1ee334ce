# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux build``: the kernel, and a closer look at what is ours in it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from atomicist.cli import selection
from atomicist.cli.errors import FINDINGS, PASSED
from atomicist.report.terminal import Terminal
from atomicist.tree.build import be_strict, build, check_ours

EVERY = 10.0
"""Seconds between lines of progress where lines cannot be drawn over."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tree", metavar="TREE", type=Path, help="a configured source tree")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="compilers at a time (%(default)s)"
    )
    parser.add_argument(
        "--strict", action="store_true",
        help="turn CONFIG_DEBUG_ENTRY on first, for objtool's check of noinstr code (it stays on, and makes"
        " NMIs in the legacy entry longer: not for a kernel that is to be measured)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON")


class Progress:
    """One line that is drawn over, or one now and then."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.started = time.monotonic()
        self.last = self.started

    def __call__(self, steps: int, what: str) -> None:
        """``steps`` are done, ``what`` is in hand."""
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal.live else EVERY):
            return
        self.last = now
        line = f"  {steps} done, {now - self.started:.0f} s: {what}"
        if self.terminal.live:
            self.terminal.print(line[: self.terminal.width - 1].ljust(self.terminal.width - 1), end="\r")
        else:
            self.terminal.say(line)


def run(args: argparse.Namespace) -> int:
    """Build; the exit status."""
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    progress = Progress(terminal)
    if args.strict:
        be_strict(args.tree)
    built = build(args.tree, max(args.jobs, 1), progress)
    ours = check_ours(args.tree, max(args.jobs, 1))
    seconds = time.monotonic() - progress.started
    if args.json:
        found = {
            "image": str(built.image), "vmlinux": str(built.vmlinux), "atomic": built.atomic,
            "strict": built.strict, "warnings": [*built.warnings, *ours], "stock_warnings": list(built.stock),
            "seconds": round(seconds, 1),
        }  # fmt: skip
        Terminal(sys.stdout).data(json.dumps(found, indent=2) + "\n")
    for line in (*built.warnings, *ours):
        terminal.say(f"  {line}")
    for line in built.stock:
        terminal.say(f"  as without us: {line}")
    kind = "atomic and legacy entries" if built.atomic else "legacy entries only"
    kind += ", all of objtool's checks" if built.strict else ""
    terminal.say(f"{built.image}: {kind}, {seconds:.0f} s, {len(built.warnings) + len(ours)} warnings")
    terminal.say(f"next: {selection.command('linux', 'boot', str(args.tree))}")
    return FINDINGS if built.warnings or ours else PASSED
