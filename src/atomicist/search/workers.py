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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from typing import Final, Self, TypeVar

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


def start() -> None:
    """A worker leaves Ctrl-C to its parent, and dies with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Workers:
    """A pool for one target; a context manager. With ``count`` 1 all runs here."""

    def __init__(self, target: Target, count: int, candidates: Sequence[Sequence[int]] = ()) -> None:
        """``candidates``: values of the key registers, see `Engine.candidates`."""
        self._target = target
        self._candidates = tuple(tuple(some) for some in candidates)
        self._count = count
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        _here.target, _here.engine, _here.compiled = self._target, None, None
        _here.candidates = self._candidates
        new_engine(self._target).close()  # compile once, and fail here if there is no compiler
        if self._count > 1:
            self._pool = multiprocessing.get_context("fork").Pool(self._count, start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
        if _here.engine is not None:
            _here.engine.close()
        _here.target = _here.engine = _here.compiled = None

    def map(self, function: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
        """``function`` of each task, in order, as they come in."""
        if self._pool is None:
            return map(function, tasks)
        return self._pool.imap(function, tasks, chunksize=1)
