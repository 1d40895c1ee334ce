# SPDX-License-Identifier: GPL-2.0-only
"""The terminal: rich, without its markup, and robust against readers that go away."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.text import Text

from atomicist.report.text import Line


class Terminal(Console):
    """A console on one stream.  Strings are printed as they are: no markup, no emoji, no
    highlighting.  NO_COLOR, COLUMNS and TERM are honoured as rich does."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        super().__init__(file=stream, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more: go on silently, so that the exit status stays true."""
        self.quiet = True
        try:
            number = self.file.fileno()
        except OSError:
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)

    @property
    def live(self) -> bool:
        """Whether lines can be drawn over."""
        return self.is_terminal and not self.is_dumb_terminal

    @property
    def ascii(self) -> bool:
        """Whether only ASCII can be shown."""
        return not self.encoding.lower().startswith("utf")

    def lines(self, lines: Iterable[Line]) -> None:
        """Print lines that are already as wide as they should be."""
        for line in lines:
            self.print(Text(line.text, style=line.style), soft_wrap=True)

    def say(self, text: str = "", style: str = "") -> None:
        """Print one line as it is; the terminal may wrap it, so that it can be copied."""
        self.lines([Line(text, style)])

    def data(self, text: str) -> None:
        """Write ``text`` for a program: byte for byte."""
        try:
            self.file.write(text)
            self.file.flush()
        except BrokenPipeError:
            self.on_broken_pipe()
