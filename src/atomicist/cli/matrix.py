# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``matrix``: every variant of the entry in every configuration.

Each row is a run of ``verify`` in a process of its own, or of one for rows that differ in their start
contexts only (`matrix_rows`).  Its result is kept, so that what was done before an interruption is not
done again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from atomicist.cli import selection
from atomicist.cli.errors import BAD_INPUT, FINDINGS, NOT_CLOSED, PASSED, UsageError
from atomicist.cli.main import status_of_interrupt
from atomicist.cli.matrix_rows import Answer, options, run_all
from atomicist.image import bare
from atomicist.image.bare import VARIANTS, BareConfig
from atomicist.image.errors import ImageError
from atomicist.isa.predictions import MITIGATIONS
from atomicist.native.build import cache_dir
from atomicist.report.files import OutputFile
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean
from atomicist.search.matrix import checker_id, jobs, row_id, rows
from atomicist.spec.events import EVENTS

KEPT: Final = Path("build", "matrix")
COMPILERS: Final = ("gcc", "clang")
MAX_WORKERS: Final = 16

_WORDS: Final = {PASSED: "passed", FINDINGS: "FAILED", NOT_CLOSED: "NOT CLOSED"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row that is done: the ``answer`` to it; whether it was ``kept`` from before."""

    config: BareConfig
    answer: Answer
    kept: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    what = parser.add_argument_group("rows", "all, if nothing is chosen")
    what.add_argument("--cc", metavar="A,B", default="gcc", help="compilers: gcc, clang (gcc)")
    what.add_argument("--variant", metavar="A,B", default=",".join(VARIANTS), help=f"{', '.join(VARIANTS)}")
    what.add_argument(
        "--mitigation", metavar="A,B", default=",".join(MITIGATIONS), help=", ".join(MITIGATIONS)
    )
    what.add_argument("--vector", metavar="A,B", help="events to deliver, as for verify (all)")
    what.add_argument("--first", metavar="N", type=int, default=0, help="the first N rows only")
    what.add_argument(
        "--workers", metavar="N", type=int, default=0, help="rows at a time (one a core, at most 2)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--again", action="store_true", help="do rows again that are done")
    output.add_argument("--list", action="store_true", help="list the rows and which are done, and end")
    output.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", help="all results as JSON (-: standard output)"
    )
    output.add_argument("--keep", metavar="DIR", default=str(KEPT), help=f"where results are kept ({KEPT})")


def _chosen(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what} '{clean(name[:20])}': they are {', '.join(known)}")
    return names


class _Kept:
    """The results of rows, by the content of what they depend on."""

    def __init__(self, directory: Path, vectors: str) -> None:
        self._directory = directory
        self._vectors = vectors
        self._checker = checker_id()

    def _place(self, config: BareConfig) -> Path:
        image = bare.build(bare.kernel_source(), config, cache_dir())
        return self._directory / f"{row_id(image.read_bytes(), config, self._vectors, self._checker)}.json"

    def known(self, config: BareConfig) -> Outcome | None:
        """The row from an earlier run; None too if its image does not build, which is said when it is run."""
        try:
            kept = json.loads(self._place(config).read_text(encoding="utf-8"))
            return Outcome(config, Answer(int(kept["status"]), kept["result"]), kept=True)
        except (OSError, ValueError, KeyError, TypeError, ImageError):
            return None

    def keep(self, config: BareConfig, answer: Answer) -> None:
        """For a later run: a verdict, not an error."""
        if answer.error:
            return
        place = self._place(config)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"status": answer.status, "result": answer.result}), encoding="utf-8")
        partial.replace(place)


def run(args: argparse.Namespace) -> int:
    """Do the rows; the exit status."""
    compilers = _chosen(args.cc, COMPILERS, "compiler")
    variants = _chosen(args.variant, VARIANTS, "variant")
    mitigations = _chosen(args.mitigation, MITIGATIONS, "mitigation")
    if args.vector is not None:
        _chosen(args.vector.upper(), EVENTS, "vector")
    if not 0 <= args.workers <= MAX_WORKERS or args.first < 0:
        raise UsageError(f"--workers is 0 to {MAX_WORKERS}, --first not negative")
    file = OutputFile(args.json) if args.json not in (None, "-") else None
    chosen = rows(compilers, variants, mitigations)[: args.first or None]
    vectors = (args.vector or "").lower()
    kept = _Kept(Path(args.keep), vectors)
    terminal = Terminal(sys.stderr if args.json == "-" else sys.stdout)
    if args.list:
        for config in chosen:
            terminal.say(_line(config, "done" if kept.known(config) else "to do"))
        return PASSED
    started = time.monotonic()
    count = args.workers or max(1, min(2, os.cpu_count() or 1))
    done, stopped = _run_all(kept, chosen, vectors, terminal, count=count, again=args.again)
    document = json.dumps([_row(o) for o in done], indent=2) + "\n"
    if file is not None:
        file.write(document)
    if args.json == "-":
        Terminal(sys.stdout).data(document)
    return _conclude(terminal, chosen, done, stopped, time.monotonic() - started, sys.argv[1:])


def _run_all(
    kept: _Kept, chosen: Sequence[BareConfig], vectors: str, terminal: Terminal, *, count: int, again: bool
) -> tuple[list[Outcome], bool]:
    """The rows that were done, in the order of ``chosen``, and whether it was interrupted."""
    done: list[Outcome] = []

    def take(outcome: Outcome) -> None:
        done.append(outcome)
        terminal.say(f"{len(done):4}/{len(chosen)}  {_line(outcome.config, _words(outcome))}")

    stopped = False
    answers = None
    try:
        todo = []
        for config in chosen:
            before = None if again else kept.known(config)
            if before is not None:
                take(before)
            else:
                todo.append(config)
        answers = run_all(jobs(todo), vectors, count)
        for job, some in answers:
            for config, answer in zip(job, some, strict=True):
                kept.keep(config, answer)
                take(Outcome(config, answer))
    except KeyboardInterrupt:
        stopped = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending: once is enough
    finally:
        if answers is not None:
            answers.close()
    order = {config: i for i, config in enumerate(chosen)}
    return sorted(done, key=lambda o: order[o.config]), stopped


def _line(config: BareConfig, words: str) -> str:
    switches = {"pti": config.pti, "pcid": config.pcid, "fsgsbase": config.fsgsbase}
    named = " ".join(f"{name if on else '-':8}" for name, on in switches.items())
    return f"{config.variant:3} {config.cc:6}{named} {config.mitigation:5} {words}"


def _words(outcome: Outcome) -> str:
    answer, r = outcome.answer, outcome.answer.result
    if answer.error:
        return clean(answer.error)
    word = _WORDS[answer.status]
    if answer.status == FINDINGS:
        names = sorted({f["property"] for f in r["findings"]})
        first = r["findings"][0]["schedule"]
        return f"{word} {', '.join(names)}: {clean(first)}"
    why = f": {clean(r['open_because'])}" if answer.status == NOT_CLOSED else ""
    together = f", {len(r['joined'])} rows in one run" if "joined" in r else ""
    known = ", kept" if outcome.kept else ""
    return f"{word}{why}  {r['contexts']:,} contexts, {r['seconds']:.0f} s{together}{known}"


def _row(outcome: Outcome) -> dict[str, Any]:
    c = outcome.config
    return {
        "variant": c.variant, "cc": c.cc, "pti": c.pti, "pcid": c.pcid, "fsgsbase": c.fsgsbase,
        "mitigation": c.mitigation, "status": outcome.answer.status, "error": outcome.answer.error,
        **outcome.answer.result,
    }  # fmt: skip


def _conclude(
    terminal: Terminal,
    chosen: Sequence[BareConfig],
    done: Sequence[Outcome],
    stopped: bool,
    seconds: float,
    words: Sequence[str],
) -> int:
    def count(status: int) -> int:
        return sum(o.answer.status == status and not o.answer.error for o in done)

    bad = next((o for o in done if o.answer.status == FINDINGS), None) or next(
        (o for o in done if o.answer.status != PASSED), None
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    terminal.say()
    terminal.say(
        f"{count(PASSED)} of {len(chosen)} rows closed without a finding; {count(FINDINGS)} with findings, "
        f"{count(NOT_CLOSED)} not closed, {len(chosen) - sum(map(count, _WORDS))} not done; {seconds:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time"
    )
    if bad is not None:
        terminal.say(f"next: {selection.command('verify', *options(bad.config))}")
    elif stopped:
        rest = [word for word in words[1:] if word != "--again"]
        terminal.say(f"next: {selection.command(words[0] if words else 'matrix', *rest)}    (goes on)")
    if stopped:
        return status_of_interrupt()
    if any(o.answer.error for o in done):
        return BAD_INPUT
    if count(FINDINGS):
        return FINDINGS
    return PASSED if count(PASSED) == len(chosen) else NOT_CLOSED
