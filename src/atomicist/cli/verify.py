# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``verify``: check an image at every instruction boundary."""

from __future__ import annotations

import argparse
import sys

from atomicist.cli import selection
from atomicist.cli.errors import BAD_INPUT, FINDINGS, NOT_CLOSED, PASSED, UsageError
from atomicist.cli.main import status_of_interrupt
from atomicist.cli.whole_page import whole_page
from atomicist.report.as_json import result_json
from atomicist.report.as_junit import result_junit
from atomicist.report.as_ktap import result_ktap
from atomicist.report.explain import Explanation
from atomicist.report.files import OutputFile
from atomicist.report.progress import Display
from atomicist.report.summary import show_findings, show_summary, verdict
from atomicist.report.terminal import Terminal
from atomicist.report.text import Line, clean, join, wrap
from atomicist.search.replay import Replay
from atomicist.search.result import Result
from atomicist.search.verify import BUDGET, explored, verify
from atomicist.spec.contexts import contexts
from atomicist.spec.events import EVENTS
from atomicist.spec.properties import BY_KEY

UNMODELLED = BY_KEY["UNMODELLED"].number
MAX_BUDGET = 8
MAX_WORKERS = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    selection.arguments(parser)
    what = parser.add_argument_group("what to try")
    what.add_argument("--vector", metavar="A,B", help=f"events to deliver ({','.join(EVENTS).lower()}: all)")
    what.add_argument(
        "--budget", metavar="N", type=_number(1, MAX_BUDGET),
        help=f"events in one schedule, for an image that does not say where it commits ({BUDGET})",
    )  # fmt: skip
    what.add_argument(
        "--context", metavar="NAME", action="append", help="start context, for such an image; may be repeated"
    )
    what.add_argument("--list-contexts", action="store_true", help="list the image's start contexts, and end")
    what.add_argument(
        "--workers",
        metavar="N",
        type=_number(0, MAX_WORKERS),
        default=0,
        help="processes (one a core, at most 2)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", help="the result as JSON (-: standard output)"
    )
    output.add_argument("--ktap", action="store_true", help="the result as KTAP on the standard output")
    output.add_argument("--junit", metavar="FILE", help="the result as JUnit XML")
    output.add_argument(
        "--html", metavar="FILE", help="the result as a page to look at, complete in one file"
    )
    output.add_argument("--quiet", action="store_true", help="no progress, and the verdict in one line")


def _number(low: int, high: int) -> type[int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{clean(text[:20])}' is not a number from {low} to {high}")
        return int(text)

    return convert  # type: ignore[return-value]


def run(args: argparse.Namespace) -> int:
    """Verify; the exit status."""
    if args.json == "-" and args.ktap:
        raise UsageError("--json - and --ktap both want the standard output: give --json a file")
    to_program = args.json == "-" or args.ktap
    files = {
        form: OutputFile(name)
        for form, name in (("json", args.json), ("junit", args.junit), ("html", args.html))
        if name is not None and (form, name) != ("json", "-")
    }
    vectors = _vectors(args.vector)
    image = selection.select(args)
    terminal = Terminal(sys.stderr if to_program else sys.stdout)
    if args.list_contexts:
        return _list_contexts(terminal, image)
    names = _check(args, image)
    missing = [v for v in vectors if EVENTS[v] not in image.target.gates]
    if args.vector and missing:
        raise UsageError(f"{clean(image.target.name)} has no entry for {join([EVENTS[v] for v in missing])}")
    _note_unused(args, image)
    with Display(Terminal(sys.stderr), quiet=args.quiet) as display:
        result, shown = verify(
            image.target, vectors=vectors, budget=args.budget or BUDGET, names=names, workers=args.workers,
            listener=display,
        )  # fmt: skip
    if "json" in files:
        files["json"].write(result_json(result))
    if "junit" in files:
        files["junit"].write(result_junit(result))
    if "html" in files:
        files["html"].write(whole_page(result, image, _command(args, image)))
    if args.json == "-":
        Terminal(sys.stdout).data(result_json(result))
    if args.ktap:
        Terminal(sys.stdout).data(result_ktap(result))
    _show(terminal, result, shown, image, args.budget or BUDGET, quiet=args.quiet)
    return _status(result)


def _command(args: argparse.Namespace, image: selection.Image) -> str:
    """The command line that finds the same again."""
    chosen = [(f"--{key}", str(value)) for key in ("vector", "budget") if (value := getattr(args, key))]
    chosen += [("--context", name) for name in args.context or ()]
    return selection.command("verify", *image.options, *(word for option in chosen for word in option))


def _status(result: Result) -> int:
    if result.interrupted:
        return status_of_interrupt()
    unknown = next((f for f in result.findings if f.property == UNMODELLED), None)
    if unknown is not None and all(f.property == UNMODELLED for f in result.findings):
        Terminal(sys.stderr).say(
            f"atomicist: at {clean(unknown.where)}: {clean(unknown.subject)}; give it a meaning in "
            "src/atomicist/isa/system.py, or keep it off the path"
        )
        return BAD_INPUT
    if result.findings:
        return FINDINGS
    return PASSED if result.closed else NOT_CLOSED


def _vectors(text: str | None) -> tuple[int, ...]:
    if text is None:
        return tuple(range(len(EVENTS)))
    chosen = []
    for word in text.split(","):
        vector = word.strip().upper().removeprefix("#")
        if vector not in EVENTS:
            known = ", ".join(EVENTS).lower()
            raise UsageError(f"unknown vector '{clean(word.strip()[:20])}': they are {known}")
        chosen.append(EVENTS.index(vector))
    return tuple(sorted(set(chosen)))


def _check(args: argparse.Namespace, image: selection.Image) -> tuple[str, ...]:
    """The start contexts to enumerate."""
    known = {c.name for c in contexts(image.target)}
    for name in args.context or ():
        if name not in known:
            listing = selection.command("verify", *image.options, "--list-contexts")
            raise UsageError(f"unknown context '{clean(name[:60])}': {listing} shows them")
    usual = tuple(n for n in dict.fromkeys((*explored(image.target), *image.contexts)) if n in known)
    return tuple(dict.fromkeys(args.context)) if args.context else usual


def _note_unused(args: argparse.Namespace, image: selection.Image) -> None:
    unused = [f"--{name}" for name in ("budget", "context") if getattr(args, name)]
    if unused and image.target.claims and not args.quiet:
        does = "does" if len(unused) == 1 else "do"
        Terminal(sys.stderr).say(
            f"{join(unused)} {does} not narrow this: the image says where it commits, so that all contexts "
            "and depths are covered"
        )


def _list_contexts(terminal: Terminal, image: selection.Image) -> int:
    for context in contexts(image.target):
        terminal.say(context.name, "bold")
        terminal.lines(Line(text) for text in wrap(context.about, terminal.width, 4))
    terminal.say()
    terminal.say(f"next: {selection.command('replay', *image.options, 'user:NMI')}")
    return PASSED


def _show(
    terminal: Terminal,
    result: Result,
    shown: Replay | None,
    image: selection.Image,
    budget: int,
    *,
    quiet: bool,
) -> None:
    if quiet:
        terminal.lines([verdict(result)])
    else:
        show_summary(terminal, result)
    if shown is not None:
        schedule = shown.schedule.text(image.target)
        if not quiet:
            show_findings(terminal, result)
            terminal.say()
            terminal.lines(
                Explanation(shown, terminal.width, ascii_only=terminal.ascii, source=image.source).lines()
            )
            terminal.say()
        terminal.say(f"next: {selection.command('replay', *image.options, schedule)}")
        terminal.say(f"      {selection.command('explain', shown.verdict.property)}")
    elif not quiet:
        terminal.say(f"next: {_next(result, image, budget)}")


def _next(result: Result, image: selection.Image, budget: int) -> str:
    if result.closed:
        return selection.command("specimens") + "    (what it can find)"
    if result.interrupted or image.target.claims or budget >= MAX_BUDGET:
        return selection.command("verify", *image.options)
    return selection.command("verify", *image.options, "--budget", str(budget + 1))
