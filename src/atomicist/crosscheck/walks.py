# SPDX-License-Identifier: GPL-2.0-only
"""Schedules walked in Unicorn: all with two events, or given ones; nothing here is from `search`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from atomicist.crosscheck.walker import Walker
from atomicist.machine.target import Target
from atomicist.spec.contexts import Context
from atomicist.spec.events import EVENTS
from atomicist.spec.observer import Done, DoubleFault, Violation
from atomicist.spec.properties import BY_KEY

MAX_STEPS: Final = 4_000
"""For each event and the start; beyond that a run counts as endless."""


@dataclass(frozen=True, slots=True)
class Event:
    """``vector`` is delivered ``steps`` instructions after the event before; a handler counts as one."""

    vector: str
    steps: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How a schedule ended: the number of the ``property`` violated, or "" with the ``outcome``."""

    property: str
    outcome: str


def ended(error: Exception) -> Ending:
    """What an exception that ends a run says."""
    match error:
        case Done():
            return Ending("", "resumed")
        case DoubleFault():
            return Ending("", "double fault, with cause")
        case Violation():
            return Ending(BY_KEY[error.key].number, "violated")
    raise error


def run(walker: Walker, left: int) -> Ending:
    """On to the end, without further events; ``left`` instructions may still be executed."""
    try:
        for _ in range(left):
            walker.commit()
            walker.step()
    except (Done, DoubleFault, Violation) as e:
        return ended(e)
    return Ending(BY_KEY["ENDLESS"].number, "violated")


def pairs(
    target: Target, context: Context, first: str, vectors: Sequence[str] = EVENTS, every: int = 1
) -> Iterator[tuple[tuple[Event, ...], Ending]]:
    """All schedules of ``first`` in ``context`` and one more of ``vectors`` at any boundary behind it (or
    at one in ``every``), each with its ending; the first is ``first`` alone."""
    walker = Walker(target)
    walker.begin(context)
    if not walker.observer.gate_open(first):
        return
    start = Event(first, 0)
    try:
        walker.inject(first)
    except Violation as e:
        yield (start,), ended(e)
        return
    ending = None
    for steps in range(2 * MAX_STEPS):
        try:
            walker.commit()
        except Violation as e:
            ending = ended(e)
            break
        saved = walker.save()
        for vector in vectors if steps % every == 0 else ():
            if not walker.observer.gate_open(vector):
                continue
            try:
                walker.inject(vector)
                found = run(walker, 3 * MAX_STEPS)
            except (Done, DoubleFault, Violation) as e:
                found = ended(e)
            yield (start, Event(vector, steps)), found
            walker.restore(saved)
        try:
            walker.step()
        except (Done, DoubleFault, Violation) as e:
            ending = ended(e)
            break
    yield (start,), ending or Ending(BY_KEY["ENDLESS"].number, "violated")


def schedule(
    target: Target, context: Context, events: Sequence[Event], walker: Walker | None = None
) -> tuple[tuple[Event, ...], Ending]:
    """Run ``events``, on ``walker`` if there is one already; an event whose gate is closed where it is due,
    or that is due too late, is left out."""
    walker = walker or Walker(target)
    walker.begin(context)
    delivered: list[Event] = []
    waiting = list(events)
    steps = 0
    try:
        for _ in range(MAX_STEPS * (1 + len(events))):
            walker.commit()
            while waiting and waiting[0].steps <= steps:
                event = waiting.pop(0)
                if not walker.observer.gate_open(event.vector):
                    continue
                delivered.append(Event(event.vector, steps))
                walker.inject(event.vector)
                steps = 0
                walker.commit()
            if not delivered:
                return (), Ending("", "no event")
            walker.step()
            steps += 1
    except (Done, DoubleFault, Violation) as e:
        return tuple(delivered), ended(e)
    return tuple(delivered), Ending(BY_KEY["ENDLESS"].number, "violated")
