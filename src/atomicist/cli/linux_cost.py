# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux cost``: what an event costs, counted in single steps of QEMU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from rich.table import Table

from atomicist.cli import linux_guest, selection
from atomicist.cli.errors import PASSED
from atomicist.guest.cost import Path, markdown, paths, rate
from atomicist.guest.inject import CONTEXTS, Attacker
from atomicist.guest.linux import Linux
from atomicist.report.files import OutputFile
from atomicist.report.terminal import Terminal

ROUNDS: Final = 3
"""Boots of each for NMIs a second, in turn, so that what else the machine does concerns all of them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    linux_guest.arguments(parser, several=True)
    parser.add_argument("--stages", action="store_true", help="also say between which labels they are")
    parser.add_argument(
        "--markdown", metavar="FILE", help="write the instructions, with their labels, as Markdown"
    )


def run(args: argparse.Namespace) -> int:
    """Count; the exit status."""
    kernel, boots = linux_guest.image(args), linux_guest.boots(args, ("default",))
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    progress = linux_guest.Progress(terminal)
    report = OutputFile(args.markdown) if args.markdown else None
    found: list[dict[str, Any]] = []
    counted: list[tuple[str, Path]] = []
    for boot in boots:
        row: dict[str, Any] = {
            "boot": boot.name,
            "paths": [],
            "nmis_per_second": [],
            "nmis_per_cpu_second": [],
        }
        for context in CONTEXTS:
            progress(f"{boot.name}: counting from {context} mode", now=terminal.live)
            with Linux(kernel, boot, linux_guest.log(boot, "cost"), snapshots=True) as linux:
                for path in paths(Attacker(linux, context), context):
                    counted.append((boot.name, path))
                    row["paths"].append(dataclasses.asdict(path) | {"total": path.total})
        found.append(row)
    for _ in range(ROUNDS):
        for boot, row in zip(boots, found, strict=True):
            progress(f"{boot.name}: NMIs a second", now=terminal.live)
            with Linux(kernel, boot, linux_guest.log(boot, "cost")) as linux:
                by_clock, by_work = rate(linux)
            row["nmis_per_second"].append(round(by_clock))
            row["nmis_per_cpu_second"].append(round(by_work))
    progress.clear()
    terminal.print(_table(found))
    for row in found if args.stages else ():
        for taken in row["paths"]:
            stages = " ".join(f"{label} {count}" if count else label for label, count in taken["stages"])
            terminal.say(f"{row['boot']}: {taken['event']} from {taken['context']} mode: {stages}")
    for row in found:
        terminal.say(
            f"{row['boot']}: {median(row['nmis_per_cpu_second']):.0f} NMIs handled in a second of work"
            f" ({_list(row['nmis_per_cpu_second'])}; QEMU TCG, this machine)"
        )
    if report is not None:
        report.write(markdown(counted))
    if args.json:
        Terminal(sys.stdout).data(json.dumps({"kernel": str(kernel), "cost": found}, indent=2) + "\n")
    where = ("--kernel", str(args.kernel)) if args.kernel else (str(args.tree),)
    terminal.say(f"next: {selection.command('linux', 'stress', *where)}")
    return PASSED


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _table(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Instructions of the entry, from delivery to return (without padding)")
    for name in ("boot", "event", "from", "before the handler", "behind it", "NOPs", "total"):
        table.add_column(name, justify="left" if name in ("boot", "event", "from") else "right")
    for row in found:
        for path in row["paths"]:
            numbers = (path[name] for name in ("before", "after", "padding", "total"))
            table.add_row(row["boot"], path["event"], path["context"], *map(str, numbers))
    return table
