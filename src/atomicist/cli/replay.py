# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``replay``: run one schedule on the reference interpreter and explain it."""

from __future__ import annotations

import argparse
import sys

from atomicist.cli import selection
from atomicist.cli.errors import FINDINGS, PASSED
from atomicist.report.explain import Explanation, trace
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean
from atomicist.search.replay import replay
from atomicist.search.schedule import parse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "schedule", metavar="SCHEDULE",
        help="CONTEXT:EVENT[@SYMBOL+OFFSET],..., as in user:NMI,MC@asm_exc_nmi+0x4",
    )  # fmt: skip
    parser.add_argument("--trace", action="store_true", help="show every instruction")
    selection.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Replay; the exit status."""
    image = selection.select(args)
    shown = replay(image.target, parse(args.schedule, image.target))
    terminal = Terminal(sys.stdout)
    if args.trace:
        terminal.lines(trace(shown, source=image.source))
        terminal.say()
    violated = shown.verdict.property
    fine = f"nothing is violated: {clean(shown.verdict.outcome)}"
    outcome = f"{clean(violated)} is violated" if violated else fine
    terminal.say(f"{clean(image.target.name)}: {outcome}", "bold red" if violated else "bold green")
    config = " ".join(map(clean, image.target.config))
    terminal.say(f"build id {clean(image.target.build_id) or 'none'}, {config}", "dim")
    terminal.say()
    terminal.lines(Explanation(shown, terminal.width, ascii_only=terminal.ascii, source=image.source).lines())
    terminal.say()
    verify = selection.command("verify", *image.options)
    if violated:
        again = selection.command("replay", *image.options, args.schedule, "--trace")
        terminal.say(f"next: {selection.command('explain', violated)}")
        terminal.say(f"      {verify if args.trace else again}")
        return FINDINGS
    terminal.say(f"next: {verify}")
    return PASSED
