# SPDX-License-Identifier: GPL-2.0-only
"""Finds the instructions that can be reached, by following control flow.

Indirect targets are not guessed: a run that leaves the found code is a finding
of its own, so nothing is lost by finding too little.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from atomicist.image.errors import ImageError
from atomicist.isa.ir import Flow, Insn
from atomicist.isa.lift import MAX_INSN, Lifter

MAX_INSNS = 50_000
"""More reachable instructions than any entry code has; a hostile image stops here."""

_ENDS = frozenset({Flow.JUMP, Flow.RET, Flow.INDIRECT, Flow.IRET, Flow.SYSRET, Flow.STOP})
_RETURNS = frozenset({Flow.CALL, Flow.INDIRECT_CALL})


def reachable(
    roots: Iterable[int], fetch: Callable[[int, int], bytes], stop: Container[int], lifter: Lifter
) -> dict[int, Insn]:
    """Lift what can be reached from ``roots``; ``fetch(va, n)`` gives up to n bytes.

    Instructions at addresses in ``stop`` (handlers, whose code is not run) are
    lifted but not followed.  Addresses without bytes are left out.  Raises
    `ImageError` past `MAX_INSNS`."""
    found: dict[int, Insn] = {}
    work = list(roots)
    while work:
        va = work.pop()
        if va in found:
            continue
        code = fetch(va, MAX_INSN)
        if not code:
            continue
        if len(found) >= MAX_INSNS:
            raise ImageError(f"more than {MAX_INSNS} instructions can be reached; is this entry code?")
        insn = found[va] = lifter.lift(va, code)
        if va in stop:
            continue
        work += successors(insn)
    return found


def follow(insns: Mapping[int, Insn], roots: Iterable[int], stop: Container[int]) -> dict[int, Insn]:
    """Those of ``insns`` that can be reached from ``roots``, without those at ``stop``."""
    found: dict[int, Insn] = {}
    work = list(roots)
    while work:
        va = work.pop()
        insn = insns.get(va)
        if insn is None or va in found or va in stop:
            continue
        found[va] = insn
        work += successors(insn)
    return dict(sorted(found.items()))


def successors(insn: Insn) -> list[int]:
    """Where control may go from ``insn``, as far as it says so itself; back from a call."""
    out = [insn.target] if insn.target is not None else []
    if insn.flow not in _ENDS or insn.flow in _RETURNS:
        out.append(insn.next)
    return out
