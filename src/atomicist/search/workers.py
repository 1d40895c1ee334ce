# SPDX-License-Identifier: GPL-2.0-only
"""Runs the native engine on both cores; results come back in the order of the tasks.

Workers are forked, so that they share the target, and build their engine when the
first task arrives.  Order, not arrival, decides everything downstream: one worker
and two give the same result.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Final, Self, TypeVar

from atomicist.machine.target import Target
from atomicist.native.codegen import Compiled, compiled
from atomicist.native.engine import Engine
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES

MAX_RUN: Final = 4_000
"""Bound on the instructions of one run, beyond which it counts as endless."""

Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Here:
    """What a worker process keeps."""

    target: Target | None = None
    engine: Engine | None = None
    compiled: Compiled | None = None
    candidates: tuple[tuple[int, ...], ...] = ()


_here = _Here()


def new_engine(target: Target) -> Engine:
    """The native runtime with the specification's tables, loaded with ``target``."""
    return Engine(target, CODES, EVENTS, ERROR_TOKEN, MAX_RUN)


def engine() -> Engine:
    """This process's engine. RuntimeError outside `Workers`."""
    if _here.engine is None:
        if _here.target is None:
            raise RuntimeError("no target: engine() is for tasks of Workers")
        _here.engine = new_engine(_here.target)
        if _here.candidates:
            _here.engine.candidates(_here.candidates)
    return _here.engine


def compiled_code() -> ctypes.c_void_p:
    """The address of this process's target as machine code, for `Engine.enumerate`."""
    if _here.compiled is None:
        if _here.target is None:
            raise RuntimeError("no target: compiled_code() is for tasks of Workers")
        _here.compiled = compiled(_here.target, CODES, EVENTS, ERROR_TOKEN)
    return _here.compiled.address


def default_workers() -> int:
    """One worker a core, at most two: more gain nothing on the machines this is for."""
    return max(1, min(2, os.cpu_count() or 1))


_PR_SET_PDEATHSIG: Final = 1

AHEAD: Final = 2
"""Tasks that a worker has at a time."""


class WorkerLost(Exception):  # noqa: N818 - it is lost, not wrong
    """A worker was killed from outside; nothing it did is missing from what was reported."""


def start() -> None:
    """A worker leaves Ctrl-C to its parent, and dies with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _work(here: Connection, others: Sequence[Connection]) -> None:
    """A worker: answers tasks until there are no more."""
    start()
    for other in others:
        other.close()
    while True:
        try:
            function, task = here.recv()
        except EOFError:
            return
        try:
            answer = True, function(task)
        except Exception as e:  # noqa: BLE001 - it is raised where the answer is taken
            answer = False, e
        here.send(answer)


@dataclass(slots=True)
class _Worker:
    process: ForkProcess
    to: Connection
    tasks: deque[tuple[int, int]] = field(default_factory=deque)
    """What it works on, and will: the number of the call of `Workers.map`, and of the task in it."""

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.to.close()

    def lost(self) -> WorkerLost:
        """Why it does not answer any more."""
        self.process.join(1)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return WorkerLost(
                "a worker was killed, most likely for want of memory: close something, or use --workers 1"
            )
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with status {code}"
        return WorkerLost(f"a worker ended {how}: try --workers 1, and report it if it ends the same way")


class Workers:
    """A pool for one target; a context manager. With ``count`` 1 all runs here."""

    def __init__(self, target: Target, count: int, candidates: Sequence[Sequence[int]] = ()) -> None:
        """``candidates``: values of the key registers, see `Engine.candidates`."""
        self._target = target
        self._candidates = tuple(tuple(some) for some in candidates)
        self._count = count
        self._workers: list[_Worker] = []
        self._calls = 0

    def __enter__(self) -> Self:
        _here.target, _here.engine, _here.compiled = self._target, None, None
        _here.candidates = self._candidates
        # compile once, and fail here if there is no compiler
        if self._count <= 1:
            engine()
        else:
            new_engine(self._target).close()
            fork = multiprocessing.get_context("fork")
            for _ in range(self._count):
                here, there = fork.Pipe()
                ours = [here, *(w.to for w in self._workers)]
                process = fork.Process(target=_work, args=(there, ours), daemon=True)
                process.start()
                there.close()
                self._workers.append(_Worker(process, here))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []
        if _here.engine is not None:
            _here.engine.close()
        _here.target = _here.engine = _here.compiled = None

    def map(self, function: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
        """``function`` of each task, in order, as they come in. Raises `WorkerLost`."""
        if not self._workers:
            return map(function, tasks)
        return self._map(function, list(tasks))

    def _map(self, function: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
        answers: dict[int, tuple[bool, Any]] = {}
        self._calls += 1
        call, given = self._calls, 0
        for number in range(len(tasks)):
            while number not in answers:
                # the next one waits at the worker while its last answer is looked at here
                for _ in range(AHEAD):
                    for worker in self._workers:
                        if len(worker.tasks) < AHEAD and given < len(tasks):
                            worker.tasks.append((call, given))
                            _send(worker, (function, tasks[given]))
                            given += 1
                for worker in self._answering():
                    answer, (of_call, task) = _receive(worker), worker.tasks.popleft()
                    # of a call that was given up nobody wants the rest
                    if of_call == call:
                        answers[task] = answer
            fine, result = answers.pop(number)
            if not fine:
                raise result
            yield result

    def _answering(self) -> list[_Worker]:
        """The workers that have something to say, or are no more; waits for the first."""
        ready = wait([w.to for w in self._workers if w.tasks])
        return [w for w in self._workers if w.to in ready]


def _send(worker: _Worker, message: object) -> None:
    try:
        worker.to.send(message)
    except OSError as e:
        raise worker.lost() from e


def _receive(worker: _Worker) -> tuple[bool, Any]:
    try:
        answer: tuple[bool, Any] = worker.to.recv()
    except (EOFError, OSError) as e:
        raise worker.lost() from e
    return answer
