# SPDX-License-Identifier: GPL-2.0-only
"""Writes microcode: sequences of IR operations, with labels and temporaries."""

from __future__ import annotations

from dataclasses import dataclass

from atomicist.isa.ir import Access, Code, Note, Op, Space, Var, const, reg
from atomicist.isa.registers import FLAG_BITS, RFLAGS_FIXED

CANONICAL_SHIFT = 47
"""Bits 63..47 of a canonical address are equal (48-bit linear addresses, SDM
vol. 1, 3.3.7.1; 57-bit addressing is not modelled)."""


@dataclass(slots=True)
class Label:
    """A position in the sequence, known once `Builder.place` was called."""

    index: int = -1


class Builder:
    """Collects operations; ``done()`` gives them with labels resolved."""

    def __init__(self, before: tuple[Op, ...] = ()) -> None:
        """``before``: operations, with their labels resolved, that come first."""
        self._ops: list[Op | tuple[Label, Var | None]] = list(before)
        places = [v for op in before for v in (*op.ins, op.out) if v is not None]
        self._temps = max((v.off for v in places if v.space is Space.TMP), default=0)

    def tmp(self, size: int = 8) -> Var:
        """A fresh temporary of ``size`` bytes."""
        self._temps += 1
        return Var(Space.TMP, self._temps, size)

    def op(self, code: Code, size: int, *ins: Var) -> Var:
        """``code``(``ins``) in a fresh temporary of ``size`` bytes."""
        out = self.tmp(size)
        self._ops.append(Op(code, out, ins))
        return out

    def set(self, name: str, value: Var) -> None:
        """Register ``name`` := ``value`` (truncated or zero-extended to fit)."""
        target = reg(name)
        self._ops.append(Op(Code.COPY, target, (self.fit(value, target.size),)))

    def copy(self, target: Var, value: Var) -> None:
        """``target`` := ``value``, of the same width."""
        self._ops.append(Op(Code.COPY, target, (value,)))

    def fit(self, value: Var, size: int) -> Var:
        """``value`` zero-extended or truncated to ``size`` bytes."""
        if value.size == size:
            return value
        if value.space is Space.CONST:
            return const(value.off, size)
        if value.size < size:
            return self.op(Code.INT_ZEXT, size, value)
        return self.op(Code.SUBPIECE, size, value, const(0, 4))

    def add(self, a: Var, b: Var | int) -> Var:
        """``a`` + ``b``."""
        return self.op(Code.INT_ADD, a.size, a, const(b, a.size) if isinstance(b, int) else b)

    def and_(self, a: Var, b: int) -> Var:
        """``a`` & ``b``."""
        return self.op(Code.INT_AND, a.size, a, const(b, a.size))

    def or_(self, a: Var, b: Var) -> Var:
        """``a`` | ``b``."""
        return self.op(Code.INT_OR, a.size, a, b)

    def shl(self, a: Var, n: int) -> Var:
        """``a`` << ``n``."""
        return self.op(Code.INT_LEFT, a.size, a, const(n, 1))

    def shr(self, a: Var, n: int) -> Var:
        """``a`` >> ``n``, zeros in."""
        return self.op(Code.INT_RIGHT, a.size, a, const(n, 1))

    def eq(self, a: Var, b: Var | int) -> Var:
        """``a`` == ``b`` as one byte."""
        return self.op(Code.INT_EQUAL, 1, a, const(b, a.size) if isinstance(b, int) else b)

    def ne(self, a: Var, b: Var | int) -> Var:
        """``a`` != ``b`` as one byte."""
        return self.op(Code.INT_NOTEQUAL, 1, a, const(b, a.size) if isinstance(b, int) else b)

    def not_(self, a: Var) -> Var:
        """Logical negation of the byte ``a``."""
        return self.op(Code.BOOL_NEGATE, 1, a)

    def both(self, a: Var, b: Var) -> Var:
        """Logical AND of two bytes."""
        return self.op(Code.BOOL_AND, 1, a, b)

    def none_of(self, a: Var, values: tuple[int, ...]) -> Var:
        """One byte: ``a`` equals none of ``values``."""
        result = const(1, 1)
        for value in values:
            result = self.both(result, self.ne(a, value))
        return result

    def non_canonical(self, address: Var) -> Var:
        """One byte: ``address`` is not canonical."""
        top = self.op(Code.INT_SRIGHT, 8, address, const(CANONICAL_SHIFT, 1))
        return self.none_of(top, (0, (1 << 64) - 1))

    def load(self, address: Var, size: int = 8, access: Access = Access.DATA) -> Var:
        """``size`` bytes at ``address``."""
        return self.op(Code.LOAD, size, address, const(access, 1))

    def store(self, address: Var, value: Var, access: Access = Access.DATA) -> None:
        """Write ``value`` to ``address``."""
        self._ops.append(Op(Code.STORE, None, (address, value, const(access, 1))))

    def fault_if(self, condition: Var, vector: int, error: Var | int = 0) -> None:
        """Raise ``vector`` if ``condition``."""
        code = const(error, 8) if isinstance(error, int) else self.fit(error, 8)
        self._ops.append(Op(Code.FAULT, None, (const(vector, 1), code, condition)))

    def unknown_if(self, condition: Var, text: str) -> None:
        """End the run with the finding ``text`` if ``condition``."""
        self._ops.append(Op(Code.UNKNOWN, None, (condition,), text))

    def predicted_if(self, condition: Var, text: str) -> None:
        """End the run with a finding if ``condition``: a branch of the kind ``text`` may
        go where user mode trained it to."""
        self._ops.append(Op(Code.PREDICTED, None, (condition,), text))

    def note(self, note: Note) -> None:
        """Tell the observer of ``note``."""
        self._ops.append(Op(Code.NOTE, None, (const(note, 1),), note.name))

    def goto(self, target: Var) -> None:
        """Leave the instruction for the address in ``target``."""
        code = Code.BRANCH if target.space is Space.CONST else Code.BRANCHIND
        self._ops.append(Op(code, None, (target,)))

    def skip_if(self, condition: Var, label: Label) -> None:
        """Go to ``label`` if ``condition``."""
        self._ops.append((label, condition))

    def skip(self, label: Label) -> None:
        """Go to ``label``."""
        self._ops.append((label, None))

    def place(self, label: Label) -> None:
        """Let ``label`` stand for the next operation."""
        label.index = len(self._ops)

    def done(self) -> tuple[Op, ...]:
        """The finished sequence."""
        return tuple(self._resolve(item) for item in self._ops)

    @staticmethod
    def _resolve(item: Op | tuple[Label, Var | None]) -> Op:
        if isinstance(item, Op):
            return item
        label, condition = item
        where = const(label.index, 4)
        if condition is None:
            return Op(Code.JUMP, None, (where,))
        return Op(Code.CJUMP, None, (where, condition))


def pack_rflags(b: Builder) -> Var:
    """RFLAGS as one 8-byte value from the single flags."""
    value = const(RFLAGS_FIXED, 8)
    for name, (bit, _) in FLAG_BITS.items():
        value = b.or_(value, b.shl(b.fit(reg(name), 8), bit))
    return value


def unpack_rflags(b: Builder, value: Var, names: tuple[str, ...] = tuple(FLAG_BITS)) -> None:
    """Set the flags ``names`` from the RFLAGS image ``value``."""
    for name in names:
        bit, width = FLAG_BITS[name]
        b.set(name, b.fit(b.and_(b.shr(value, bit), (1 << width) - 1), 1))
