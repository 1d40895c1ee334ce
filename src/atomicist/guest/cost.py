# SPDX-License-Identifier: GPL-2.0-only
"""What an NMI costs: instructions executed in the entry, counted in single steps, and NMIs a second.

Counted are the instructions between the delivery and the run of the interrupted context, but for the
handler's own, exc_nmi() and its like: those are the same for every entry. What is between is counted, as the
functions that count commits, through which an atomic entry calls the handler.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Final

from atomicist.guest.errors import GuestError
from atomicist.guest.inject import Attacker
from atomicist.guest.linux import Linux
from atomicist.guest.qemu import CPU
from atomicist.guest.under_test import HANDLERS

EVENTS: Final = ("NMI", "MC", "DB")
HANDLER: Final = "(handler)"


@dataclass(frozen=True, slots=True)
class Path:
    """Instructions for ``event`` from ``context``: ``before`` its handler, ``after`` it, ``padding`` of them
    NOPs; and ``stages``, without those: from one global label of the code to the next, in order, the
    handler's place being `HANDLER`."""

    event: str
    context: str
    before: int
    after: int
    padding: int
    stages: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """All of them, without padding."""
        return self.before + self.after - self.padding


def paths(attacker: Attacker, context: str) -> tuple[Path, ...]:
    """The way of each event from ``context``. Raises `GuestError` if one does not return."""
    return tuple(_path(attacker, event, context) for event in EVENTS)


def _path(attacker: Attacker, event: str, context: str) -> Path:
    walk = attacker.walk()
    kernel = attacker.under.kernel
    handlers = {kernel.symbol(name): vector for name, vector in HANDLERS.items() if kernel.has(name)}
    walk.places = replace(walk.places, handlers=handlers)
    walk.deliver(event)
    run = walk.finish()
    if not run.good:
        raise GuestError(f"{event} from {context} mode does not return: {run.why()}")
    steps = [s for s in run.trace if isinstance(s, int)]
    insns = attacker.under.target.insns
    at = next(i for i, s in enumerate(steps) if s in handlers)
    padded = [s not in handlers and s in insns and insns[s].text.startswith("nop") for s in steps]
    labels = [HANDLER if s in handlers else kernel.where(s).partition("+")[0] for s in steps]
    return Path(event, context, at, len(steps) - at - 1, sum(padded), by_stage(labels, padded))


def by_stage(labels: Sequence[str], padded: Sequence[bool]) -> tuple[tuple[str, int], ...]:
    """How many instructions follow each other below the same label, without those that are ``padded``."""
    pairs = groupby(zip(labels, padded, strict=True), key=itemgetter(0))
    return tuple((label, 0 if label == HANDLER else sum(not p for _, p in steps)) for label, steps in pairs)


_HEAD: Final = """\
<!-- SPDX-License-Identifier: GPL-2.0-only -->
# Instructions of an entry

Between the delivery of an event and the run of what it interrupted, without NOPs and without the
handler, counted in single steps of QEMU's TCG, on one CPU with the features of {cpu}; written by
`atomicist linux cost TREE --entry atomic --entry legacy --markdown FILE`.

| boot | event | from | total | below each label, in order |
|---|---|---|---|---|
"""


def markdown(counted: Sequence[tuple[str, Path]]) -> str:
    """A table of what was counted in each boot, by its name."""
    lines = []
    for boot, path in counted:
        stages = ", ".join(f"`{label}` {n}" if n else label for label, n in path.stages)
        lines.append(f"| {boot} | {path.event} | {path.context} mode | {path.total} | {stages} |\n")
    return _HEAD.format(cpu=CPU) + "".join(lines)


def rate(linux: Linux, seconds: float = 2.0) -> tuple[float, float]:
    """NMIs handled in a second of this machine's time, and in a second that it works for QEMU, sent
    as fast as QEMU takes them. The first depends on what else the machine does."""
    linux.ask("quiet")
    before, worked = sum(linux.counts("NMI")), linux.vm.cpu_seconds()
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        linux.vm.inject_nmi()
    passed = time.monotonic() - started
    handled = sum(linux.counts("NMI")) - before
    return handled / passed, handled / (linux.vm.cpu_seconds() - worked)
