# SPDX-License-Identifier: GPL-2.0-only
"""Shows how far a search is: drawn over on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.live import Live
from rich.text import Text

from atomicist.report.terminal import Terminal
from atomicist.report.text import count, duration, short
from atomicist.search.progress import Progress

EVERY: Final = 5.0
"""Seconds between lines where lines cannot be drawn over."""

_BAR: Final = 24


class Display:
    """A listener for a search, and a context manager around it.

    Nothing is drawn, and no thread started, before the first progress arrives: the
    search has forked its workers by then."""

    def __init__(
        self, terminal: Terminal, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._terminal = terminal
        self._quiet = quiet
        self._clock = clock
        self._started = clock()
        self._said = self._started - EVERY
        self._last: Progress | None = None
        self._stage_at = (self._started, 0, 0)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def __call__(self, progress: Progress) -> None:
        """Take note of ``progress``."""
        if self._quiet:
            return
        if self._last is None or self._last.stage != progress.stage:
            self._stage_at = (self._clock(), progress.done, progress.covered)
        self._last = progress
        if self._terminal.live:
            if self._live is None:
                self._live = Live(
                    get_renderable=self._draw, console=self._terminal, transient=True, refresh_per_second=4,
                    redirect_stdout=False, redirect_stderr=False,
                )  # fmt: skip
                self._live.start()
        elif self._clock() - self._said >= EVERY:
            self._said = self._clock()
            self._terminal.say(self.words(1 << 16))
            self._terminal.file.flush()

    def _draw(self) -> Text:
        return Text(self.words(self._terminal.width), no_wrap=True, overflow="crop")

    def words(self, width: int) -> str:
        """The progress in one line, with as many of its parts as ``width`` has room for."""
        p = self._last
        if p is None:
            return ""
        began, done, covered = self._stage_at
        spent = self._clock() - began
        rate = (p.covered - covered) / spent if spent > 0.5 else 0.0
        left = spent / (p.done - done) * (p.known - p.done) if p.done > done else None
        found = count(p.findings, "finding") if p.findings else ""
        # In order of importance; shown in the order of the line.
        parts = [
            (2, p.stage),
            (5, self._bar(p) if self._terminal.live else ""),
            (0, f"{p.done}/{p.known}"),
            (1, found),
            (3, f"{duration(left)} left" if left is not None and p.known > p.done else ""),
            (4, f"{short(p.covered)} interleavings"),
            (6, f"{short(rate)}/s" if rate else ""),
            (7, f"{duration(self._clock() - self._started)} spent"),
        ]
        kept = [(rank, text) for rank, text in parts if text]
        while len(kept) > 1 and sum(len(text) + 2 for _, text in kept) - 2 >= width:
            kept.remove(max(kept))
        return "  ".join(text for _, text in kept)

    def _bar(self, p: Progress) -> str:
        full, empty = ("#", ".") if self._terminal.ascii else ("\u2588", "\u2591")
        filled = min(_BAR, _BAR * p.done // max(1, p.known))
        return full * filled + empty * (_BAR - filled)
