# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``paths``: what the built code shows without running it."""

from __future__ import annotations

import argparse
import json
import sys

from atomicist.cli import selection
from atomicist.cli.errors import FINDINGS, PASSED
from atomicist.image.fences import Unfenced, unfenced
from atomicist.image.retbleed import ExposedPath, exposed_paths
from atomicist.machine.target import Target
from atomicist.report.terminal import Terminal
from atomicist.report.text import Line, count, name, wrap

FORMAT = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Over the control-flow graph of the built code: paths from an entry to a call or return before "
        "predictions are the kernel's (IST026), and uses of GS behind a SWAPGS that may be skipped, "
        "without a fence (IST027). A path need not be one that a run can take."
    )
    selection.arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Look; the exit status."""
    image = selection.select(args)
    target = image.target
    entries = [g.offset for v, g in target.gates.items() if g.offset in target.insns and v != "DF"]
    every = exposed_paths(target.insns, target.symbols, target.mitigation, entries, target.handlers)
    early, notes = [p for p in every if not p.note], [p for p in every if p.note]
    bare = unfenced(target.insns, entries, target.handlers)
    terminal = Terminal(sys.stdout)
    if args.json:
        document = {
            "format": FORMAT, "image": target.name, "build_id": target.build_id,
            "config": list(target.config), "mitigation": target.mitigation,
            "IST026": [_path(target, p) for p in early], "notes": [_path(target, p) for p in notes],
            "IST027": [_fence(target, u) for u in bare],
        }  # fmt: skip
        terminal.data(json.dumps(document, indent=2) + "\n")
        return FINDINGS if early or bare else PASSED
    for p in (*early, *notes):
        words = " -> ".join(name(target.symbolize(va)) for va in p.places)
        number = "note   " if p.note else "IST026 "
        terminal.lines(Line(text) for text in wrap(f"{number}{p.what}: {words}", terminal.width, 0, 4))
    for u in bare:
        how = "skipped" if u.skipped else "executed"
        words = f"swapgs at {name(target.symbolize(u.swapgs))} {how}, %gs at {name(target.symbolize(u.use))}"
        terminal.lines(Line(text) for text in wrap(f"IST027 {words}", terminal.width, 0, 4))
    needs = "needs nothing before a return" if target.mitigation == "none" else f"needs {target.mitigation}"
    if notes:
        terminal.say(
            "A note is a CALL before predictions are the kernel's: right, if its RET comes behind that."
        )
    terminal.say(f"{count(len(early), 'path')} to an early call or return (the CPU {needs}), "
                 f"{count(len(bare), 'use')} of GS without a fence")  # fmt: skip
    terminal.say(f"next: {selection.command('verify', *image.options)}")
    return FINDINGS if early or bare else PASSED


def _path(target: Target, path: ExposedPath) -> dict[str, object]:
    return {"what": path.what, "places": [target.symbolize(va) for va in path.places]}


def _fence(target: Target, u: Unfenced) -> dict[str, object]:
    return {"swapgs": target.symbolize(u.swapgs), "skipped": u.skipped, "use": target.symbolize(u.use)}
