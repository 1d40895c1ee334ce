# SPDX-License-Identifier: GPL-2.0-only
"""Many mutants in one image, and who of them it is that the checker finds.

An image with ``n`` mutants is certified once for all of them.  Only where there is a
finding are parts of them tried, and parts of these: those on which there is suspicion and the
rest, or halves.  Suspicion is on the one with which the finding's schedule alone, a single run,
shows the same; and on those near which something else was executed.  A mutant
counts as found when it is found alone.  What is found together and by neither part alone is
mutants that meet: one of them is put into another image.

A certificate that executes none of the mutated instructions in the unchanged image does the
same with the mutants, so it is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from atomicist.image.mutate import Change, Mutant
from atomicist.machine.target import Target
from atomicist.native.engine import NativeFinding, NativeResult
from atomicist.native.patch import PatchError
from atomicist.search.mutation import Outcome, Part, Quick, executes, killed


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
    if result.overflow or result.dependence is not None:
        why = "a table overflowed" if result.overflow else "the outcome depends on what it may not"
        return Outcome(mutant.name, "killed", by or part.step, "not closed", part.context.name, why)
    return None


def near(touched: Sequence[int], before: int = 1, behind: int = 1) -> slice:
    """The instructions ``touched``, by number, what is between, and so many on either side."""
    return slice(max(min(touched) - before, 0), max(touched) + 1 + behind)


Judge = Callable[[Sequence[Member], Part, NativeResult, bytes], Outcome | None]
"""What is wrong with an image of some mutants in a part, said of the first of them; with what was
executed (`PatchableEngine.ran`)."""


def finds(target: Target, by: str = "") -> Judge:
    """The judge that looks for findings."""
    return lambda some, part, result, ran: wrong(target, some[0].mutant, part, result, by)


class Group:
    """An image of mutants ``left``, those ``found``, and those that have to be ``apart``."""

    def __init__(self, quick: Quick, some: Sequence[Member], judge: Judge) -> None:
        self._quick = quick
        self._judge = judge
        self._last: tuple[NativeResult, bytes] | None = None
        self.left = list(some)
        self.found: list[Outcome] = []
        self.apart: list[Member] = []

    def _shows(self, some: Sequence[Member], part: Part) -> Outcome | None:
        """What is wrong in ``part`` with ``some`` in the image."""
        try:
            result, ran = self._quick.look((m.change for m in some), part)
        except PatchError as e:
            raise ValueError(f"{len(some)} mutants do not fit: {e}") from e
        self._last = result, ran
        return self._judge(some, part, result, ran)

    def _search(self, some: Sequence[Member], part: Part) -> list[Outcome]:
        """Those of ``some`` that are found in ``part`` alone.

        What neither share of them shows alone is mutants that meet: one of them is put apart."""
        started = time.monotonic()
        shown = self._shows(some, part)
        if shown is None:
            return []
        if len(some) == 1:
            return [replace(shown, seconds=round(time.monotonic() - started, 4))]
        one, other = self._divided(some, part)
        before = len(self.apart)
        found = self._search(one, part) + self._search(other, part)
        if not found and len(self.apart) == before:
            self.apart.append(self._too_many(one, other, part))
        return found

    def _too_many(self, one: Sequence[Member], other: Sequence[Member], part: Part) -> Member:
        """The one of ``other`` with which, and with those before it, ``one`` shows something."""
        without, shown = 0, len(other)
        while shown - without > 1:
            middle = (without + shown) // 2
            if self._shows([*one, *other[:middle]], part) is None:
                without = middle
            else:
                shown = middle
        return other[shown - 1]

    def _divided(self, some: Sequence[Member], part: Part) -> tuple[Sequence[Member], Sequence[Member]]:
        """``some`` in two: those that the last look throws suspicion on and the rest; or halves."""
        likely: list[Member] = []
        if self._last is not None and self._last[0].findings:
            one = self._followed(some, part, self._last[0].findings[0])
            likely = [one] if one is not None else []
        elif self._last is not None and part.ran:
            ran = self._last[1]
            likely = [m for m in some if m.touched and ran[near(m.touched)] != part.ran[near(m.touched)]]
        if 0 < len(likely) < len(some):
            names = {m.mutant.name for m in likely}
            return likely, [m for m in some if m.mutant.name not in names]
        half = len(some) // 2
        return some[:half], some[half:]

    def _followed(self, some: Sequence[Member], part: Part, finding: NativeFinding) -> Member | None:
        """The one of ``some`` with which the schedule of ``finding`` violates the same property: quickly
        found, since a schedule is a single run."""
        left = list(some)
        while len(left) > 1:
            half = len(left) // 2
            for share in (left[:half], left[half:]):
                if self._quick.follows((m.change for m in share), part, finding) == finding.property:
                    left = share
                    break
            else:
                return None
        return left[0]

    def ask(self, part: Part) -> bool:
        """Take out of ``left`` what is found in ``part``. Whether there was anything."""
        anything = False
        while True:
            # alone, one that the part does not execute cannot be told from the original
            some = [m for m in self.left if not part.ran or executes(part, m.touched)]
            before = len(self.apart)
            outcomes = self._search(some, part) if some else []
            if not outcomes and len(self.apart) == before:
                return anything
            anything = True
            self.found += outcomes
            away = {o.name for o in outcomes} | {m.mutant.name for m in self.apart[before:]}
            self.left = [m for m in self.left if m.mutant.name not in away]


def ask_all(
    quick: Quick, some: Sequence[Mutant], parts: Sequence[Part], judge: Judge, by: str = "certificate"
) -> list[Outcome]:
    """The outcomes of mutants that can be in one image, after all of ``parts``: what ``judge`` says
    of them, or passed ``by`` these."""
    waiting = [list(members(quick, some))]
    done: dict[str, Outcome] = {}
    while waiting:
        group = Group(quick, waiting.pop(), judge)
        for part in parts:
            group.ask(part)
        done |= {o.name: o for o in group.found}
        done |= {m.mutant.name: Outcome(m.mutant.name, "passed", by) for m in group.left}
        if group.apart:
            waiting.append(group.apart)
    return [done[m.name] for m in some]
