# SPDX-License-Identifier: GPL-2.0-only
"""Whether a mutant that is not found does anything else than the original, on any interleaving.

Every certificate that closing the original took is given to the mutant too, and compared:

* its *ways*: which instructions were executed, and which branches fell through or were taken;
* its *ends*: what was left behind - the registers and live words of the main stack at each
  commit, each deliberate double fault, and its reason (note_end() in native/runtime/certify.c).

Ways are the same only if the certificate also holds for all that it holds for without the mutant
(`mutation.Held`): then what is compared for the context that was executed is compared for all
of them.  Like in `grouped`, many are in one image, and halves are tried where something differs: two
that undo each other would pass together, unless the probes, which look at each alone, have found them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from atomicist.image.mutate import Mutant
from atomicist.machine.target import Target
from atomicist.native.engine import NativeResult
from atomicist.search.grouped import Judge, Member, ask_all, differs, wrong
from atomicist.search.mutation import Outcome, Part, Quick

SAME: Final = "same ways and ends"
SAME_ENDS: Final = "same ends"
ANOTHER_REASON: Final = "another reason"
OTHER_ENDS: Final = "other ends"
_GRADES: Final = (SAME, SAME_ENDS, ANOTHER_REASON, OTHER_ENDS)


def compare(quick: Quick, target: Target, some: Sequence[Mutant], parts: Sequence[Part]) -> list[Outcome]:
    """For each of ``some``, which can be in one image: an outcome ``by`` `SAME`; `SAME_ENDS`, where
    other ways are gone; `ANOTHER_REASON`, where of the ends only the reason that a double fault
    tells differs; or `OTHER_ENDS`.  Or it is found after all, where another mutant had hidden it."""
    done: dict[str, Outcome] = {}
    left = list(some)
    for strictness in _GRADES[:-1]:
        outcomes = ask_all(quick, left, parts, _judge(target, strictness), strictness) if left else []
        done |= {o.name: o for o in outcomes}
        left = [m for m in left if done[m.name].by == OTHER_ENDS]
    return [done[m.name] for m in some]


def _judge(target: Target, strictness: str) -> Judge:
    index = {va: i for i, va in enumerate(sorted(target.insns))}

    def judge(some: Sequence[Member], part: Part, result: NativeResult, ran: bytes) -> Outcome | None:
        if result.findings or result.overflow or result.dependence is not None:
            return wrong(target, some[0].mutant, part, result)
        told = strictness == ANOTHER_REASON or result.ends[1] == part.ends[1]
        ways = strictness != SAME or (not differs(part, result) and _same_ways(ran, part.ran, gone(some)))
        if result.ends[0] == part.ends[0] and told and ways:
            return None
        return Outcome(some[0].mutant.name, "passed", OTHER_ENDS)

    def gone(some: Sequence[Member]) -> set[int]:
        changes = (item for m in some for item in m.change.insns.items())
        return {index[va] for va, insn in changes if va in index and insn is None}

    return judge


def _same_ways(ran: bytes, before: bytes, gone: set[int]) -> bool:
    """Whether the same was executed, but for the instructions that are ``gone``: not there, or elsewhere."""
    return all(a == b or i in gone for i, (a, b) in enumerate(zip(ran, before, strict=True)))
