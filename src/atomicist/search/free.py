# SPDX-License-Identifier: GPL-2.0-only
"""Values that a user chooses: every one of them, not a sample.

User mode may point RSP anywhere, jump anywhere, and with FSGSBASE set GSBASE to any
canonical address; in the SYSCALL gap RSP is still the user's.  A certificate says into which
cells the values of these registers fall for it, and in which of them it holds (native/runtime/
free.c).  `Chosen` keeps these boxes, and gives a value that no certificate holds for, until
there is none.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from atomicist.isa.registers import REGISTERS
from atomicist.machine.target import Target
from atomicist.native.engine import NativeResult
from atomicist.native.tables import FREE_SLOTS
from atomicist.spec.contexts import Context, contexts, varied

MOST: Final = 256
"""Cells of one start context, beyond which the entry looks too closely to be certified."""

_HALF: Final = 1 << 47
_KERNEL_HALF: Final = (1 << 64) - _HALF

_Cells = tuple[tuple[int, bool], ...]


@dataclass(frozen=True, slots=True)
class _Box:
    """Where the results of one context hold: for each free register, lists of cells."""

    cells: tuple[tuple[_Cells, ...], ...]

    def holds(self, point: tuple[int, ...]) -> bool:
        return all(_at(c, value) for lists, value in zip(self.cells, point, strict=True) for c in lists)


def _at(cells: _Cells, value: int) -> bool:
    return cells[bisect_right(cells, (value, True)) - 1][1]


class Chosen:
    """The values of one start context's free registers that are covered."""

    def __init__(self, target: Target, base: Context) -> None:
        self._target = target
        self.base = base
        self._names = ("RSP",) if base.no_stack else FREE_SLOTS
        self._boxes: list[_Box] = []
        self._asked: set[tuple[int, ...]] = set()

    def named(self, name: str) -> Chosen:
        """The same, nothing of it covered, under another name."""
        return Chosen(self._target, replace(self.base, name=name))

    def took(self, results: Sequence[NativeResult]) -> str:
        """Note what holds for the context of ``results``; why it cannot be told, if so."""
        wanted = [FREE_SLOTS.index(name) for name in self._names]
        lists: list[tuple[_Cells, ...]] = []
        for name, i in zip(self._names, wanted, strict=True):
            columns = tuple(c for c in (r.cells[i] for r in results) if c is not None)
            if len(columns) < len(results):
                return f"the outcome from {self.base.name} depends on {name} in a way that is not understood"
            lists.append(columns)
        self._boxes.append(_Box(tuple(lists)))
        return "" if len(self._boxes) <= MOST else f"the outcome from {self.base.name} has no end of cases"

    def uncovered(self) -> Context | None:
        """A context that differs in free registers alone, and that nothing holds for."""
        axes = [self._axis(i, name) for i, name in enumerate(self._names)]
        for point in itertools.product(*axes):
            if point not in self._asked and not any(box.holds(point) for box in self._boxes):
                self._asked.add(point)
                return varied(self.base, dict(zip(self._names, point, strict=True)))
        return None

    def _axis(self, index: int, name: str) -> list[int]:
        """A value of each cell, the base's own first."""
        own = self.base.registers[REGISTERS[name].slot]
        starts = {start for box in self._boxes for cells in box.cells[index] for start, _ in cells}
        values = sorted(v for v in starts | {_HALF, _KERNEL_HALF} if self._possible(name, v))
        return [own, *values]

    def _possible(self, name: str, value: int) -> bool:
        if name == "RSP":
            return True
        if name == "GSBASE" and not self._target.fsgsbase:
            return value < _HALF
        return value < _HALF or value >= _KERNEL_HALF


def chosen(target: Target) -> tuple[Chosen, ...]:
    """The start contexts whose free registers are to be covered: user mode, and every
    instruction of the SYSCALL gap."""
    bases = [c for c in contexts(target) if c.name in ("user", "user-flags") or (c.no_stack and c.plain)]
    return tuple(Chosen(target, base) for base in bases)
