# SPDX-License-Identifier: GPL-2.0-only
"""Safe-RET sequences in an image: code that must not be resumed where it was interrupted.

On processors with SRSO every return of the kernel is a CALL of `LEA 8(%rsp), %rsp; RET`: the RET is
predicted by the CALL right before it, so to nowhere that anybody else has trained.  Whatever runs in
between may spoil that (`spec.instance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from atomicist.image.errors import ImageError
from atomicist.isa.ir import Insn
from atomicist.machine.target import Place

SAFE_RETS: Final = ("srso_safe_ret", "srso_alias_safe_ret")
"""Symbols at which there is one (Linux arch/x86/lib/retpoline.S)."""

BELOW: Final = 0x208
"""Bytes of the task's stack in use, in the start contexts that are within such a sequence."""

RETURNS: Final = (0x1230, 0x1341)
"""Offsets in interrupted kernel code: the return addresses that then are on top of that stack."""


def places(symbols: Mapping[str, int], insns: Mapping[int, Insn]) -> dict[int, Place]:
    """The marks of the sequences among ``insns``; of those that nothing reaches there are none.

    Raises `ImageError` if one is not as it is known."""
    marks: dict[int, Place] = {}
    for name in SAFE_RETS:
        lea = insns.get(symbols.get(name, 0))
        if lea is None:
            continue
        ret = insns.get(lea.next)
        if lea.text != "lea rsp, [rsp + 8]" or ret is None or ret.text != "ret":
            raise ImageError(f"{name} is not LEA 8(%rsp), %rsp and RET: no such safe-RET is known")
        marks |= {lea.va: Place.LEA_LEFT, ret.va: Place.RET_LEFT}
    return marks


def returns(task_top: int, text: int) -> dict[int, int]:
    """The words on top of the task's stack, in those start contexts; ``text``: of interrupted code."""
    return {task_top - BELOW + 8 * i: text + offset for i, offset in enumerate(RETURNS)}
