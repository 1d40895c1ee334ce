# SPDX-License-Identifier: GPL-2.0-only
"""Rows of the matrix, done in processes of their own.

A process is forked from the one that has all modules loaded, does the rows of one *job*, and ends; if it
dies, it is the rows of that job that have an error.  It leads a group of processes, so that what it has
started (compilers) ends with it.  A job of several rows is one run, where that can be told to say the
same of each of them (`search.joined`); if it does not close without a finding, each row is run alone, and
has its own result.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Final

from atomicist.cli import failures
from atomicist.cli.errors import BAD_INPUT, FINDINGS, NOT_CLOSED, PASSED
from atomicist.cli.main import main
from atomicist.image import bare
from atomicist.image.bare import BareConfig
from atomicist.image.errors import ImageError
from atomicist.native.build import cache_dir
from atomicist.report.as_json import result_json
from atomicist.search.joined import same_machine, verify_joined
from atomicist.search.workers import start
from atomicist.spec.events import EVENTS

VERDICTS: Final = (PASSED, FINDINGS, NOT_CLOSED)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one row: ``status`` and ``result`` of its `verify`; ``error``, one line, if that could not run."""

    status: int
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""


Job = tuple[BareConfig, ...]
Do = Callable[[Job, str], list[Answer]]


def options(config: BareConfig) -> list[str]:
    """The options of `verify` that mean ``config``."""
    switches = {"--no-pti": config.pti, "--no-pcid": config.pcid, "--no-fsgsbase": config.fsgsbase}
    return [
        "--variant", config.variant, "--mitigation", config.mitigation, "--cc", config.cc,
        *(name for name, on in switches.items() if not on),
    ]  # fmt: skip


def do(job: Job, vectors: str) -> list[Answer]:
    """Verify the rows of ``job``, here; ``vectors`` as the option of `verify`, or empty."""
    return (joined(job, vectors) if len(job) > 1 else None) or [alone(config, vectors) for config in job]


def alone(config: BareConfig, vectors: str) -> Answer:
    """What `verify` says of one row."""
    out, err = io.StringIO(), io.StringIO()
    words = ["verify", "--workers", "1", "--quiet", "--json", "-"]
    chosen = ["--vector", vectors] if vectors else []
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*words, *chosen, *options(config)])
    if status not in VERDICTS:
        lines = [line for line in err.getvalue().splitlines() if line.strip()]
        return Answer(BAD_INPUT, error=lines[-1] if lines else f"ended with {status}")
    return Answer(status, json.loads(out.getvalue()))


def joined(job: Job, vectors: str) -> list[Answer] | None:
    """What one run says of all rows of ``job``: that they passed; None if it does not say that."""
    source, cache = bare.kernel_source(), cache_dir()
    try:
        targets = [bare.load(bare.build(source, config, cache), config) for config in job]
    except ImageError:
        return None  # of some row, which will say so itself
    if not all(same_machine(targets[0], other) for other in targets[1:]):
        return None
    numbers = tuple(EVENTS.index(v) for v in EVENTS if not vectors or v.lower() in vectors.split(","))
    results = verify_joined(targets, vectors=numbers, workers=1)
    if results is None:
        return None
    names = [list(config.names()) for config in job]
    documents = [json.loads(result_json(result)) for result in results]
    return [Answer(PASSED, document | {"joined": names}) for document in documents]


def _child(to: Connection, do_job: Do, job: Job, vectors: str) -> None:
    os.setsid()
    start()
    try:
        answers = do_job(job, vectors)
    except failures.KNOWN as e:
        answers = [Answer(BAD_INPUT, error=failures.words(e))] * len(job)
    to.send(answers)


def run_all(
    jobs: Sequence[Job], vectors: str, count: int, do_job: Do = do
) -> Generator[tuple[Job, list[Answer]], None, None]:
    """The answers to ``jobs``, at most ``count`` at a time, as they come in.

    Closing the generator ends the jobs that are under way."""
    importlib.import_module("atomicist.cli.verify")  # once, before the forks
    fork = multiprocessing.get_context("fork")
    waiting = deque(jobs)
    running: dict[Connection, tuple[Job, ForkProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < count:
                job = waiting.popleft()
                here, there = fork.Pipe(duplex=False)
                process = fork.Process(target=_child, args=(there, do_job, job, vectors))
                process.start()
                there.close()
                running[here] = (job, process)
            ready = wait(list(running))
            for here in [c for c in running if c in ready]:
                job, process = running.pop(here)
                yield job, _received(here, job, process)
    finally:
        for here, (_, process) in running.items():
            _kill(process)
            here.close()


def _received(here: Connection, job: Job, process: ForkProcess) -> list[Answer]:
    answers: list[Answer] | None
    try:
        answers = here.recv()
    except (EOFError, OSError):
        answers = None
    here.close()
    process.join()
    if answers is None:
        code = process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return [Answer(BAD_INPUT, error=f"its process ended {how}")] * len(job)
    return answers


def _kill(process: ForkProcess) -> None:
    try:
        os.killpg(process.ident or 0, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # it had no group of its own yet
    process.join()
