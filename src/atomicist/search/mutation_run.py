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
from atomicist.search.alike import ANOTHER_REASON, GRADES, SAME, SAME_ENDS, alone, compare
from atomicist.search.certificate import certify
from atomicist.search.grouped import Group, ask_all, finds, members
from atomicist.search.mutation import Outcome, Part, Quick, batches, by_name, chunks, held
from atomicist.search.progress import Listener, Progress
from atomicist.search.workers import default_workers

MOST: Final = 500
"""Mutants in one image at most."""
SHOWN: Final = 16
"""Contexts with findings that are looked at before an image is closed again."""
DOUBTS: Final = 8
"""Certificates that hold for nothing which are looked at before an image is closed again."""
ALONE: Final = 16
"""Mutants in a portion of those that are looked at alone."""

ALIKE: Final = "on every interleaving it goes the same ways and leaves the same behind"


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
        lines = self._read()
        if lines and lines[0].get("about") == about:
            for line in lines[1:]:
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
    parts: Sequence[Part] = ()
    chunks: list[tuple[Mutant, ...]] = field(default_factory=list)
    batches: list[tuple[Mutant, ...]] = field(default_factory=list)


_here = _Here()


def _quick() -> tuple[Quick, Target]:
    if _here.quick is None or _here.target is None:
        raise RuntimeError("for the workers of a mutation run")
    return _here.quick, _here.target


def _chunk(number: int) -> tuple[str, list[Outcome]]:
    return f"probe {number}", _quick()[0].chunk(_here.chunks[number])


def _alone(number: int) -> tuple[str, list[Outcome]]:
    batch = _here.batches[number]
    quick, target = _quick()
    return batch_name("alone", batch), [alone(quick, target, m, _here.parts) for m in batch]


def _close(number: int) -> tuple[str, list[Outcome]]:
    batch = _here.batches[number]
    quick, target = _quick()
    asked = ask_all(quick, batch, _here.parts, finds(target))
    found = [o for o in asked if o.status == "killed"]
    names = {o.name for o in found}
    return batch_name("close", batch), found + close(quick, target, [m for m in batch if m.name not in names])


def _compare(grade: str, number: int) -> tuple[str, list[Outcome]]:
    batch = _here.batches[number]
    return batch_name(grade, batch), compare(*_quick(), batch, _here.parts, grade)


def batch_name(what: str, batch: Sequence[Mutant]) -> str:
    """A name for doing ``what`` with these mutants in one image."""
    return f"{what} " + hashlib.sha256("\n".join(m.name for m in batch).encode()).hexdigest()[:16]


def close(quick: Quick, target: Target, batch: Sequence[Mutant]) -> list[Outcome]:
    """Close the image with all of ``batch`` in it; those found are taken out until it passes, and
    those that meet others go into another image."""
    waiting, apart = [list(batch)] if batch else [], list[Mutant]()
    done: list[Outcome] = []
    while waiting:
        left = waiting.pop()
        started = time.monotonic()
        _Doubting.parts = []
        result, findings = certify(
            quick.mutator.apply(tuple(left)), workers=1, make=_Doubting, stop_after=SHOWN
        )
        if result.interrupted:
            raise KeyboardInterrupt
        because = result.open_because
        if not findings and not because:
            done += [Outcome(m.name, "passed", "closed") for m in left]
        else:
            group = Group(quick, members(quick, left), finds(target, "closed"))
            shown = [Part(raw.context, raw.finding.events[0].vector, closed=True) for raw in findings]
            for part in (*shown, *_Doubting.parts[:DOUBTS]):
                group.ask(part)
            found = group.found
            apart += [m.mutant for m in group.apart]
            if not found and not group.apart and len(left) == 1:
                name = f"IST{findings[0].finding.property:03d}" if findings else "not closed"
                found = [Outcome(left[0].name, "killed", "closed", name, reason="" if findings else because)]
            elif not found and not group.apart:
                waiting += [left[: len(left) // 2], left[len(left) // 2 :]]
            elif group.left:
                waiting.append([m.mutant for m in group.left])
            spent = (time.monotonic() - started) / max(len(found), 1)
            done += [replace(o, seconds=round(spent, 4)) for o in found]
        if not waiting and apart:
            waiting, apart = [apart], []
    return done


class _Doubting(workers.Workers):
    """Workers that keep which certificates hold for nothing."""

    parts: ClassVar[list[Part]] = []

    def map(self, function: Callable[[Any], Any], tasks: Any) -> Iterator[Any]:
        tasks = list(tasks)
        for task, answer in zip(tasks, super().map(function, tasks), strict=False):
            if answer.overflow or (answer.dependence is not None and not answer.findings):
                self.parts.append(Part(task.context, task.vector, closed=True, others=task.others))
            yield answer


class _Watching(workers.Workers):
    """Workers whose engines tell what they executed in each certificate."""

    parts: ClassVar[list[Part]] = []
    tried: ClassVar[Sequence[Sequence[int]]] = ()

    def __init__(self, target: Target, count: int, candidates: Sequence[Sequence[int]] = ()) -> None:
        super().__init__(target, count, candidates)
        _Watching.tried = candidates

    def map(self, function: Callable[[Any], Any], tasks: Any) -> Iterator[Any]:
        tasks = list(tasks)
        answers = super().map(functools.partial(_watched, function), tasks)
        for task, (answer, ran) in zip(tasks, answers, strict=False):
            part = Part(
                task.context,
                task.vector,
                closed=True,
                ran=ran,
                held=held(answer),
                ends=answer.ends,
                others=task.others,
                cost=answer.guest_insns,
            )
            self.parts.append(part)
            yield answer


def _watched(function: Callable[[Any], NativeResult], task: Any) -> tuple[NativeResult, bytes]:
    answer = function(task)
    return answer, workers.engine().ran()


def closed_parts(target: Target, count: int, listener: Listener) -> tuple[Part, ...]:
    """Close the unchanged ``target``: the certificates that took, each with what it executed, the
    cheapest first: one who looks for a mutant by halves does not pay for the dear ones.
    Raises `ValueError` if it does not pass."""
    _Watching.parts = []
    result, raw = certify(target, workers=count, listener=listener, make=_Watching)
    if result.interrupted:
        raise KeyboardInterrupt
    if raw or not result.closed:
        raise ValueError(result.open_because or f"it has a finding, IST{raw[0].finding.property:03d}")
    parts, _Watching.parts = _Watching.parts, []
    return tuple(sorted(parts, key=lambda part: part.cost))


def what_ran(parts: Sequence[Part]) -> bytes:
    """What any of ``parts`` executed."""
    together = 0
    for part in parts:
        together |= int.from_bytes(part.ran, "little")
    return together.to_bytes(len(parts[0].ran), "little")


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
    grades: dict[str, str] = {}
    complete = False
    ran = b""
    try:
        _here.parts = closed_parts(target, count, listener)
        ran = what_ran(_here.parts)
        _here.quick, _here.target = Quick(target, ran), target
        _here.quick.engine.candidates(_Watching.tried)
        _here.chunks = chunks(mutants)
        names = [f"probe {i}" for i in range(len(_here.chunks))]
        for portion in _portions(journal, names, _chunk, count, "probing mutants", len(mutants), listener):
            outcomes |= by_name(portion)
        for what, work, stage in (
            ("alone", _alone, "certifying survivors alone"),
            (SAME, functools.partial(_compare, SAME), "comparing survivors, all"),
            ("close", _close, "closing survivors"),
            (SAME_ENDS, functools.partial(_compare, SAME_ENDS), "comparing survivors, ends"),
            (ANOTHER_REASON, functools.partial(_compare, ANOTHER_REASON), "comparing survivors, commits"),
        ):
            waiting = [m for m in mutants if _undecided(outcomes[m.name], grades.get(m.name, ""), what)]
            if what == "alone":
                _here.batches = [tuple(waiting[i : i + ALONE]) for i in range(0, len(waiting), ALONE)]
            else:
                _here.batches = batches(_here.quick.mutator, waiting, MOST)
            names = [batch_name(what, b) for b in _here.batches]
            for portion in _portions(journal, names, work, count, stage, len(waiting), listener):
                for o in portion:
                    if o.status != "killed" and o.by in GRADES:
                        grades[o.name] = o.by
                    outcomes[o.name] = _after(outcomes[o.name], o, what)
        for name, o in outcomes.items():
            if o.status == "survived" and name in grades:
                outcomes[name] = replace(o, by=f"closed, {grades[name]}")
        complete = True
    except KeyboardInterrupt:
        finished = (p for name, p in journal.portions.items() if name.startswith("probe "))
        outcomes = {o.name: o for portion in finished for o in portion} | outcomes
    finally:
        _here.quick = _here.target = None
        _here.parts = ()
    skipped = tuple((n.why, n.count) for n in mutator.not_made())
    executed = sum(1 for flag in ran if flag & 1)
    return MutationRun(
        target.name, target.build_id, target.config, mutants, outcomes, skipped, executed, len(mutator.insns),
        complete, resumed, time.monotonic() - started,
    )  # fmt: skip


def _undecided(outcome: Outcome, grade: str, what: str) -> bool:
    """Whether the step ``what`` is to look at a mutant: found by none yet, and reached.  One that is
    equivalent by argument has only to be closed, by being the same in all certificates or otherwise."""
    if what in (SAME_ENDS, ANOTHER_REASON):
        return outcome.status == "survived" and grade == what
    left = outcome.status == "passed" or (outcome.status == "equivalent" and outcome.by == "argued")
    return left and (what == "alone" or (what == SAME) == (grade == SAME))


def _after(before: Outcome, after: Outcome, what: str) -> Outcome:
    """The outcome after the step ``what``, which says ``after``."""
    if after.status == "killed":
        return after
    if what not in (SAME, "close") or (what == SAME and after.by != SAME):
        return before
    if before.reason:
        return replace(before, by="argued and closed")
    if what == SAME:
        return replace(before, status="equivalent", by="closed and compared", reason=ALIKE)
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
