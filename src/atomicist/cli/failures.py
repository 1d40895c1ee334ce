# SPDX-License-Identifier: GPL-2.0-only
"""The failures that are the input's or the machine's, not ours, each as one line."""

from __future__ import annotations

from typing import Final

from atomicist.crosscheck.engines import MissingError
from atomicist.guest.errors import GuestError
from atomicist.image.errors import ImageError
from atomicist.native.build import BuildError
from atomicist.report.files import OutputError
from atomicist.search.schedule import ScheduleError
from atomicist.search.verify import Disagreement
from atomicist.search.workers import WorkerLost
from atomicist.tree.errors import TreeError

KNOWN: Final = (
    GuestError,
    TreeError,
    ImageError,
    ScheduleError,
    BuildError,
    OutputError,
    Disagreement,
    WorkerLost,
    MissingError,
    OSError,
    MemoryError,
)


def words(error: BaseException) -> str:
    """What happened and what to do, in one line."""
    match error:
        case Disagreement():
            return f"the engines disagree; please report: {error}"
        case MemoryError():
            return "out of memory: close something, or use --workers 1"
        case OSError(strerror=why, filename=name) if why:
            return f"{name}: {why}" if name else why
        case _:
            return str(error)
