# SPDX-License-Identifier: GPL-2.0-only
"""Whether a mutant that is not found does anything else than the original, on any interleaving.

Every certificate that closing the original took is given to the mutant too, and compared:

* its *ways*: which instructions were executed, and which branches fell through or were taken;
* its *ends*: what was left behind - the registers and live words of the main stack at each
  commit, what each deliberate double fault tells its handler (note_end() in native/runtime/certify.c).

Ways are the same only if the certificate also holds for all that it holds for without the mutant
(`mutation.Held`): then what is compared for the context that was executed is compared for all
of them.  Like in `grouped`, many are in one image, and halves are tried where something differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from atomicist.image.mutate import Mutant
from atomicist.machine.target import Target
from atomicist.native.engine import NativeResult
from atomicist.search.grouped import Judge, Member, ask_all
from atomicist.search.mutation import Outcome, Part, Quick

SAME: Final = "same ways and ends"
SAME_ENDS: Final = "same ends"
OTHER_ENDS: Final = "other ends"


def compare(quick: Quick, target: Target, some: Sequence[Mutant], parts: Sequence[Part]) -> list[Outcome]:
    """For each of ``some``, which can be in one image and are found by none of ``parts``: an outcome
    ``by`` `SAME`, `SAME_ENDS` or `OTHER_ENDS`."""
    ways = ask_all(quick, some, parts, _judge(target, ways=True), SAME)
    differ = {o.name for o in ways if o.by != SAME}
    left = [m for m in some if m.name in differ]
    ends = (
        {o.name: o for o in ask_all(quick, left, parts, _judge(target, ways=False), SAME_ENDS)}
        if left
        else {}
    )
    return [ends.get(o.name, o) for o in ways]


def _judge(target: Target, *, ways: bool) -> Judge:
    index = {va: i for i, va in enumerate(sorted(target.insns))}

    def judge(some: Sequence[Member], part: Part, result: NativeResult, ran: bytes) -> Outcome | None:
        if result.ends != part.ends:
            return Outcome(some[0].mutant.name, "passed", OTHER_ENDS)
        if ways and ran != part.ran:
            # instructions that are not there, or are elsewhere, do not count
            gone = {
                index[va] for m in some for va, insn in m.change.insns.items() if va in index and insn is None
            }
            if any(a != b and i not in gone for i, (a, b) in enumerate(zip(ran, part.ran, strict=True))):
                return Outcome(some[0].mutant.name, "passed", SAME_ENDS)
        return None

    return judge


def _same_ways(ran: bytes, before: bytes, gone: set[int]) -> bool:
    """Whether the same was executed, but for the instructions that are ``gone``: not there, or elsewhere."""
    return all(a == b or i in gone for i, (a, b) in enumerate(zip(ran, before, strict=True)))
