# SPDX-License-Identifier: GPL-2.0-only
"""Words and numbers for people: cleaned, counted, wrapped.

Whatever comes from an image - names of symbols, files, instructions - is not ours
and passes through `clean` before it is shown.
"""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from typing import Final

MAX_NAME: Final = 200
"""Characters of one name that are shown."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output; ``style`` only adds to what the words say."""

    text: str = ""
    style: str = ""


def clean(text: str) -> str:
    """``text`` on one line, without anything that a terminal or a parser acts on."""
    if len(text) > MAX_NAME * 50:
        text = text[: MAX_NAME * 50] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def name(text: str) -> str:
    """A name from an image: cleaned, and cut where it is absurdly long."""
    text = clean(text)
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "..."


def count(number: int, noun: str, plural: str = "") -> str:
    """ "1 finding", "2,000 findings"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def short(number: float) -> str:
    """A number in at most four digits and a letter: 31.7 G."""
    for letter in ("", " k", " M", " G", " T"):
        if number < 999.5:
            return f"{number:.0f}{letter}" if not letter or number >= 99.95 else f"{number:.1f}{letter}"
        number /= 1000
    return f"{number:.0f} P"


def duration(seconds: float) -> str:
    """Seconds as "0.8 s", "42 s", "3:07 min" or "2:05 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def join(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def sentence(text: str) -> str:
    """``text`` with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def wrap(text: str, width: int, indent: int = 0, hanging: int | None = None) -> list[str]:
    """``text`` in lines of at most ``width``; a word that is longer stays whole."""
    room = max(20, min(width, 100))
    later = indent if hanging is None else hanging
    return textwrap.wrap(
        clean(text), room, initial_indent=" " * indent, subsequent_indent=" " * later, break_long_words=False,
        break_on_hyphens=False,
    ) or [""]  # fmt: skip


def shell(words: tuple[str, ...]) -> str:
    """A command line that a shell reads back as ``words``."""
    return " ".join(shlex.quote(clean(word)) for word in words)
