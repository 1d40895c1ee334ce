# SPDX-License-Identifier: GPL-2.0-only
"""An engine whose target can be changed by a few instructions, at once and back again.

Loading a target takes tens of milliseconds; a mutant of one instruction is put into the
loaded tables in microseconds.  Only searches that execute the tables see the change:
certificates, and enumeration without compiled code.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from atomicist.isa.ir import Insn
from atomicist.machine.target import Target
from atomicist.native import layout
from atomicist.native.engine import FLOWS, Engine

SPARE_INSNS: Final = 512
SPARE_OPS: Final = 65536
_NOWHERE: Final = 0x10
"""Spare rows stand at addresses from here on, where no image has code."""


class PatchError(Exception):
    """A change has more instructions or operations than there is room for."""


class PatchableEngine(Engine):
    """An `Engine` with `patched`."""

    def __init__(
        self,
        target: Target,
        properties: Mapping[str, int],
        events: Sequence[str],
        error_token: int,
        max_steps: int,
    ) -> None:
        super().__init__(target, properties, events, error_token, max_steps)
        self._rows = {va: i for i, va in enumerate(self._order)}
        # the last row stays where it is: the runtime takes the span of addresses from first and last
        self._spare = list(range(len(self._order), len(self._order) + SPARE_INSNS - 1))
        self._vectors = {name: i for i, name in enumerate(events)}
        self._handlers = target.handlers

    def _make_image(self, target: Target, events: Sequence[str], max_steps: int) -> layout.CImage:
        image = super()._make_image(target, events, max_steps)
        ops, insns, pages, contents, regions, gates = self._keep
        self._ops = (layout.COp * (len(ops) + SPARE_OPS))()
        self._insns = (layout.CInsn * (len(insns) + SPARE_INSNS))()
        c.memmove(self._ops, ops, c.sizeof(ops))
        c.memmove(self._insns, insns, c.sizeof(insns))
        for i in range(SPARE_INSNS):
            self._insns[len(insns) + i].va = _NOWHERE + i
        self._used = len(ops)
        self._keep = (self._ops, self._insns, pages, contents, regions, gates)
        image.ops, image.insns = c.addressof(self._ops), c.addressof(self._insns)
        image.ninsns = len(self._insns)
        return image

    def ignore(self, properties: int) -> None:
        """Let runs that violate a property of the bit set ``properties`` end silently."""
        self._lib.atomicist_ignore(self._search, c.c_uint64(properties))

    @contextmanager
    def patched(self, changes: Mapping[int, Insn | None], places: Mapping[int, int]) -> Iterator[None]:
        """Within it, the instruction at each address of ``changes`` is the one given (None:
        no instruction there), with the marks ``places``. Raises `PatchError`."""
        old: list[tuple[int, bytes]] = []
        used, spare = self._used, list(self._spare)
        try:
            for va, insn in changes.items():
                row = self._rows.get(va)
                if row is None:
                    if insn is None:
                        continue
                    if not spare:
                        raise PatchError(f"more than {SPARE_INSNS} new instructions")
                    row = spare.pop()
                old.append((row, bytes(self._insns[row])))
                self._write(row, va, insn, places)
            self._reindex()
            yield
        finally:
            for row, data in reversed(old):
                c.memmove(c.addressof(self._insns[row]), data, len(data))
            self._used = used
            self._reindex()

    def _reindex(self) -> None:
        if not self._lib.atomicist_reindex(self._search):
            raise MemoryError("no memory for the index of instructions")

    def _write(self, row: int, va: int, insn: Insn | None, places: Mapping[int, int]) -> None:
        if insn is None:
            self._insns[row].va = _NOWHERE + SPARE_INSNS + row
            return
        first = self._used
        if first + len(insn.ops) > len(self._ops):
            raise PatchError(f"more than {SPARE_OPS} new operations")
        for i, op in enumerate(insn.ops):
            self._ops[first + i] = self._op(op)
        self._used += len(insn.ops)
        vector = self._vectors.get(self._handlers.get(va, ""))
        self._insns[row] = layout.CInsn(
            va, first, len(insn.ops), insn.size, FLOWS.index(insn.flow), int(places.get(va, 0)),
            0 if vector is None else vector + 1,
        )  # fmt: skip


__all__ = ["PatchError", "PatchableEngine"]
