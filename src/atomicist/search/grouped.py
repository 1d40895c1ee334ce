# SPDX-License-Identifier: GPL-2.0-only
"""Many mutants in one image, and who of them it is that the checker finds.

An image with ``n`` mutants is certified once for all of them.  Only where there is a
finding are halves of them tried, and halves of these, so that one that is found costs about
two certificates where many are, and as many as there are halves where it is alone.  A mutant
counts as found when it is found alone.  What is found together and by neither half alone is
two mutants that meet: they are put into different images.

A certificate that executes none of the mutated instructions in the unchanged image does the
same with the mutants, so it is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
        self.left = list(some)
        self.found: list[Outcome] = []
        self.apart: list[Member] = []

    def _shows(self, some: Sequence[Member], part: Part) -> Outcome | None:
        """What is wrong in ``part`` with ``some`` in the image."""
        engine = self._quick.engine
        try:
            with self._quick.patched(m.change for m in some):
                engine.ran()
                result = look(engine, part)
        except PatchError as e:
            raise ValueError(f"{len(some)} mutants do not fit: {e}") from e
        return self._judge(some, part, result, engine.ran())

    def _search(self, some: Sequence[Member], part: Part) -> list[Outcome]:
        """Those of ``some`` that are found in ``part`` alone.

        What neither half shows alone is two mutants that meet: the second half is put apart."""
        started = time.monotonic()
        shown = self._shows(some, part)
        if shown is None:
            return []
        if len(some) == 1:
            return [replace(shown, seconds=round(time.monotonic() - started, 4))]
        half = len(some) // 2
        before = len(self.apart)
        found = self._search(some[:half], part) + self._search(some[half:], part)
        if not found and len(self.apart) == before:
            self.apart += some[half:]
        return found

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
