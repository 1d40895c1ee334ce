# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``specimens``: the known-bad variants, and what must be found in each."""

from __future__ import annotations

import argparse
import json
import sys

from rich import box
from rich.table import Table
from rich.text import Text

from atomicist.cli import selection
from atomicist.cli.errors import PASSED
from atomicist.image.specimens import Specimen, specimens
from atomicist.report.terminal import Terminal
from atomicist.report.text import Line, clean, count, wrap

NARROW = 72
"""Columns below which a table does not fit."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """List them; the exit status."""
    known = specimens()
    terminal = Terminal(sys.stdout)
    if args.json:
        terminal.data(json.dumps([_object(s) for s in known], indent=2) + "\n")
        return PASSED
    if terminal.width < NARROW:
        for s in known:
            terminal.say(f"{clean(s.name)}  {clean(s.property)}", "bold")
            terminal.lines(Line(line) for line in wrap(s.origin, terminal.width, 4))
    else:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        table.add_column(Text("specimen"), no_wrap=True)
        table.add_column(Text("must find"), no_wrap=True)
        table.add_column(Text("known from"), overflow="fold")
        for s in known:
            table.add_row(Text(clean(s.name)), Text(clean(s.property)), Text(clean(s.origin)))
        terminal.print(table)
    terminal.say()
    terminal.say(count(len(known), "specimen"))
    if known:
        terminal.say(f"next: {selection.command('verify', '--specimen', known[0].name)}")
    return PASSED


def _object(s: Specimen) -> dict[str, object]:
    return {
        "name": s.name,
        "origin": s.origin,
        "property": s.property,
        "about": s.about,
        "vectors": list(s.vectors),
        "contexts": list(s.contexts),
        "config": dict(s.switches),
    }
