# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``matrix``: every variant of the entry in every configuration.

Each row is a run of ``verify`` in a process of its own, whose result is kept, so that what
was done before an interruption is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from atomicist.cli import selection
from atomicist.cli.errors import BAD_INPUT, FINDINGS, NOT_CLOSED, PASSED, UsageError
from atomicist.cli.main import status_of_interrupt
from atomicist.image import bare
from atomicist.image.bare import VARIANTS, BareConfig
from atomicist.isa.predictions import MITIGATIONS
from atomicist.native.build import cache_dir
from atomicist.report.files import OutputFile
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean
from atomicist.search.matrix import checker_id, row_id, rows
from atomicist.spec.events import EVENTS

KEPT: Final = Path("build", "matrix")
COMPILERS: Final = ("gcc", "clang")
MAX_WORKERS: Final = 16

_WORDS: Final = {PASSED: "passed", FINDINGS: "FAILED", NOT_CLOSED: "NOT CLOSED"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row that is done: ``status`` and ``result`` of its `verify`; ``error``, one line, if that
    could not run; whether it was ``kept`` from before."""

    config: BareConfig
    status: int
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
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


def options(config: BareConfig) -> list[str]:
    """The options of `verify` that mean ``config``."""
    switches = {"--no-pti": config.pti, "--no-pcid": config.pcid, "--no-fsgsbase": config.fsgsbase}
    return [
        "--variant", config.variant, "--mitigation", config.mitigation, "--cc", config.cc,
        *(name for name, on in switches.items() if not on),
    ]  # fmt: skip


class _Rows:
    """Runs rows, at most so many at a time, and stops them all when told to."""

    def __init__(self, keep: Path, vectors: str, *, again: bool) -> None:
        self._keep = keep
        self._vectors = vectors
        self._again = again
        self._checker = checker_id()
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def _place(self, config: BareConfig) -> Path:
        image = bare.build(bare.kernel_source(), config, cache_dir())
        return self._keep / f"{row_id(image.read_bytes(), config, self._vectors, self._checker)}.json"

    def known(self, config: BareConfig) -> Outcome | None:
        """The row from an earlier run."""
        try:
            kept = json.loads(self._place(config).read_text(encoding="utf-8"))
            return Outcome(config, int(kept["status"]), kept["result"], kept=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run(self, config: BareConfig) -> Outcome:
        """Do a row, or take what is known of it."""
        before = None if self._again or self.stopped else self.known(config)
        if before is not None or self.stopped:
            return before or Outcome(config, BAD_INPUT, error="interrupted")
        command = [
            sys.executable, "-m", "atomicist", "verify", "--workers", "1", "--quiet", "--json", "-",
            *(("--vector", self._vectors) if self._vectors else ()), *options(config),
        ]  # fmt: skip
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._running.add(child)
        out, err = child.communicate()
        self._running.discard(child)
        if child.returncode not in _WORDS:
            lines = [line for line in err.splitlines() if line.strip()]
            return Outcome(config, BAD_INPUT, error=lines[-1] if lines else f"ended with {child.returncode}")
        result = json.loads(out)
        place = self._place(config)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"status": child.returncode, "result": result}), encoding="utf-8")
        partial.replace(place)
        return Outcome(config, child.returncode, result)

    def stop(self) -> None:
        """End the rows under way; nothing is kept of them."""
        self.stopped = True
        for child in tuple(self._running):
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


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
    todo = _Rows(Path(args.keep), (args.vector or "").lower(), again=args.again)
    terminal = Terminal(sys.stderr if args.json == "-" else sys.stdout)
    if args.list:
        for config in chosen:
            terminal.say(_line(config, "done" if todo.known(config) else "to do"))
        return PASSED
    started = time.monotonic()
    done = _run_all(todo, chosen, args.workers or max(1, min(2, os.cpu_count() or 1)), terminal)
    document = json.dumps([_row(o) for o in done], indent=2) + "\n"
    if file is not None:
        file.write(document)
    if args.json == "-":
        Terminal(sys.stdout).data(document)
    return _conclude(terminal, chosen, done, todo.stopped, time.monotonic() - started, sys.argv[1:])


def _run_all(todo: _Rows, chosen: Sequence[BareConfig], workers: int, terminal: Terminal) -> list[Outcome]:
    done: list[Outcome] = []
    with ThreadPoolExecutor(workers) as pool:
        pending = [pool.submit(todo.run, config) for config in chosen]
        try:
            for future in as_completed(pending):
                outcome = future.result()
                done.append(outcome)
                terminal.say(f"{len(done):4}/{len(chosen)}  {_line(outcome.config, _words(outcome))}")
        except BaseException as e:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending: once is enough
            todo.stop()
            for future in pending:
                future.cancel()
            if not isinstance(e, KeyboardInterrupt):
                raise
    order = {config: i for i, config in enumerate(chosen)}
    return sorted(done, key=lambda o: order[o.config])


def _line(config: BareConfig, words: str) -> str:
    switches = {"pti": config.pti, "pcid": config.pcid, "fsgsbase": config.fsgsbase}
    named = " ".join(f"{name if on else '-':8}" for name, on in switches.items())
    return f"{config.variant:3} {config.cc:6}{named} {config.mitigation:5} {words}"


def _words(outcome: Outcome) -> str:
    if outcome.error:
        return clean(outcome.error)
    r = outcome.result
    word = _WORDS[outcome.status]
    if outcome.status == FINDINGS:
        names = sorted({f["property"] for f in r["findings"]})
        first = r["findings"][0]["schedule"]
        return f"{word} {', '.join(names)}: {clean(first)}"
    why = f": {clean(r['open_because'])}" if outcome.status == NOT_CLOSED else ""
    known = ", kept" if outcome.kept else ""
    return f"{word}{why}  {r['contexts']:,} contexts, {r['seconds']:.0f} s{known}"


def _row(outcome: Outcome) -> dict[str, Any]:
    c = outcome.config
    return {
        "variant": c.variant, "cc": c.cc, "pti": c.pti, "pcid": c.pcid, "fsgsbase": c.fsgsbase,
        "mitigation": c.mitigation, "status": outcome.status, "error": outcome.error, **outcome.result,
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
        return sum(o.status == status and not o.error for o in done)

    bad = next((o for o in done if o.status == FINDINGS), None) or next(
        (o for o in done if o.status != PASSED), None
    )
    terminal.say()
    terminal.say(
        f"{count(PASSED)} of {len(chosen)} rows closed without a finding; {count(FINDINGS)} with findings, "
        f"{count(NOT_CLOSED)} not closed, {len(chosen) - sum(map(count, _WORDS))} not done; {seconds:.0f} s"
    )
    if bad is not None and bad.error != "interrupted":
        terminal.say(f"next: {selection.command('verify', *options(bad.config))}")
    elif stopped:
        terminal.say(f"next: {selection.command(words[0] if words else 'matrix', *words[1:])}    (goes on)")
    if stopped:
        return status_of_interrupt()
    if any(o.error for o in done):
        return BAD_INPUT
    if count(FINDINGS):
        return FINDINGS
    return PASSED if count(PASSED) == len(chosen) else NOT_CLOSED
