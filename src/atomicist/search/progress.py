# SPDX-License-Identifier: GPL-2.0-only
"""How a running search tells what it has done; the reports decide how to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``known`` explorations (more may become known), interleavings
    ``covered``, ``findings`` so far, and the ``stage`` in words."""

    stage: str
    done: int
    known: int
    covered: int
    findings: int


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Listen to nothing."""
