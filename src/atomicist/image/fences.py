# SPDX-License-Identifier: GPL-2.0-only
"""Whether GS may be used speculatively with the base of the wrong side of a SWAPGS.

A SWAPGS that a branch may skip can be guessed to be executed, or to be skipped
(CVE-2019-1125).  So both ways need, before the first %gs access or the call of a handler,
something that speculation does not pass: LFENCE or a write of CR3 (Linux
arch/x86/entry/calling.h, FENCE_SWAPGS_*; SDM vol. 3, 8.3), or a WRGSBASE, which leaves
nothing to guess.  A SWAPGS that every path of its entry executes needs none, nor does one
on the way out: whether it was skipped makes no difference to code in ring 0.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from atomicist.image.code import follow, successors
from atomicist.isa.ir import Access, Code, Flow, Insn

MAX_CALLS = 16
_LAST = frozenset({Flow.IRET, Flow.SYSRET})


@dataclass(frozen=True, slots=True)
class Unfenced:
    """After the SWAPGS at ``swapgs``, executed or ``skipped``, %gs is used at ``use``
    without a fence between."""

    swapgs: int
    skipped: bool
    use: int


def unfenced(
    insns: Mapping[int, Insn], entries: Iterable[int], handlers: Container[int]
) -> tuple[Unfenced, ...]:
    """The first %gs access on each way from a conditional SWAPGS that no fence precedes."""
    found: set[Unfenced] = set()
    for entry in entries:
        code = follow(insns, [entry], handlers)
        first = _before_handlers(code, entry, handlers)
        for at in (va for va, insn in code.items() if insn.text == "swapgs" and va in first):
            if not _may_be_skipped(code, entry, at, handlers):
                continue
            ways = [(insns[at].next, False), *((va, True) for va in _other_ways(code, at))]
            for start, skipped in ways:
                found |= {Unfenced(at, skipped, use) for use in _uses(insns, start, handlers)}
    return tuple(sorted(found, key=lambda u: (u.swapgs, u.skipped, u.use)))


def _before_handlers(code: Mapping[int, Insn], entry: int, handlers: Container[int]) -> set[int]:
    """What is executed on the way in: behind the first call of a handler GS is the kernel's."""
    found: set[int] = set()
    work = [entry]
    while work:
        va = work.pop()
        if va in code and va not in found:
            found.add(va)
            work += [] if code[va].target in handlers else successors(code[va])
    return found


def _may_be_skipped(code: Mapping[int, Insn], entry: int, at: int, handlers: Container[int]) -> bool:
    """Whether a path from ``entry`` leaves, or calls a handler, without executing ``at``."""
    rest = follow({va: insn for va, insn in code.items() if va != at}, [entry], handlers)
    return any(insn.flow in _LAST or insn.target in handlers for insn in rest.values() if insn.va != at)


def _other_ways(code: Mapping[int, Insn], at: int) -> Iterator[int]:
    """Where the branches that lead to ``at`` with no other branch between go instead."""
    before: dict[int, list[Insn]] = {}
    for insn in code.values():
        for va in successors(insn):
            before.setdefault(va, []).append(insn)
    work, seen = [at], set()
    while work:
        va = work.pop()
        for insn in before.get(va, []):
            if insn.flow is Flow.BRANCH:
                yield from (other for other in successors(insn) if other != va)
            elif insn.va not in seen:
                seen.add(insn.va)
                work.append(insn.va)


def _uses(insns: Mapping[int, Insn], start: int, handlers: Container[int]) -> Iterator[int]:
    """Where %gs is used first on the ways from ``start``."""
    work: list[tuple[int, tuple[int, ...]]] = [(start, ())]
    seen = set()
    while work:
        state = work.pop()
        va, stack = state
        insn = insns.get(va)
        if insn is None or state in seen:
            continue
        seen.add(state)
        if insn.text in ("lfence", "swapgs") or insn.text.startswith(("mov cr3", "wrgsbase")):
            continue
        calls_handler = insn.flow is Flow.CALL and insn.target in handlers
        if calls_handler or any(
            op.code in (Code.LOAD, Code.STORE) and op.ins[-1].off == Access.GS for op in insn.ops
        ):
            yield va
        elif insn.flow is Flow.CALL and insn.target is not None and len(stack) < MAX_CALLS:
            work.append((insn.target, (*stack, insn.next)))
        elif insn.flow is Flow.RET:
            work += [(stack[-1], stack[:-1])] if stack else []
        else:
            work += [(to, stack) for to in successors(insn)]
