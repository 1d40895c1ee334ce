# SPDX-License-Identifier: GPL-2.0-only
"""Whether a mutant that is not found does anything else than the original, on any interleaving.

Every certificate that closing the original took is given to the mutant too, and compared:

* its *ways*: which instructions were executed, and which branches fell through or were taken;
* its *ends*: what was left behind - the registers and live words of the main stack at each
  commit, each deliberate double fault, and its reason (note_end() in native/runtime/certify.c).

Ways are the same only if the certificate also holds for all that it holds for without the mutant
(`mutation.Held`): then what is compared for the context that was executed is compared for all
of them, and a mutant that is the same in all certificates is closed by them.

A mutant is first looked at `alone`, in a few certificates that execute it in different ways; and then, as
in `grouped`, in one image with others of which the same is known, in all certificates.  Two that
undo each other there would pass together, unless they were told from the original alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from atomicist.image.mutate import Mutant
from atomicist.machine.target import Target
from atomicist.native.engine import NativeResult
from atomicist.search.grouped import Member, ask_all, members, near, wrong
from atomicist.search.mutation import Outcome, Part, Quick, executes, held

SAME: Final = "same ways and ends"
SAME_ENDS: Final = "same ends"
ANOTHER_REASON: Final = "another reason"
OTHER_ENDS: Final = "other ends"
GRADES: Final = (SAME, SAME_ENDS, ANOTHER_REASON, OTHER_ENDS)
"""How alike, the most alike first: other ways are gone; of the ends, only the reason that a double
fault tells differs; or anything."""

MOST_ALONE: Final = 3
"""Certificates that a mutant is looked at alone in."""
_BEFORE, _BEHIND = 3, 5
"""Neighbours, by address, whose ways tell certificates apart."""


def alone(quick: Quick, target: Target, mutant: Mutant, parts: Sequence[Part]) -> Outcome:
    """``mutant`` in the first of ``parts`` that execute it and go different ways near it: found, or
    passed ``by`` its grade there."""
    (member,) = members(quick, [mutant])
    grade = SAME
    for part in _different(parts, member.touched):
        result, ran = quick.look([member.change], part)
        for better in GRADES[GRADES.index(grade) :]:
            outcome = _judged(target, quick.index, better, [member], part, result, ran)
            if outcome is None:
                break
            if outcome.status == "killed":
                return outcome
            grade = GRADES[GRADES.index(better) + 1]
    return Outcome(mutant.name, "passed", grade)


def _different(parts: Sequence[Part], touched: Sequence[int]) -> list[Part]:
    seen: dict[bytes, Part] = {}
    if not touched:
        return []
    where = near(touched, _BEFORE, _BEHIND)
    for part in parts:
        if executes(part, touched):
            seen.setdefault(part.ran[where], part)
        if len(seen) == MOST_ALONE:
            break
    return list(seen.values())


def compare(
    quick: Quick, target: Target, some: Sequence[Mutant], parts: Sequence[Part], grade: str
) -> list[Outcome]:
    """For each of ``some``, which can be in one image: an outcome ``by`` ``grade``, if it is that
    much alike in all of ``parts``, or the next worse grade, which it may not reach either.  Or it is
    found after all."""
    worse = GRADES[GRADES.index(grade) + 1]

    def judge(some: Sequence[Member], part: Part, result: NativeResult, ran: bytes) -> Outcome | None:
        outcome = _judged(target, quick.index, grade, some, part, result, ran)
        return Outcome(outcome.name, "passed", worse) if outcome and outcome.status != "killed" else outcome

    return ask_all(quick, some, parts, judge, grade)


def _judged(
    target: Target,
    index: Mapping[int, int],
    grade: str,
    some: Sequence[Member],
    part: Part,
    result: NativeResult,
    ran: bytes,
) -> Outcome | None:
    """What shows that ``some`` in one image are not of ``grade``; None, if nothing does."""
    if result.findings or result.overflow or result.dependence is not None:
        return wrong(target, some[0].mutant, part, result)
    told = grade == ANOTHER_REASON or result.ends[1] == part.ends[1]
    ways = grade != SAME or (_serves(part, result) and _same_ways(ran, part.ran, _gone(some, index)))
    if grade == OTHER_ENDS or (result.ends[0] == part.ends[0] and told and ways):
        return None
    return Outcome(some[0].mutant.name, "passed", OTHER_ENDS)


def _gone(some: Sequence[Member], index: Mapping[int, int]) -> set[int]:
    """Instructions that are not there any more, or elsewhere."""
    changes = (item for m in some for item in m.change.insns.items())
    return {index[va] for va, insn in changes if va in index and insn is None}


def _serves(part: Part, result: NativeResult) -> bool:
    """Whether the certificate ``result`` of ``part`` can take the place of the unchanged image's."""
    return part.held is not None and held(result).serves_for(part.held)


def _same_ways(ran: bytes, before: bytes, gone: set[int]) -> bool:
    """Whether the same was executed, but for the instructions that are ``gone``."""
    return all(a == b or i in gone for i, (a, b) in enumerate(zip(ran, before, strict=True)))


__all__ = ["ANOTHER_REASON", "GRADES", "OTHER_ENDS", "SAME", "SAME_ENDS", "alone", "compare"]
