# SPDX-License-Identifier: GPL-2.0-only
"""C expressions for the pure operations of the IR.

Every value is kept with the bits above its width zero, as the runtime's `apply`
keeps it; definitions are those of `isa.arithmetic`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from atomicist.isa.ir import Code, Op

_NAME: Final = re.compile(r"\b(?:[rvx]\d+|error)\b")
_WORD: Final = 8


@dataclass(frozen=True, slots=True)
class Value:
    """A C expression ``text`` of ``size`` bytes.

    If ``base`` names another value, this one is ``base`` + ``off``; a constant has
    the base "0".  Addresses are grouped by that."""

    text: str
    size: int
    base: str = ""
    off: int = 0

    @property
    def constant(self) -> bool:
        """Whether ``off`` is the value itself."""
        return self.base == "0"

    @property
    def simple(self) -> bool:
        """Whether the text is a literal or a name."""
        return self.constant or _NAME.fullmatch(self.text) is not None

    def names(self) -> tuple[str, ...]:
        """The C names that the text uses."""
        return tuple(_NAME.findall(self.text)) if not self.constant else ()


def mask(size: int) -> int:
    """All ones in ``size`` bytes."""
    return (1 << 8 * size) - 1


def literal(value: int) -> str:
    """``value`` modulo 2^64 as a C constant."""
    value &= mask(_WORD)
    return f"{value}ull" if value < 10 else f"{value:#x}ull"


def constant(value: int, size: int) -> Value:
    """The constant ``value``."""
    return Value(literal(value), size, "0", value & mask(size))


def ctype(size: int) -> str:
    """The C type that holds ``size`` bytes."""
    return "u64" if size <= _WORD else "u128"


def part(value: Value, sub: int, size: int) -> Value:
    """``size`` bytes of ``value`` from byte ``sub`` on."""
    if sub == 0 and size == value.size:
        return value
    if value.constant:
        return constant(value.off >> 8 * sub, size)
    shifted = f"({value.text} >> {8 * sub})" if sub else value.text
    if sub == 0 and size > value.size:
        return Value(value.text, size)
    if value.size > _WORD >= size:
        shifted = f"(u64){shifted}"
    return Value(_cut(shifted, size), size)


def _cut(text: str, size: int) -> str:
    if size in {_WORD, 2 * _WORD}:
        return f"({text})"
    if size > _WORD:
        return f"({text} & (((u128)1 << {8 * size}) - 1))"
    return f"({text} & {literal(mask(size))})"


def _sx(v: Value) -> str:
    if v.size == _WORD:
        return f"(s64){v.text}"
    n = 64 - 8 * v.size
    return f"((s64)({v.text} << {n}) >> {n})"


def _shift(operator: str) -> Callable[[Value, Value], str]:
    def text(a: Value, b: Value) -> str:
        if b.constant:
            return f"{a.text} {operator} {b.off}" if b.off < 8 * a.size else "0"
        return f"({b.text} < {8 * a.size} ? {a.text} {operator} {b.text} : 0)"

    return text


def _sright(a: Value, b: Value) -> str:
    most = 8 * a.size - 1
    amount = str(min(b.off, most)) if b.constant else f"({b.text} < {most} ? {b.text} : {most})"
    return f"(u64)({_sx(a)} >> {amount})"


def _subpiece(a: Value, b: Value) -> str:
    return f"{a.text} >> {8 * b.off}" if b.off < _WORD else "0"


def _carry(a: Value, b: Value) -> str:
    return f"{_cut(f'({a.text} + {b.text})', a.size)} < {a.text}"


def _overflow(mixed: str, arithmetic: str) -> Callable[[Value, Value], str]:
    def text(a: Value, b: Value) -> str:
        same = mixed.format(a=a.text, b=b.text)
        return f"(({same} & ({a.text} ^ ({a.text} {arithmetic} {b.text}))) >> {8 * a.size - 1}) & 1"

    return text


def _binary(operator: str) -> Callable[[Value, Value], str]:
    return lambda a, b: f"{a.text} {operator} {b.text}"


_BINARY: Final[dict[Code, Callable[[Value, Value], str]]] = {
    Code.INT_ADD: _binary("+"),
    Code.INT_SUB: _binary("-"),
    Code.INT_MULT: _binary("*"),
    Code.INT_AND: _binary("&"),
    Code.INT_OR: _binary("|"),
    Code.INT_XOR: _binary("^"),
    Code.BOOL_AND: _binary("&"),
    Code.BOOL_OR: _binary("|"),
    Code.BOOL_XOR: _binary("^"),
    Code.INT_EQUAL: _binary("=="),
    Code.INT_NOTEQUAL: _binary("!="),
    Code.INT_LESS: _binary("<"),
    Code.INT_LESSEQUAL: _binary("<="),
    Code.INT_SLESS: lambda a, b: f"{_sx(a)} < {_sx(b)}",
    Code.INT_SLESSEQUAL: lambda a, b: f"{_sx(a)} <= {_sx(b)}",
    Code.INT_LEFT: _shift("<<"),
    Code.INT_RIGHT: _shift(">>"),
    Code.INT_SRIGHT: _sright,
    Code.INT_CARRY: _carry,
    Code.INT_SCARRY: _overflow("~({a} ^ {b})", "+"),
    Code.INT_SBORROW: _overflow("({a} ^ {b})", "-"),
    Code.PIECE: lambda a, b: f"{a.text} << {8 * b.size} | {b.text}",
    Code.SUBPIECE: _subpiece,
}
_UNARY: Final[dict[Code, Callable[[Value], str]]] = {
    Code.COPY: lambda a: a.text,
    Code.INT_ZEXT: lambda a: a.text,
    Code.INT_SEXT: lambda a: f"(u64){_sx(a)}",
    Code.INT_NEGATE: lambda a: f"~{a.text}",
    Code.INT_2COMP: lambda a: f"-{a.text}",
    Code.BOOL_NEGATE: lambda a: f"{a.text} ^ 1",
    Code.POPCOUNT: lambda a: f"(u64)__builtin_popcountll({a.text})",
    Code.LZCOUNT: lambda a: f"{a.text} ? (u64)__builtin_clzll({a.text}) - {64 - 8 * a.size} : {8 * a.size}",
}
_WIDE: Final = frozenset(
    {
        Code.COPY, Code.INT_ZEXT, Code.INT_ADD, Code.INT_SUB, Code.INT_MULT, Code.INT_AND, Code.INT_OR,
        Code.INT_XOR, Code.INT_EQUAL, Code.INT_NOTEQUAL,
    }
)  # fmt: skip
"""Operations that take or give more than 8 bytes here; others are left to `step()`.
Shifts and SUBPIECE, whose amount counts differently there, are made in `pure`."""

_BITS: Final = frozenset(
    {
        Code.INT_EQUAL, Code.INT_NOTEQUAL, Code.INT_LESS, Code.INT_LESSEQUAL, Code.INT_SLESS,
        Code.INT_SLESSEQUAL, Code.INT_CARRY, Code.INT_SCARRY, Code.INT_SBORROW,
    }
)  # fmt: skip
"""Operations that give 0 or 1."""

_BITWISE: Final = frozenset(
    {
        Code.INT_AND, Code.INT_OR, Code.INT_XOR, Code.INT_RIGHT, Code.BOOL_AND, Code.BOOL_OR, Code.BOOL_XOR,
        Code.BOOL_NEGATE,
    }
)  # fmt: skip
"""Operations that set no bit beyond their inputs' width."""


def known(op: Op) -> bool:
    """Whether `pure` can express ``op``, or it is no pure operation."""
    if op.out is None or op.code is Code.LOAD:
        return True
    if op.out.size <= _WORD and op.ins[0].size <= _WORD:
        shifted = op.code is not Code.SUBPIECE or op.ins[1].space == 0
        return (op.code in _BINARY or op.code in _UNARY) and shifted
    if op.code is Code.INT_SEXT:
        return op.out.size == 2 * _WORD
    if op.code in {Code.INT_LEFT, Code.INT_RIGHT, Code.SUBPIECE}:
        return op.ins[1].space == 0
    return op.code in _WIDE


def pure(op: Op, values: Sequence[Value]) -> Value:
    """``op`` applied to ``values``, whose texts are simple. KeyError if not `known`."""
    if op.out is None:
        raise KeyError(op.code)
    size, a = op.out.size, values[0]
    if size > _WORD or a.size > _WORD:
        return Value(_wide(op.code, values, size), size)
    if op.code in {Code.COPY, Code.INT_ZEXT}:
        return Value(a.text, size, a.base, a.off) if size == a.size or a.constant else Value(a.text, size)
    if op.code is Code.INT_ADD and a.constant:
        a, values = values[1], (values[1], a)
    if size == _WORD and op.code in {Code.INT_ADD, Code.INT_SUB} and values[1].constant:
        off = values[1].off if op.code is Code.INT_ADD else -values[1].off
        if a.constant:
            return constant(a.off + off, size)
        base, distance = (a.base, a.off) if a.base else (a.text, 0)
        distance = (distance + off + (1 << 63)) % (1 << 64) - (1 << 63)
        return Value(f"({a.text} + {literal(off)})", size, base, distance)
    text = _UNARY[op.code](a) if op.code in _UNARY else _BINARY[op.code](a, values[1])
    fits = op.code in _BITS or (op.code in _BITWISE and size >= a.size)
    return Value(f"({text})" if fits else _cut(f"({text})", size), size)


def _wide(code: Code, values: Sequence[Value], size: int) -> str:
    a = values[0]
    wide = f"(u128){a.text}"
    if code in {Code.COPY, Code.INT_ZEXT}:
        text = wide
    elif code is Code.INT_SEXT:
        n = 128 - 8 * a.size
        text = f"(u128)((s128)({wide} << {n}) >> {n})"
    elif code is Code.SUBPIECE:
        text = f"({wide} >> {8 * values[1].off})" if values[1].off < 2 * _WORD else "0"
    elif code in {Code.INT_LEFT, Code.INT_RIGHT}:
        operator = "<<" if code is Code.INT_LEFT else ">>"
        text = f"({wide} {operator} {values[1].off})" if values[1].off < 128 else "0"
    else:
        operator = _OPERATORS[code]
        text = f"({wide} {operator} (u128){values[1].text})"
    if size <= _WORD:
        return _cut(f"(u64)({text})", size)
    # the runtime keeps all 128 bits of what it computes
    return f"({text})"


_OPERATORS: Final = {
    Code.INT_ADD: "+", Code.INT_SUB: "-", Code.INT_MULT: "*", Code.INT_AND: "&", Code.INT_OR: "|",
    Code.INT_XOR: "^", Code.INT_EQUAL: "==", Code.INT_NOTEQUAL: "!=",
}  # fmt: skip
