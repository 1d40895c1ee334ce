# SPDX-License-Identifier: GPL-2.0-only
"""What an NMI costs: instructions executed in the entry, counted in single steps, and NMIs a second.

Counted are the instructions between the delivery and the run of the interrupted context, but for the
handler's own: those are the same for every entry.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from atomicist.guest.errors import GuestError
from atomicist.guest.inject import Attacker
from atomicist.guest.linux import Linux

EVENTS: Final = ("NMI", "MC", "DB")


@dataclass(frozen=True, slots=True)
class Path:
    """Instructions for ``event`` from ``context``: ``before`` its handler, ``after`` it; ``wide`` of
    them are no padding."""

    event: str
    context: str
    before: int
    after: int
    padding: int

    @property
    def total(self) -> int:
        """All of them, without padding."""
        return self.before + self.after - self.padding


def paths(attacker: Attacker, context: str) -> tuple[Path, ...]:
    """The way of each event from ``context``. Raises `GuestError` if one does not return."""
    return tuple(_path(attacker, event, context) for event in EVENTS)


def _path(attacker: Attacker, event: str, context: str) -> Path:
    walk = attacker.walk()
    walk.deliver(event)
    run = walk.finish()
    if not run.good:
        raise GuestError(f"{event} from {context} mode does not return: {run.why()}")
    steps = [s for s in run.trace if isinstance(s, int)]
    insns, handlers = attacker.under.target.insns, attacker.under.places.handlers
    at = next(i for i, s in enumerate(steps) if s in handlers)
    padding = sum(insns[s].text.startswith("nop") for s in steps if s in insns and s not in handlers)
    return Path(event, context, at, len(steps) - at - 1, padding)


def rate(linux: Linux, seconds: float = 5.0) -> float:
    """NMIs handled per second of this machine's time, sent as fast as QEMU takes them."""
    linux.ask("quiet")
    before = sum(linux.counts("NMI"))
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        linux.vm.inject_nmi()
    passed = time.monotonic() - started
    return (sum(linux.counts("NMI")) - before) / passed
