# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux prepare``: a configured source tree."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from atomicist.cli import selection
from atomicist.cli.errors import PASSED
from atomicist.image.bare import kernel_source
from atomicist.report.terminal import Terminal
from atomicist.tree.apply import version
from atomicist.tree.errors import TreeError
from atomicist.tree.prepare import (
    ARCHIVE,
    FRAGMENT,
    checksum,
    configure,
    missing_packages,
    missing_useful,
    unpack,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tree", metavar="TREE", type=Path, help="where to put it: a new directory")
    parser.add_argument(
        "--archive", type=Path, default=ARCHIVE, help=f"the source, packed (default: {ARCHIVE})"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Unpack and configure; the exit status."""
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    lacking = missing_packages()
    if lacking:
        raise TreeError(f"not installed: apt-get install {' '.join(lacking)}")
    sha256 = checksum(args.archive)
    terminal.say(f"{args.archive}: sha256 {sha256}")
    unpack(args.archive, args.tree)
    number = version(args.tree)
    terminal.say(f"{args.tree}: Linux {number}")
    not_taken = configure(args.tree, kernel_source() / FRAGMENT, lambda what: terminal.say(f"  {what}"))
    for line in not_taken:
        terminal.say(f"  not in this kernel's configuration: {line}")
    for line in missing_useful():
        terminal.say(f"  not installed: {line}")
    if args.json:
        Terminal(sys.stdout).data(
            json.dumps(
                {
                    "tree": str(args.tree),
                    "version": number,
                    "archive": str(args.archive),
                    "sha256": sha256,
                    "not_taken": list(not_taken),
                },
                indent=2,
            )
            + "\n"
        )
    terminal.say(f"next: {selection.command('linux', 'apply', str(args.tree))}")
    return PASSED
