# SPDX-License-Identifier: GPL-2.0-only
"""What a search found, as data: all that the reports are made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A violated property: its number, the ``schedule`` that shows it, the ``subject``
    (register, address or text) with the values ``expected`` and ``found`` (None where
    there are none), and ``where``, the instruction at which it was noticed."""

    property: str
    schedule: str
    subject: str
    expected: int | None
    found: int | None
    where: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """Sizes of the explored space.

    ``boundaries``: points at which events were offered; ``interleavings``: complete
    ones that are covered, ``executed`` of them one by one and the rest through a
    class that they belong to; ``states``: classes of contexts and of nested entries
    that were told apart; ``contexts`` and ``certificates``: contexts met, and
    explorations that cover them all; ``guest_insns``: instructions executed."""

    boundaries: int = 0
    interleavings: int = 0
    executed: int = 0
    states: int = 0
    contexts: int = 0
    certificates: int = 0
    guest_insns: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.boundaries + other.boundaries, self.interleavings + other.interleavings,
            self.executed + other.executed, self.states + other.states, self.contexts + other.contexts,
            self.certificates + other.certificates, self.guest_insns + other.guest_insns,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Boundary:
    """The point before the instruction ``text`` at ``rip``, ``offset`` bytes into ``function``,
    and for each event of `spec.events.EVENTS` what came there.

    ``delivered``: so often it was delivered there, one by one; ``covered``: so often a
    certificate tried it there and knew the outcome by a class that it belongs to;
    ``contexts``: so many contexts were met there behind a commit, each of them covered by
    certificates with that event first."""

    rip: int
    function: str
    offset: int
    text: str
    delivered: tuple[int, ...]
    covered: tuple[int, ...]
    contexts: tuple[int, ...]

    @property
    def reached(self) -> bool:
        """Whether any event came there, by whichever way."""
        return any((*self.delivered, *self.covered, *self.contexts))


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one search over one image.

    ``closed``: nothing is left to try; else ``open_because`` says why.
    ``commit_distance`` is the longest way from a delivery to its commit, in
    instructions; ``main_stack`` the most bytes of the main stack in use when a
    handler was called.  ``seconds`` is wall time.  ``boundaries``: of all code that is known, in the order of
    addresses, what came where."""

    image: str
    build_id: str
    config: tuple[str, ...]
    engine: str
    coverage: Coverage
    closed: bool
    open_because: str
    findings: tuple[Finding, ...]
    commit_distance: int
    main_stack: int
    seconds: float
    interrupted: bool = False
    boundaries: tuple[Boundary, ...] = ()
