# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux cost``: what an event costs, counted in single steps of QEMU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from rich.table import Table

from atomicist.cli import linux_guest, selection
from atomicist.cli.errors import PASSED
from atomicist.guest.cost import paths, rate
from atomicist.guest.inject import CONTEXTS, Attacker
from atomicist.guest.linux import Linux
from atomicist.report.terminal import Terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    linux_guest.arguments(parser, several=True)


def run(args: argparse.Namespace) -> int:
    """Count; the exit status."""
    kernel, boots = linux_guest.image(args), linux_guest.boots(args, ("default",))
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    progress = linux_guest.Progress(terminal)
    found: list[dict[str, Any]] = []
    table = Table(title="Instructions of the entry, from delivery to return (without padding)")
    for name in ("boot", "event", "from", "before the handler", "behind it", "NOPs", "total"):
        table.add_column(name, justify="left" if name in ("boot", "event", "from") else "right")
    for boot in boots:
        row: dict[str, Any] = {"boot": boot.name, "paths": []}
        for context in CONTEXTS:
            progress(f"{boot.name}: counting from {context} mode", now=terminal.live)
            with Linux(kernel, boot, linux_guest.log(boot, "cost"), snapshots=True) as linux:
                for path in paths(Attacker(linux, context), context):
                    row["paths"].append(dataclasses.asdict(path) | {"total": path.total})
                    table.add_row(
                        boot.name, path.event, context, str(path.before), str(path.after), str(path.padding),
                        str(path.total),
                    )  # fmt: skip
        progress(f"{boot.name}: NMIs a second", now=terminal.live)
        with Linux(kernel, boot, linux_guest.log(boot, "cost")) as linux:
            row["nmis_per_second"] = round(rate(linux))
        progress.clear()
        found.append(row)
    terminal.print(table)
    for row in found:
        terminal.say(
            f"{row['boot']}: {row['nmis_per_second']} NMIs handled a second (QEMU TCG, this machine)"
        )
    if args.json:
        Terminal(sys.stdout).data(json.dumps({"kernel": str(kernel), "cost": found}, indent=2) + "\n")
    where = ("--kernel", str(args.kernel)) if args.kernel else (str(args.tree),)
    terminal.say(f"next: {selection.command('linux', 'stress', *where)}")
    return PASSED
