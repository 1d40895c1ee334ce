# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``mutants``: change each instruction of our entry, and see the checker find it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
from pathlib import Path

from atomicist.cli import selection
from atomicist.cli.errors import FINDINGS, NOT_CLOSED, PASSED, UsageError
from atomicist.cli.main import status_of_interrupt
from atomicist.image.mutate import KINDS
from atomicist.report.files import OutputFile
from atomicist.report.mutation import Row, Tables, as_data, markdown, summary
from atomicist.report.progress import Display
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean
from atomicist.search.exceptions import exceptions, judge
from atomicist.search.mutation_run import MutationRun
from atomicist.search.mutation_run import run as run_all

BUILD = Path("build")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    selection.arguments(parser)
    what = parser.add_argument_group("what to try")
    what.add_argument("--kind", metavar="A,B", help=f"only mutants of these kinds ({','.join(KINDS)})")
    what.add_argument("--place", metavar="REGEX", help="only where symbol+offset matches: 'asm_exc_nmi.*'")
    what.add_argument("--workers", metavar="N", type=int, default=0, help="processes (one a core, at most 2)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="all mutants as JSON (build/mutants.json)")
    output.add_argument("--markdown", metavar="FILE", help="the tables as Markdown")
    output.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Run them; the exit status: 0 all found or explained, 1 some survived."""
    kinds = tuple(args.kind.split(",")) if args.kind else ()
    if not set(kinds) <= set(KINDS):
        raise UsageError(
            f"unknown kind '{clean(min(set(kinds) - set(KINDS))[:20])}': they are {', '.join(KINDS)}"
        )
    where = args.place or ".*"
    try:
        re.compile(where)
    except re.error as e:
        raise UsageError(f"--place is no regular expression: {e}") from e
    part = [f"--kind={args.kind}"] if kinds else []
    part += [f"--place={where}"] if args.place else []
    BUILD.mkdir(exist_ok=True)
    output = OutputFile(args.json or str(BUILD / "mutants.json"))
    text = OutputFile(args.markdown) if args.markdown else None
    terminal = Terminal(sys.stdout)
    tables: list[Tables] = []
    for cc in [args.cc] if args.cc or args.specimen or args.kernel else ["gcc", "clang"]:
        args.cc = cc
        image = selection.select(args)
        if not image.target.claims:
            raise UsageError("mutants are made of an entry that says by labels where it commits")
        name = "-".join((image.target.name, *image.target.config, *kinds))
        if args.place:
            name += "-" + hashlib.sha256(where.encode()).hexdigest()[:8]
        place = BUILD / "mutants" / f"{name}.jsonl"
        with Display(Terminal(sys.stderr), quiet=args.quiet) as display:
            try:
                result = run_all(image.target, place, args.workers, display, kinds, where)
            except ValueError as e:
                raise UsageError(
                    f"{clean(image.target.name)} itself does not pass, so mutants say nothing: {e}"
                ) from e
        tables.append(_tables(result, " ".join(part)))
        terminal.say("\n".join(summary(tables[-1])))
        if not result.complete:
            # what there is so far says itself that it was cut short
            output.write(json.dumps(as_data(tables), indent=1) + "\n")
            if text is not None:
                text.write(markdown(tables))
            again = selection.command("mutants", *image.options, *part)
            terminal.say(f"interrupted; next: {again}    (goes on where it was)")
            return status_of_interrupt()
    output.write(json.dumps(as_data(tables), indent=1) + "\n")
    if text is not None:
        text.write(markdown(tables))
    return _verdict(terminal, tables, whole=not part)


def _verdict(terminal: Terminal, tables: list[Tables], *, whole: bool) -> int:
    left = [r for t in tables for r in t.rows if r.status in ("survived", "passed")]
    for r in left[:20]:
        terminal.say(f"not explained: {r.name}: {r.was} -> {r.now}")
    wrong = sorted(set.intersection(*(set(t.wrong) for t in tables))) if whole else []
    for line in wrong:
        terminal.say(line)
    terminal.say(f"{len(left)} not explained")
    terminal.say(f"next: {selection.command('explain', 'IST001')}")
    return FINDINGS if left else NOT_CLOSED if wrong else PASSED


def _tables(result: MutationRun, part: str) -> Tables:
    outcomes, wrong = judge(result.mutants, result.outcomes, exceptions())
    rows = tuple(
        Row(
            m.name, m.kind, m.stage, m.was, m.now, o.status, o.by, o.property, o.schedule, o.reason, o.seconds
        )
        for m in result.mutants
        if (o := outcomes.get(m.name)) is not None
    )
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return Tables(
        result.image, result.build_id, (*result.config, *part.split()), rows, result.not_made,
        result.instructions, result.complete, tuple(wrong), result.seconds, machine,
        min(result.resumed, len(rows)),  # who was looked at in more than one step counts once
    )  # fmt: skip
