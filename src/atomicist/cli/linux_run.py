# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux run``: the others in order, up to the first that does not pass."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from atomicist.cli import main, selection
from atomicist.cli.errors import PASSED
from atomicist.report.terminal import Terminal

ORDER: Final = ("prepare", "apply", "build", "boot", "traces", "inject", "stress", "cost")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tree", metavar="TREE", type=Path, help="where the source is, or is to be unpacked")


def run(args: argparse.Namespace, call: Callable[[Sequence[str]], int] = main.main) -> int:
    """Run them; the exit status of the first that does not pass."""
    terminal = Terminal(sys.stdout)
    for verb in ORDER:
        if importlib.util.find_spec(f"atomicist.cli.linux_{verb}") is None:
            continue
        if verb == "prepare" and (args.tree / "Makefile").exists():
            continue
        words = ("linux", verb, str(args.tree))
        terminal.say(f"$ {selection.command(*words)}", "bold")
        status = call(words)
        if status != PASSED:
            return status
    return PASSED
