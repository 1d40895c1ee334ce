# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux inject``: events at every instruction boundary of the running kernel, and whether
the model says the same."""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from typing import Any, Final

from atomicist.cli import linux_guest, selection
from atomicist.cli.errors import FINDINGS, PASSED, UsageError
from atomicist.guest.inject import CONTEXTS, ORDERS, QUICK, Attack, Attacker
from atomicist.guest.linux import Boot, Linux
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean

SHOWN: Final = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    linux_guest.arguments(parser, several=True)
    parser.add_argument(
        "--quick", action="store_true", help="only an NMI, a #MC in its entry, and another NMI"
    )
    parser.add_argument(
        "--events", metavar="A,B,C", action="append", default=[],
        help=f"first, second and third event: {' '.join(','.join(o) for o in ORDERS)} (all)",
    )  # fmt: skip
    parser.add_argument(
        "--stride",
        type=int,
        default=1,
        metavar="N",
        help="try only each N-th boundary (1: all)",
    )
    parser.add_argument(
        "--context", choices=CONTEXTS, action="append", default=[], help="what is interrupted (both)"
    )


def run(args: argparse.Namespace) -> int:
    """Attack; the exit status."""
    kernel, boots = linux_guest.image(args), linux_guest.boots(args, ("default",))
    orders = _orders(args)
    if args.stride < 1:
        raise UsageError("--stride must be 1 or more")
    if any(b.cpus > 1 for b in boots):
        raise UsageError("one CPU is stopped and stepped: a boot with more is for stress")
    terminal = Terminal(sys.stderr if args.json else sys.stdout)
    progress = linux_guest.Progress(terminal)
    found: list[dict[str, Any]] = []
    good = True
    for boot in boots:
        for context in args.context or CONTEXTS:
            progress(f"{boot.name}: booting", now=terminal.live)
            with Linux(kernel, boot, linux_guest.log(boot, f"inject {context}"), snapshots=True) as linux:
                attacker = Attacker(linux, context)
                under = attacker.under
                for events in orders:
                    started = time.monotonic()
                    attack = attacker.attack(events, partial(_tell, progress, boot.name), args.stride)
                    progress.clear()
                    _show(terminal, boot, attack, time.monotonic() - started)
                    found.append(_as_data(boot, attack, under.features, under.compared))
                    good = good and not attack.lost and not attack.disagreements
    if args.json:
        Terminal(sys.stdout).data(json.dumps({"kernel": str(kernel), "attacks": found}, indent=2) + "\n")
    where = ("--kernel", str(args.kernel)) if args.kernel else (str(args.tree),)
    terminal.say(f"next: {selection.command('linux', 'cost', *where)}")
    return PASSED if good else FINDINGS


def _orders(args: argparse.Namespace) -> tuple[tuple[str, ...], ...]:
    if not args.events:
        return QUICK if args.quick else ORDERS
    chosen = tuple(tuple(e.upper().split(",")) for e in args.events)
    for order in chosen:
        if order not in ORDERS:
            known = " ".join(",".join(o) for o in ORDERS)
            raise UsageError(f"{clean(','.join(order))} is no order of events: they are {known}")
    return chosen


def _tell(progress: linux_guest.Progress, boot: str, what: str, done: int, total: int) -> None:
    progress(f"{boot}: {what}: {done} of {total}")


def _show(terminal: Terminal, boot: Boot, attack: Attack, seconds: float) -> None:
    lost, wrong = attack.lost, attack.disagreements
    style = "bold red" if wrong else "yellow" if lost else "green"
    verdict = f"lost at {len(lost)} ({ranges(lost)})" if lost else "resumed at every one"
    terminal.say(
        f"{boot.name}, {attack.context}: {', '.join(attack.events)}: {len(attack.points)} of"
        f" {attack.boundaries} boundaries tried, {verdict};"
        f" the model {f'DISAGREES at {len(wrong)}' if wrong else 'agrees at all'} ({seconds:.0f} s)",
        style,
    )
    for point in [p for p in attack.points if p.why][:SHOWN]:
        terminal.say(f"    {point.number} {clean(point.place)}: {clean(point.why)}")
    for point in wrong[:SHOWN]:
        terminal.say(f"    {point.number} {clean(point.place)}: {clean(point.differs)}", "bold red")


def ranges(numbers: tuple[int, ...]) -> str:
    """``numbers``, which ascend, as 0-3, 7."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _as_data(boot: Boot, attack: Attack, features: tuple[str, ...], compared: int) -> dict[str, Any]:
    return {
        "boot": boot.name, "context": attack.context, "events": list(attack.events),
        "boundaries": attack.boundaries, "tried": len(attack.points), "lost": list(attack.lost),
        "disagreements": [
            {"number": p.number, "place": p.place, "guest": p.why, "model": p.differs}
            for p in attack.disagreements
        ],
        "features": list(features), "instructions_compared": compared,
    }  # fmt: skip
