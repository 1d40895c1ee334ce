# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``view``: one run as a page to look at, as JSON, or as a trace for Perfetto."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

from atomicist.cli import selection
from atomicist.cli.errors import FINDINGS, PASSED, UsageError
from atomicist.image import specimens
from atomicist.image.errors import ImageError
from atomicist.report.chrome_trace import chrome_trace
from atomicist.report.files import OutputFile
from atomicist.report.page import html_page
from atomicist.report.run_data import no_text, run_data
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean, name
from atomicist.search.recording import Recording, follow, record
from atomicist.search.schedule import Injection, ScheduleError, parse

ENTRY = "entry"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "schedule", metavar="SCHEDULE",
        help="CONTEXT:EVENT[@SYMBOL+OFFSET],..., as in user:NMI,MC@asm_exc_nmi+0x4",
    )  # fmt: skip
    output = parser.add_argument_group("output", "at least one")
    output.add_argument("-o", "--output", metavar="FILE", help="an HTML page, complete in one file")
    output.add_argument("--json", metavar="FILE", nargs="?", const="-", help="its data (-: standard output)")
    output.add_argument("--trace", metavar="FILE", help="a trace for Perfetto: a track a stack")
    parser.add_argument(
        "--against", metavar="IMAGE",
        help=f"beside it the same events on another image: '{ENTRY}' (ours), a specimen, or a kernel's file",
    )  # fmt: skip
    selection.arguments(parser)


@dataclass(frozen=True, slots=True)
class _Shown:
    image: selection.Image
    recording: Recording
    moved: tuple[tuple[int, Injection], ...] = ()


def run(args: argparse.Namespace) -> int:
    """Show it; the exit status."""
    wanted = {"html": args.output, "json": args.json, "trace": args.trace}
    if not any(wanted.values()):
        raise UsageError("say what to make: -o page.html, --json or --trace FILE")
    if args.trace and args.against:
        raise UsageError("--trace is of one run: leave --against away")
    files = {
        form: OutputFile(name) for form, name in wanted.items() if name and (form, name) != ("json", "-")
    }
    image = selection.select(args)
    schedule = parse(args.schedule, image.target)
    shown = [_Shown(image, record(image.target, schedule))]
    if args.against:
        shown.append(_against(args))
    data = _data(args, shown)
    if "html" in files:
        files["html"].write(html_page(_title(shown), data))
    text = json.dumps(data, indent=1) + "\n"
    if "json" in files:
        files["json"].write(text)
    if "trace" in files:
        files["trace"].write(chrome_trace(shown[0].recording))
    if args.json == "-":
        Terminal(sys.stdout).data(text)
    _say(args, shown, Terminal(sys.stderr if args.json == "-" else sys.stdout))
    return FINDINGS if any(s.recording.replay.verdict.property for s in shown) else PASSED


def _against(args: argparse.Namespace) -> _Shown:
    """The second image, and the same events on it."""
    other = argparse.Namespace(**vars(args))
    other.specimen = other.kernel = other.features = None
    if args.against != ENTRY:
        known = {s.name for s in specimens.specimens()}
        if args.against in known:
            other.specimen = args.against
        else:
            other.kernel = args.against
    try:
        image = selection.select(other)
    except (UsageError, ImageError) as e:
        raise UsageError(f"--against: {e}") from e
    try:
        recording, moved = follow(image.target, parse(args.schedule, image.target))
    except ScheduleError as e:
        raise UsageError(f"--against {clean(args.against)}: {e}") from e
    return _Shown(image, recording, moved)


def _notes(shown: _Shown) -> tuple[str, ...]:
    """What a reader has to know of events that were moved."""
    target = shown.recording.replay.target
    return tuple(
        f"Event {number + 1}, {injection.vector}, does not meet the place that the schedule names: "
        f"this entry does not go on there. It arrives right behind the next IRET instead, at "
        f"{name(target.symbolize(injection.rip or 0))}, as an event that was pending does."
        for number, injection in shown.moved
    )


def _data(args: argparse.Namespace, shown: list[_Shown]) -> dict[str, Any]:
    against = ("--against", args.against) if args.against else ()
    command = selection.command("view", *shown[0].image.options, args.schedule, *against, "-o", "page.html")
    runs = [
        run_data(s.recording, command=command, source=s.image.source, text=s.image.text or no_text,
                 notes=_notes(s))
        for s in shown
    ]  # fmt: skip
    return {"page": "compare" if len(runs) > 1 else "run", "runs": runs}


def _title(shown: list[_Shown]) -> str:
    names = " and ".join(name(s.recording.replay.target.name) for s in shown)
    return f"{clean(shown[0].recording.replay.schedule.text(shown[0].image.target))} on {names}"


def _say(args: argparse.Namespace, shown: list[_Shown], terminal: Terminal) -> None:
    for s in shown:
        verdict = s.recording.replay.verdict
        fine = f"nothing is violated: {clean(verdict.outcome)}"
        outcome = f"{clean(verdict.property)} is violated" if verdict.property else fine
        style = "bold red" if verdict.property else "bold green"
        steps = len(s.recording.moments)
        terminal.say(f"{name(s.recording.replay.target.name)}: {outcome}, {steps:,} steps", style)
        for note in _notes(s):
            terminal.say(f"  {note}", "dim")
    for path in (args.output, args.json, args.trace):
        if path and path != "-":
            terminal.say(f"written: {clean(path)}")
    again = selection.command("replay", *shown[0].image.options, args.schedule)
    terminal.say(f"next: {again}    (the same in words)")
