# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel's log says of its death, for the one line that a user gets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STAMP: Final = re.compile(r"^\[\s*\d+\.\d+\]\s?(?:\[[ TC]*\d+\]\s?)?")
_PANIC: Final = re.compile(r"Kernel panic - not syncing: (?P<why>.*)")
_RIP: Final = re.compile(r"RIP: \w+:(?P<place>\S+)")
_CALLED: Final = re.compile(r"^\s+(?P<name>[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+)\s*$")
_TROUBLE: Final = re.compile(
    r"(?<!RETBleed: )(?<!Spectre V2 : )(?<!Return Stack Overflow: )WARNING:"
    r"|BUG:|Oops|double fault|general protection|Kernel panic"
    r"|corrupted|rcu.*stall|soft lockup|unwind stack type"
)
MAX_LOG: Final = 64 << 20
SHOWN: Final = 6


@dataclass(frozen=True, slots=True)
class Death:
    """A panic: the ``why`` of its message, the ``rip`` it names first, the ``trace`` of callers."""

    why: str
    rip: str
    trace: tuple[str, ...]

    def line(self, log: Path) -> str:
        """All of it in one line, and where the rest is."""
        where = f" at {self.rip}" if self.rip else ""
        by = f", called by {' < '.join(self.trace[:SHOWN])}" if self.trace else ""
        return f"the guest panicked: {self.why}{where}{by}; log: {log}"


def lines(log: Path) -> list[str]:
    """The log's lines without their time stamps; none if it cannot be read."""
    try:
        with log.open("rb") as file:
            data = file.read(MAX_LOG)
    except OSError:
        return []
    return [_STAMP.sub("", line.rstrip("\r")) for line in data.decode(errors="replace").splitlines()]


def last_line(log: Path) -> str:
    """The log's last line, shortened."""
    return next((line.strip()[:100] for line in reversed(lines(log)) if line.strip()), "nothing")


def read(log: Path) -> Death | None:
    """The panic in ``log``, None if there is none."""
    text = lines(log)
    panic = next((m for line in text if (m := _PANIC.search(line))), None)
    if panic is None:
        return None
    rip = next((m["place"] for line in text if (m := _RIP.search(line))), "")
    trace = tuple(m["name"] for line in text if (m := _CALLED.match(line)))
    return Death(panic["why"].strip()[:160], rip, trace)


def trouble(log: Path) -> list[str]:
    """Lines of ``log`` that a kernel in good health does not write."""
    return [line for line in lines(log) if _TROUBLE.search(line)]
