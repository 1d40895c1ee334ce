# SPDX-License-Identifier: GPL-2.0-only
"""Says where an instruction is: symbol and offset, its text, its source line."""

from __future__ import annotations

from collections.abc import Callable

from atomicist.report.text import clean, name
from atomicist.search.replay import Replay

Source = Callable[[int], str]
"""The file:line of the instruction at an address; empty where it is not known."""


def no_lines(_: int) -> str:
    """Where there are no source lines."""
    return ""


class Places:
    """The places of one replay's target."""

    def __init__(self, replay: Replay, source: Source) -> None:
        self._target = replay.target
        self._source = source

    def bare(self, address: int) -> str:
        """Symbol and offset."""
        return name(self._target.symbolize(address))

    def full(self, address: int) -> str:
        """Symbol and offset, the instruction, and the source line, as far as known."""
        insn = self._target.insns.get(address)
        handler = address in self._target.handlers
        line = self.line(address)
        parts = [self.bare(address)]
        if insn is not None and not handler:
            parts.append(f'"{clean(insn.text)}"')
        if line and not handler:
            parts.append(f"[{line}]")
        return " ".join(parts)

    def line(self, address: int) -> str:
        """The source line, cleaned."""
        return name(self._source(address))
