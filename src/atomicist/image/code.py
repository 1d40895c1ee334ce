# SPDX-License-Identifier: GPL-2.0-only
"""Finds the instructions that can be reached, by following control flow.

Indirect targets are not guessed: a run that leaves the found code is a finding
of its own, so nothing is lost by finding too little.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from atomicist.image.errors import ImageError
from atomicist.isa.ir import Flow, Insn
from atomicist.isa.lift import MAX_INSN, Lifter

MAX_INSNS = 50_000
"""More reachable instructions than any entry code has; a hostile image stops here."""

ENDS = frozenset({Flow.JUMP, Flow.RET, Flow.INDIRECT, Flow.IRET, Flow.SYSRET, Flow.STOP})
"""Flows behind which nothing is reached ..."""
RETURNS = frozenset({Flow.CALL, Flow.INDIRECT_CALL})
"""... but by those that come back."""


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
        if insn.target is not None:
            work.append(insn.target)
        if insn.flow not in ENDS or insn.flow in RETURNS:
            work.append(insn.next)
    return found
