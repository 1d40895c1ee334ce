# SPDX-License-Identifier: GPL-2.0-only
"""Schedules: which event arrives where, as a short string that replays it.

    CONTEXT:EVENT[@PLACE][,EVENT@PLACE ...]

``user:NMI,MC@asm_exc_nmi+0x2b`` - from the start context ``user``, an NMI at once;
then a #MC when RIP first reaches asm_exc_nmi+0x2b.  A PLACE is a symbol with an
optional offset; ``+0x2b`` alone counts from the entry of the event before; ``#3``
behind it waits for the third time; ``~64`` lets a handler have used 64 more bytes
of stack.  The image, its build id and its configuration are given beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from atomicist.machine.target import Target
from atomicist.spec.events import EVENTS

MAX_EVENTS: Final = 64
MAX_LENGTH: Final = 8192

_EVENT: Final = re.compile(
    r"(?P<vector>[A-Z]+)(?:@(?P<symbol>[A-Za-z_.$][\w.$]*)?(?:\+(?:0x(?P<hex>[0-9a-f]{1,16})|(?P<offset>[0-9]{1,20})))?"
    r"(?:#(?P<nth>[0-9]{1,6}))?(?:~(?P<depth>[0-9]{1,5}))?)?"
)
_CONTEXT: Final = re.compile(r"[a-z][\w+.-]*")


class ScheduleError(Exception):
    """The string is no schedule, or not one for this image; says what is wrong."""


@dataclass(frozen=True, slots=True)
class Injection:
    """Deliver ``vector`` when RIP is ``rip`` for the ``nth`` time since the event
    before (None: at once); inside a handler, with RSP ``depth`` bytes lower."""

    vector: str
    rip: int | None
    nth: int = 1
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """A start context by name, and the injections in order."""

    context: str
    injections: tuple[Injection, ...]

    def text(self, target: Target) -> str:
        """The string that `parse` reads back."""
        return f"{self.context}:" + ",".join(_text(i, target) for i in self.injections)


def _text(injection: Injection, target: Target) -> str:
    if injection.rip is None:
        return injection.vector
    nth = f"#{injection.nth}" if injection.nth > 1 else ""
    depth = f"~{injection.depth}" if injection.depth else ""
    return f"{injection.vector}@{target.symbolize(injection.rip)}{nth}{depth}"


def parse(text: str, target: Target) -> Schedule:
    """Read a schedule for ``target``. Raises `ScheduleError`."""
    if len(text) > MAX_LENGTH:
        raise ScheduleError(f"a schedule has at most {MAX_LENGTH} characters, this one {len(text)}")
    context, colon, events = text.strip().partition(":")
    if not colon or not _CONTEXT.fullmatch(context):
        raise ScheduleError(
            "a schedule reads CONTEXT:EVENT[@PLACE],...: for example user:NMI,MC@asm_exc_nmi+0x4"
        )
    parts = events.split(",")
    if len(parts) > MAX_EVENTS:
        raise ScheduleError(f"a schedule has at most {MAX_EVENTS} events, this one {len(parts)}")
    injections: list[Injection] = []
    for part in parts:
        injections.append(_injection(part.strip(), target, injections[-1] if injections else None))
    return Schedule(context, tuple(injections))


def _injection(part: str, target: Target, before: Injection | None) -> Injection:
    match = _EVENT.fullmatch(part)
    if match is None:
        raise ScheduleError(
            f"'{part[:60]}' is no event: write VECTOR@symbol+0xoffset, for example MC@asm_exc_nmi+0x4"
        )
    vector, symbol = match["vector"], match["symbol"]
    offset = int(match["hex"], 16) if match["hex"] else int(match["offset"] or 0)
    if vector not in EVENTS:
        raise ScheduleError(f"'{vector}' is no event: they are {', '.join(EVENTS)}")
    if vector not in target.gates:
        raise ScheduleError(f"{target.name} has no entry for {vector}")
    nth = int(match["nth"] or 1)
    if nth < 1:
        raise ScheduleError(f"'{part[:60]}': places are counted from #1")
    if symbol is None and match["hex"] is None and match["offset"] is None:
        if "@" in part or before is not None:
            raise ScheduleError(f"'{part[:60]}' names no place: only the first event needs none")
        return Injection(vector, None)
    if symbol is None:
        if before is None:
            raise ScheduleError(
                f"'{part[:60]}': an offset alone counts from the event before, and there is none"
            )
        base = target.gates[before.vector].offset
    elif symbol in target.symbols:
        base = target.symbols[symbol]
    else:
        raise ScheduleError(f"{target.name} has no symbol '{symbol[:60]}'")
    return Injection(vector, base + offset, nth, int(match["depth"] or 0))
