# SPDX-License-Identifier: GPL-2.0-only
"""Many mutants in one image, and who of them it is that the checker finds.

An image with ``n`` mutants is certified once for all of them.  Only where there is a
finding are halves of them tried, and halves of these; a mutant counts as found when it is
found alone.  What is found together and by neither half alone is two mutants that
meet: they are put into different images.

A certificate that executes none of the mutated instructions in the unchanged image does the
same with the mutants, so it is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from atomicist.image.mutate import Change, Mutant
from atomicist.machine.target import Target
from atomicist.native.engine import NativeResult
from atomicist.native.patch import PatchError
from atomicist.search.mutation import Outcome, Part, Quick, executes, held, killed, look


@dataclass(frozen=True, slots=True)
class Member:
    """A mutant of an image of many, lifted; ``touched``: numbers of the instructions it changes."""

    mutant: Mutant
    change: Change
    touched: tuple[int, ...]


def members(quick: Quick, mutants: Sequence[Mutant]) -> tuple[Member, ...]:
    """``mutants``, lifted."""
    changes = [quick.mutator.lift(m.edits) for m in mutants]
    return tuple(Member(m, c, quick.touched(c)) for m, c in zip(mutants, changes, strict=True))


def wrong(target: Target, mutant: Mutant, part: Part, result: NativeResult, by: str = "") -> Outcome | None:
    """What ``result`` says against ``mutant``: a finding, or that it says nothing for certain."""
    if result.findings:
        return killed(target, mutant, part, result.findings[0], by)
    if differs(part, result):
        return Outcome(mutant.name, "passed", OTHERWISE)
    if result.overflow or result.dependence is not None:
        why = "a table overflowed" if result.overflow else "the outcome depends on what it may not"
        return Outcome(mutant.name, "killed", by or part.step, "not closed", part.context.name, why)
    return None


OTHERWISE: Final = "certificate, otherwise"
"""How a mutant was decided with which a certificate holds for less, or meets something new."""


def differs(part: Part, result: NativeResult) -> bool:
    """Whether the certificate ``result`` of ``part`` does not serve for that of the unchanged image."""
    fine = not result.findings and not result.overflow and result.dependence is None
    return fine and part.held is not None and not held(result).serves_for(part.held)


class Group:
    """An image of mutants ``left``, those ``found``, and those that have to be ``apart``."""

    def __init__(self, quick: Quick, target: Target, some: Sequence[Member]) -> None:
        self._quick = quick
        self._target = target
        self.left = list(some)
        self.found: list[Outcome] = []
        self.apart: list[Member] = []

    def _shows(self, some: Sequence[Member], part: Part) -> NativeResult | None:
        """What is wrong in ``part`` with ``some`` in the image."""
        try:
            with self._quick.patched(m.change for m in some):
                result = look(self._quick.engine, part)
        except PatchError as e:
            raise ValueError(f"{len(some)} mutants do not fit: {e}") from e
        bad = result.findings or result.overflow or result.dependence is not None or differs(part, result)
        return result if bad else None

    def _search(self, some: Sequence[Member], part: Part, by: str) -> list[Outcome]:
        """Those of ``some`` that are found in ``part`` alone; they are found there together."""
        if len(some) == 1:
            result = self._shows(some, part)
            outcome = wrong(self._target, some[0].mutant, part, result, by) if result else None
            return [outcome] if outcome else []
        half = len(some) // 2
        if half == 1 or self._shows(some[:half], part) is not None:
            found = self._search(some[:half], part, by)
            if found:
                return found
        # it is in the other half, or else shown by both together only; more are found the next time
        return self._search(some[half:], part, by)

    def ask(self, part: Part, by: str = "") -> bool:
        """Take out of ``left`` what is found in ``part``. Whether there was anything."""
        if part.ran and not any(executes(part, m.touched) for m in self.left):
            return False
        some = list(self.left)
        anything = False
        while some:
            started = time.monotonic()
            if self._shows(some, part) is None:
                break
            anything = True
            outcomes = self._search(some, part, by)
            spent = (time.monotonic() - started) / max(1, len(outcomes))
            self.found += [replace(o, seconds=round(spent, 4)) for o in outcomes]
            names = {o.name for o in outcomes}
            away = [m for m in some if m.mutant.name in names]
            if not outcomes:
                away = some[len(some) // 2 :] if len(some) > 1 else some
                self.apart += away
            some = [m for m in some if m not in away]
            self.left = [m for m in self.left if m not in away]
        return anything


def ask_all(
    quick: Quick, target: Target, some: Sequence[Mutant], parts: Sequence[Part], by: str = "certificate"
) -> list[Outcome]:
    """The outcomes of mutants that can be in one image, after all of ``parts``: killed, or passed
    ``by`` these, or `OTHERWISE`."""
    waiting = [list(members(quick, some))]
    done: dict[str, Outcome] = {}
    while waiting:
        group = Group(quick, target, waiting.pop())
        for part in parts:
            group.ask(part)
        done |= {o.name: o for o in group.found}
        done |= {m.mutant.name: Outcome(m.mutant.name, "passed", by) for m in group.left}
        if group.apart:
            waiting.append(group.apart)
    return [done[m.name] for m in some]
