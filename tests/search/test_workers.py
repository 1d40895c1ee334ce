# SPDX-License-Identifier: GPL-2.0-only
"""The workers: answers in order; one that is lost ends the run with a word, not with silence."""

from __future__ import annotations

import os
import signal
import time

import pytest

from atomicist.cli.failures import KNOWN, words
from atomicist.machine.target import Target
from atomicist.search.workers import WorkerLost, Workers


def slow_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return -number


def fall(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int) -> int:
    raise LookupError(str(number))


def test_answers_come_in_the_order_of_the_tasks(entry: Target) -> None:
    with Workers(entry, 2) as pool:
        assert list(pool.map(slow_first, range(20))) == [-n for n in range(20)]


def test_a_call_that_is_given_up_leaves_nothing_behind(entry: Target) -> None:
    with Workers(entry, 2) as pool:
        first = pool.map(slow_first, range(20))
        assert next(first) == 0
        del first
        assert list(pool.map(slow_first, range(5, 9))) == [-5, -6, -7, -8]


def test_a_killed_worker_ends_the_run(entry: Target) -> None:
    """As by the kernel, when memory is short: one line says so, and nothing waits for ever."""
    with Workers(entry, 2) as pool, pytest.raises(WorkerLost) as lost:
        list(pool.map(fall, range(20)))
    assert isinstance(lost.value, KNOWN)
    assert words(lost.value).startswith("a worker was killed, most likely for want of memory:")
    assert "\n" not in words(lost.value)


def test_what_a_task_raises_is_raised_here(entry: Target) -> None:
    with Workers(entry, 2) as pool, pytest.raises(LookupError, match="0"):
        list(pool.map(refuse, range(4)))
