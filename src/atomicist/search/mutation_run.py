# SPDX-License-Identifier: GPL-2.0-only
"""A whole mutation run of one image: worked on by portions, kept in a journal, resumed.

The journal is a file of lines, each a finished portion, written at once and flushed; a
last line that is not whole is a portion that was not finished.  Its first line names
what it is about: an image, and the code that looks at it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from atomicist.image.mutate import Mutant, Mutator
from atomicist.machine.target import Target
from atomicist.native.engine import NativeResult
from atomicist.search import workers
from atomicist.search.certificate import Raw, certify
from atomicist.search.mutation import Outcome, Quick, batches, by_name, chunks
from atomicist.search.progress import Listener, Progress
from atomicist.search.workers import default_workers
from atomicist.spec.events import EVENTS

MOST: Final = 400
"""Mutants that are closed together at most."""


@dataclass(frozen=True, slots=True)
class MutationRun:
    """The outcomes of all mutants of one image, in their order; ``complete`` unless it was
    interrupted.  ``seconds`` counts the present run alone, ``resumed`` the outcomes that
    were there before."""

    image: str
    build_id: str
    config: tuple[str, ...]
    mutants: tuple[Mutant, ...]
    outcomes: Mapping[str, Outcome]
    not_made: tuple[tuple[str, int], ...]
    executed: int
    instructions: int
    complete: bool
    resumed: int
    seconds: float


class Journal:
    """Finished portions, by name, in a file."""

    def __init__(self, place: Path, about: str) -> None:
        self._place = place
        self.portions: dict[str, list[Outcome]] = {}
        self.ran = b""
        lines = self._read()
        if lines and lines[0].get("about") == about:
            for line in lines[1:]:
                if "ran" in line:
                    self.ran = bytes.fromhex(line["ran"])
                else:
                    self.portions[line["portion"]] = [Outcome(**o) for o in line["outcomes"]]
            # what was cut off is written again
            self._write([json.dumps(line) for line in lines], "w")
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._write([json.dumps({"about": about})], "w")

    def _read(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            for text in self._place.read_text(encoding="utf-8").splitlines():
                found.append(json.loads(text))  # noqa: PERF401 - those before a damaged line count
        except (OSError, ValueError):
            return found
        return found

    def _write(self, lines: Sequence[str], mode: str) -> None:
        place = self._place.with_suffix(".new") if mode == "w" else self._place
        with place.open(mode, encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        if mode == "w":
            place.replace(self._place)

    def add(self, portion: str, outcomes: Sequence[Outcome]) -> None:
        """Keep a finished portion."""
        self.portions[portion] = list(outcomes)
        self._write([json.dumps({"portion": portion, "outcomes": [asdict(o) for o in outcomes]})], "a")

    def add_ran(self, ran: bytes) -> None:
        """Keep what the unchanged image executes."""
        self.ran = ran
        self._write([json.dumps({"ran": ran.hex()})], "a")


@functools.cache
def _code() -> str:
    key = hashlib.sha256()
    root = Path(__file__).parents[1]
    for room in ("isa", "machine", "native", "image", "spec", "search"):
        for file in sorted(p for p in (root / room).rglob("*") if p.suffix in (".py", ".c", ".h")):
            key.update(file.read_bytes())
    return key.hexdigest()[:32]


@dataclass(slots=True)
class _Here:
    quick: Quick | None = None
    target: Target | None = None
    chunks: list[tuple[Mutant, ...]] = field(default_factory=list)
    batches: list[tuple[Mutant, ...]] = field(default_factory=list)


_here = _Here()


def _quick() -> Quick:
    if _here.quick is None:
        raise RuntimeError("for the workers of a mutation run")
    return _here.quick


def _chunk(number: int) -> tuple[str, list[Outcome]]:
    return f"probe {number}", _quick().chunk(_here.chunks[number])


def _close(number: int) -> tuple[str, list[Outcome]]:
    batch = _here.batches[number]
    return batch_name(batch), close(_quick(), batch)


def batch_name(batch: Sequence[Mutant]) -> str:
    """A name for these mutants in one image."""
    return "close " + hashlib.sha256("\n".join(m.name for m in batch).encode()).hexdigest()[:16]


def first_finding(target: Target) -> tuple[Raw | None, str]:
    """The first finding of closing ``target`` in this process, and why it is not closed."""

    def enough(progress: Progress) -> None:
        if progress.findings:
            raise KeyboardInterrupt

    result, raw = certify(target, workers=1, listener=enough)
    return (raw[0] if raw else None), result.open_because


def close(quick: Quick, batch: Sequence[Mutant]) -> list[Outcome]:
    """Close the image with all of ``batch`` in it; those found are taken out until it passes."""
    left, done = list(batch), []
    while left:
        started = time.monotonic()
        raw, because = first_finding(quick.mutator.apply(tuple(left)))
        if raw is None and not because:
            done += [Outcome(m.name, "passed", "closed") for m in left]
            break
        found = []
        if raw is not None:
            vectors = [v for v, name in enumerate(EVENTS) if raw.context.only in ("", name)]
            found = [o for m in left if (o := quick.find_in(m, raw.context, vectors)) is not None]
        if not found and len(left) == 1:
            shown = f"IST{raw.finding.property:03d}" if raw else "not closed"
            found = [Outcome(left[0].name, "killed", "closed", shown, reason="" if raw else because)]
        if not found:
            half = len(left) // 2
            return done + close(quick, left[:half]) + close(quick, left[half:])
        spent = (time.monotonic() - started) / len(found)
        done += [
            Outcome(o.name, o.status, o.by, o.property, o.schedule, o.reason, round(spent, 4)) for o in found
        ]
        names = {o.name for o in found}
        left = [m for m in left if m.name not in names]
    return done


class _Watching(workers.Workers):
    """Workers whose engines tell what they executed."""

    ran: ClassVar[bytes] = b""

    def map(self, function: Callable[[Any], Any], tasks: Any) -> Iterator[Any]:
        for answer, ran in super().map(functools.partial(_watched, function), tasks):
            _Watching.ran = bytes(a | b for a, b in zip(self.ran, ran, strict=True)) if self.ran else ran
            yield answer


def _watched(function: Callable[[Any], NativeResult], task: Any) -> tuple[NativeResult, bytes]:
    answer = function(task)
    return answer, workers.engine().ran()


def what_runs(target: Target, count: int, listener: Listener) -> bytes:
    """Close the unchanged ``target``: what was executed. Raises `ValueError` if it does not pass."""
    _Watching.ran = b""
    result, raw = certify(target, workers=count, listener=listener, make=_Watching)
    if result.interrupted:
        raise KeyboardInterrupt
    if raw or not result.closed:
        raise ValueError(result.open_because or f"it has a finding, IST{raw[0].finding.property:03d}")
    return _Watching.ran


def run(
    target: Target, place: Path, count: int, listener: Listener, only: Sequence[str] = (), where: str = ".*"
) -> MutationRun:  # fmt: skip
    """All mutants of ``target``, kept in the journal ``place``; with ``only``, of these kinds;
    with ``where``, those at whose place (symbol+offset) the regular expression matches.

    A KeyboardInterrupt ends it cleanly. Raises `ValueError` if the unchanged target does
    not pass."""
    started = time.monotonic()
    count = count or default_workers()
    about = f"{target.build_id} {' '.join(target.config)} {_code()} {' '.join(only)} {where}"
    journal = Journal(place, about)
    resumed = sum(len(p) for p in journal.portions.values())
    mutator = Mutator(target)
    chosen = re.compile(where)
    mutants = tuple(
        m
        for m in mutator.mutants()
        if (not only or m.kind in only) and chosen.fullmatch(m.name.partition("@")[2])
    )
    outcomes: dict[str, Outcome] = {}
    complete = False
    try:
        if not journal.ran:
            journal.add_ran(what_runs(target, count, listener))
        _here.quick, _here.target = Quick(target, journal.ran), target
        _here.chunks = chunks(mutants)
        names = [f"probe {i}" for i in range(len(_here.chunks))]
        for portion in _portions(journal, names, _chunk, count, "probing mutants", len(mutants), listener):
            outcomes |= by_name(portion)
        undecided = ("argued", "certificate")
        waiting = [
            m for m in mutants if outcomes[m.name].status != "killed" and outcomes[m.name].by in undecided
        ]
        _here.batches = batches(_here.quick.mutator, waiting, MOST)
        names = [batch_name(b) for b in _here.batches]
        for portion in _portions(journal, names, _close, count, "closing survivors", len(waiting), listener):
            outcomes |= {o.name: _closed(outcomes[o.name], o) for o in portion}
        complete = True
    except KeyboardInterrupt:
        finished = (p for name, p in journal.portions.items() if name.startswith("probe "))
        outcomes = {o.name: o for portion in finished for o in portion} | outcomes
    finally:
        _here.quick = _here.target = None
    skipped = tuple((n.why, n.count) for n in mutator.not_made())
    executed = sum(1 for flag in journal.ran if flag & 1)
    return MutationRun(
        target.name, target.build_id, target.config, mutants, outcomes, skipped, executed, len(mutator.insns),
        complete, resumed, time.monotonic() - started,
    )  # fmt: skip


def _closed(before: Outcome, after: Outcome) -> Outcome:
    """The outcome after closing, of what was argued or not before."""
    if after.status == "killed":
        return after
    if before.reason:
        return replace(before, status="equivalent", by="argued and closed")
    return replace(before, status="survived", by="closed")


def _portions(
    journal: Journal, names: Sequence[str], work: Callable[[int], tuple[str, list[Outcome]]], count: int,
    stage: str, known: int, listener: Listener,
) -> Iterator[list[Outcome]]:  # fmt: skip
    """The portions in order: those that are in the journal, and then the rest."""
    done = killed = 0
    for name in names:
        if name in journal.portions:
            done += len(journal.portions[name])
            killed += sum(o.status == "killed" for o in journal.portions[name])
    todo = [i for i, name in enumerate(names) if name not in journal.portions]
    listener(Progress(stage, done, known, 0, killed))
    if todo and count > 1:
        fork = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(count, fork, workers.start)
        try:
            finished = as_completed([pool.submit(work, i) for i in todo])
            _collect(journal, (f.result() for f in finished), stage, done, known, killed, listener)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    else:
        _collect(journal, map(work, todo), stage, done, known, killed, listener)
    for name in names:
        yield journal.portions[name]


def _collect(
    journal: Journal, answers: Iterator[tuple[str, list[Outcome]]], stage: str, done: int, known: int,
    killed: int, listener: Listener,
) -> None:  # fmt: skip
    for name, outcomes in answers:
        journal.add(name, outcomes)
        done += len(outcomes)
        killed += sum(o.status == "killed" for o in outcomes)
        listener(Progress(stage, done, known, 0, killed))
