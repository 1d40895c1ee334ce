# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux series``: patches, and the proof that each of them builds."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

from atomicist.cli import main, selection
from atomicist.cli.errors import FINDINGS, PASSED, UsageError
from atomicist.cli.linux_build import Progress
from atomicist.image.bare import kernel_source
from atomicist.report.terminal import Terminal
from atomicist.report.text import count
from atomicist.tree.apply import Tables
from atomicist.tree.build import build, check_ours
from atomicist.tree.errors import TreeError
from atomicist.tree.hooks import Step
from atomicist.tree.messages import ASSISTED_BY, MESSAGES
from atomicist.tree.series import ACCEPTED, bisect, make_series


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("tree", metavar="TREE", type=Path, help="a source tree, patched or not")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help="where to put the patches")
    parser.add_argument(
        "--assisted-by",
        metavar="'AGENT:MODEL TOOL...'",
        help="the line Assisted-by of each patch: who helped to write them, which model (needed for -o)",
    )
    parser.add_argument("--bisect", action="store_true", help="build and boot after each patch, in a copy")
    parser.add_argument("--no-boot", action="store_true", help="do not boot each step too")
    parser.add_argument(
        "--boot", action="append", default=[], metavar="NAME", help="boot each step only this way (all)"
    )
    parser.add_argument(
        "--strict", action="store_true",
        help="build each step with CONFIG_DEBUG_ENTRY, for objtool's check of noinstr code",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR", help="that copy; it stays (default: TREE.bisect)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="compilers at a time (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Make the series, build its steps; the exit status."""
    if args.output is None and not args.bisect:
        raise TreeError("say where to put the patches (-o DIR), or ask for --bisect, or both")
    if args.output is not None and not re.fullmatch(ASSISTED_BY, args.assisted_by or ""):
        raise UsageError(
            "say which assistant helped to write the patches: --assisted-by 'AGENT:MODEL_VERSION [TOOL]...'"
        )
    tables = Tables(kernel_source())
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    found: dict[str, object] = {}
    bad = False
    if args.output is not None:
        series = make_series(args.tree, tables, args.output, args.assisted_by)
        terminal.say(series.diffstat)
        size = series.size
        terminal.say(f"assembler: {size.asm_added} lines added, {size.asm_removed} removed")
        for kind, number in series.accepted.items():
            terminal.say(f"  checkpatch: {number} {kind}, as is: {ACCEPTED[kind]}")
        for line in series.remarks:
            terminal.say(f"  checkpatch: {line}")
        bad = bool(series.remarks)
        terminal.say(
            f"{args.output}: {count(len(series.patches) - 1, 'patch', 'patches')} and a cover letter"
        )
        found = {
            "patches": [str(p) for p in series.patches], "added": size.added, "removed": size.removed,
            "asm_added": size.asm_added, "asm_removed": size.asm_removed,
            "checkpatch_accepted": dict(series.accepted), "checkpatch": list(series.remarks),
        }  # fmt: skip
    if args.bisect:
        results = _bisect(args, tables, terminal)
        bad = bad or any(results.values())
        found["bisect"] = {step.name.lower(): list(lines) for step, lines in results.items()}
    if args.json:
        Terminal(sys.stdout).data(json.dumps(found, indent=2) + "\n")
    terminal.say(f"next: {selection.command('linux', 'build', str(args.tree))}")
    return FINDINGS if bad else PASSED


def _bisect(args: argparse.Namespace, tables: Tables, terminal: Terminal) -> dict[Step, tuple[str, ...]]:
    jobs = max(args.jobs, 1)

    def check(step: Step, work: Path) -> tuple[str, ...]:
        terminal.say(f"{step.value}. {MESSAGES[step].subject}")
        try:
            built = build(work, jobs, Progress(terminal))
            lines = (*built.warnings, *check_ours(work, jobs))
        except TreeError as error:
            lines = (str(error),)
        words = ("linux", "boot", str(work), *(word for name in args.boot for word in ("--boot", name)))
        boots = not args.no_boot and importlib.util.find_spec("atomicist.cli.linux_boot") is not None
        if boots and not lines and (status := main.main(words)) != PASSED:
            lines = (f"{selection.command(*words)}: exit status {status}",)
        for line in lines:
            terminal.say(f"  {line}")
        done = "builds without a warning, boots" if boots else "builds without a warning"
        terminal.say("  not good" if lines else f"  {done}")
        return lines

    work = args.work or args.tree.with_name(f"{args.tree.name}.bisect")
    return bisect(args.tree, tables, work, check, strict=args.strict)
