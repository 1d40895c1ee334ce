# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux apply``: the entry into a source tree, and out of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from atomicist.cli import selection
from atomicist.cli.errors import PASSED
from atomicist.image.bare import kernel_source
from atomicist.report.terminal import Terminal
from atomicist.report.text import count
from atomicist.tree.apply import Tables, plan_apply, plan_undo, version, write


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tree", metavar="TREE", type=Path, help="the source of a kernel (6.1)")
    parser.add_argument("--undo", action="store_true", help="take it out again")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Change the tree; the exit status."""
    tables = Tables(kernel_source())
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    changes = plan_undo(args.tree, tables) if args.undo else plan_apply(args.tree, tables)
    if not args.dry_run:
        write(args.tree, changes)
    rows = [
        {
            "file": c.file,
            "what": "added" if c.old is None else "removed" if c.new is None else "changed",
            "lines": abs(len((c.new or "").splitlines()) - len((c.old or "").splitlines())),
        }
        for c in changes
    ]
    number = version(args.tree)
    if args.json:
        found = {"tree": str(args.tree), "version": number, "dry_run": args.dry_run, "files": rows}
        Terminal(sys.stdout).data(json.dumps(found, indent=2) + "\n")
    for row in rows:
        terminal.say(f"  {row['what']:8} {row['file']} ({count(int(str(row['lines'])), 'line')})")
    if not rows:
        state = "has none of it" if args.undo else "has all of it already"
        terminal.say(f"{args.tree}: Linux {number}: {state}; nothing changed")
    else:
        done = "would be " if args.dry_run else ""
        terminal.say(f"{args.tree}: Linux {number}: {count(len(rows), 'file')} {done}changed")
    verb = "apply" if args.undo or args.dry_run else "build"
    terminal.say(f"next: {selection.command('linux', verb, str(args.tree))}")
    return PASSED
