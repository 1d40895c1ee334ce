# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``explain``: what a property means, and what to do when it is violated."""

from __future__ import annotations

import argparse
import sys

from atomicist.cli import selection
from atomicist.cli.errors import PASSED, UsageError
from atomicist.report.terminal import Terminal
from atomicist.report.text import Line, clean, wrap
from atomicist.spec.properties import PROPERTIES


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("property", metavar="IST001", nargs="*", help="its number (default: all)")


def run(args: argparse.Namespace) -> int:
    """Explain; the exit status."""
    wanted = []
    for word in args.property:
        number = word.strip().upper()
        if number == "ALL":
            wanted += list(PROPERTIES)
        elif number in PROPERTIES:
            wanted.append(number)
        else:
            first, last = min(PROPERTIES), max(PROPERTIES)
            raise UsageError(f"there is no property '{clean(word[:30])}': they are {first} to {last}")
    terminal = Terminal(sys.stdout)
    for number in dict.fromkeys(wanted or PROPERTIES):
        known = PROPERTIES[number]
        terminal.say(f"{known.number}: {known.title}", "bold")
        for label, text in (("means", known.means), ("do", known.do)):
            terminal.lines(Line(line) for line in wrap(f"{label}: {text}", terminal.width, 4, 8))
        terminal.say()
    terminal.say(f"next: {selection.command('verify')}")
    return PASSED
