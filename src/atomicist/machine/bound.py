# SPDX-License-Identifier: GPL-2.0-only
"""Operations bound to their places: what the reference interpreter calls, one after the other.

An operation says where its inputs are and where its output goes.  That is looked up once, here, and not each
time it is executed; what it computes is `isa.arithmetic`'s definition, called for each operation on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from atomicist.isa.arithmetic import PURE, mask
from atomicist.isa.ir import Access, Code, Note, Op, Space, Var
from atomicist.isa.registers import SLOT

if TYPE_CHECKING:
    from atomicist.machine.interpreter import Machine

Registers = list[int]
Temps = dict[int, int]
Read = Callable[[Registers, Temps], int]
Bound = Callable[["Machine", Registers, Temps], int | None]
"""Executes an operation; gives the number of the next one where that is not simply the next."""

LEAVE: Final = 1 << 30
"""The number of no operation: the instruction ends, with a branch."""


def read(v: Var) -> Read:
    """How to read a varnode."""
    off, kept = v.off, mask(v.size)
    if v.space is Space.CONST:
        return lambda r, t: off
    if v.space is Space.TMP:
        return lambda r, t: t[off] & kept
    slot, shift = off // SLOT, 8 * (off % SLOT)
    if shift:
        return lambda r, t: r[slot] >> shift & kept
    return lambda r, t: r[slot] & kept


def _put(out: Var, value: Callable[[Machine, Registers, Temps], int]) -> Bound:
    """Put ``value`` into a varnode; the rest of a wider register keeps its own."""
    off, wanted = out.off, mask(out.size)
    if out.space is Space.TMP:

        def into_temp(m: Machine, r: Registers, t: Temps) -> None:
            t[off] = value(m, r, t)

        return into_temp
    slot, shift = off // SLOT, 8 * (off % SLOT)
    cleared = ~(wanted << shift)

    def into_register(m: Machine, r: Registers, t: Temps) -> None:
        r[slot] = r[slot] & cleared | (value(m, r, t) & wanted) << shift

    return into_register


def _pure(op: Op, out: Var) -> Bound:
    compute, limit, size = PURE[op.code], mask(out.size), out.size
    sizes = tuple(v.size for v in op.ins)
    if len(op.ins) == 1:
        (one,) = (read(v) for v in op.ins)
        return _put(out, lambda m, r, t: compute((one(r, t),), sizes, size) & limit)
    one, two = (read(v) for v in op.ins)
    return _put(out, lambda m, r, t: compute((one(r, t), two(r, t)), sizes, size) & limit)


def _memory(op: Op) -> Bound:
    address = read(op.ins[0])
    if op.code is Code.LOAD:
        assert op.out is not None  # noqa: S101 - by construction
        size, access = op.out.size, Access(op.ins[1].off)
        return _put(op.out, lambda m, r, t: m.load(address(r, t), size, access))
    value, width, why = read(op.ins[1]), op.ins[1].size, Access(op.ins[2].off)
    return lambda m, r, t: m.store(address(r, t), width, value(r, t), why)


def _branch(op: Op) -> Bound:
    where = read(op.ins[0])
    if op.code is Code.CBRANCH:
        taken = read(op.ins[1])
        return lambda m, r, t: m.leave(where(r, t)) if taken(r, t) else None
    if op.code is Code.JUMP:
        number = op.ins[0].off
        return lambda m, r, t: number
    if op.code is Code.CJUMP:
        number, taken = op.ins[0].off, read(op.ins[1])
        return lambda m, r, t: number if taken(r, t) else None
    return lambda m, r, t: m.leave(where(r, t))


def _end(op: Op) -> Bound:
    """FAULT, UNKNOWN, PREDICTED: the run ends here, where the condition says so."""
    if op.code is Code.FAULT:
        vector, error, so = op.ins[0].off, read(op.ins[1]), read(op.ins[2])
        return lambda m, r, t: m.fault(vector, error(r, t)) if so(r, t) else None
    so, text, predicted = read(op.ins[0]), op.text, op.code is Code.PREDICTED
    return lambda m, r, t: m.refuse(text, predicted=predicted) if so(r, t) else None


def _note(op: Op) -> Bound:
    note = Note(op.ins[0].off)
    return lambda m, r, t: m.notes.add(note)


_EFFECTS: Final[dict[Code, Callable[[Op], Bound]]] = {
    Code.LOAD: _memory, Code.STORE: _memory,
    Code.BRANCH: _branch, Code.BRANCHIND: _branch, Code.CBRANCH: _branch, Code.JUMP: _branch,
    Code.CJUMP: _branch,
    Code.FAULT: _end, Code.UNKNOWN: _end, Code.PREDICTED: _end, Code.NOTE: _note,
}  # fmt: skip

_KEPT: Final = 100_000
_known: Final[dict[int, tuple[tuple[Op, ...], tuple[Bound, ...]]]] = {}


def bind(ops: tuple[Op, ...]) -> tuple[Bound, ...]:
    """Each of ``ops``, bound.

    Made once for each tuple, which is kept so that its identity is its own."""
    known = _known.get(id(ops))
    if known is None:
        if len(_known) >= _KEPT:
            _known.clear()
        bound = tuple(
            _pure(op, op.out) if op.out is not None and op.code in PURE else _EFFECTS[op.code](op)
            for op in ops
        )
        known = _known[id(ops)] = ops, bound
    return known[1]
