# SPDX-License-Identifier: GPL-2.0-only
"""What each pure operation computes, on Python's unbounded integers.

``PURE[code](values, sizes, out_size)`` gives the result, masked to
``out_size`` bytes.  Definitions follow Ghidra's p-code reference; shifts by
the width or more give zero (or the sign), as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from atomicist.isa.ir import Code

Pure = Callable[[Sequence[int], Sequence[int], int], int]


def mask(size: int) -> int:
    """All ones in ``size`` bytes."""
    return (1 << (8 * size)) - 1


def signed(value: int, size: int) -> int:
    """``value`` read as two's complement of ``size`` bytes."""
    top = 1 << (8 * size - 1)
    return (value ^ top) - top


def _scarry(v: Sequence[int], s: Sequence[int], _o: int) -> int:
    total = signed(v[0], s[0]) + signed(v[1], s[0])
    return int(total != signed(total & mask(s[0]), s[0]))


def _sborrow(v: Sequence[int], s: Sequence[int], _o: int) -> int:
    total = signed(v[0], s[0]) - signed(v[1], s[0])
    return int(total != signed(total & mask(s[0]), s[0]))


PURE: Final[dict[Code, Pure]] = {
    Code.COPY: lambda v, s, o: v[0],
    Code.INT_ADD: lambda v, s, o: v[0] + v[1],
    Code.INT_SUB: lambda v, s, o: v[0] - v[1],
    Code.INT_MULT: lambda v, s, o: v[0] * v[1],
    Code.INT_AND: lambda v, s, o: v[0] & v[1],
    Code.INT_OR: lambda v, s, o: v[0] | v[1],
    Code.INT_XOR: lambda v, s, o: v[0] ^ v[1],
    Code.INT_LEFT: lambda v, s, o: v[0] << v[1] if v[1] < 8 * s[0] else 0,
    Code.INT_RIGHT: lambda v, s, o: v[0] >> v[1] if v[1] < 8 * s[0] else 0,
    Code.INT_SRIGHT: lambda v, s, o: signed(v[0], s[0]) >> min(v[1], 8 * s[0] - 1),
    Code.INT_EQUAL: lambda v, s, o: int(v[0] == v[1]),
    Code.INT_NOTEQUAL: lambda v, s, o: int(v[0] != v[1]),
    Code.INT_LESS: lambda v, s, o: int(v[0] < v[1]),
    Code.INT_LESSEQUAL: lambda v, s, o: int(v[0] <= v[1]),
    Code.INT_SLESS: lambda v, s, o: int(signed(v[0], s[0]) < signed(v[1], s[1])),
    Code.INT_SLESSEQUAL: lambda v, s, o: int(signed(v[0], s[0]) <= signed(v[1], s[1])),
    Code.INT_CARRY: lambda v, s, o: int(v[0] + v[1] > mask(s[0])),
    Code.INT_SCARRY: _scarry,
    Code.INT_SBORROW: _sborrow,
    Code.INT_ZEXT: lambda v, s, o: v[0],
    Code.INT_SEXT: lambda v, s, o: signed(v[0], s[0]),
    Code.INT_NEGATE: lambda v, s, o: ~v[0],
    Code.INT_2COMP: lambda v, s, o: -v[0],
    Code.BOOL_NEGATE: lambda v, s, o: v[0] ^ 1,
    Code.BOOL_AND: lambda v, s, o: v[0] & v[1],
    Code.BOOL_OR: lambda v, s, o: v[0] | v[1],
    Code.BOOL_XOR: lambda v, s, o: v[0] ^ v[1],
    Code.PIECE: lambda v, s, o: v[0] << (8 * s[1]) | v[1],
    Code.SUBPIECE: lambda v, s, o: v[0] >> (8 * v[1]),
    Code.POPCOUNT: lambda v, s, o: v[0].bit_count(),
    Code.LZCOUNT: lambda v, s, o: 8 * s[0] - v[0].bit_length(),
}
"""Result of each pure operation, before masking to the output's width."""


def evaluate(code: Code, values: Sequence[int], sizes: Sequence[int], out_size: int) -> int:
    """Value of ``code`` on ``values`` of ``sizes`` bytes, in ``out_size`` bytes.

    Raises KeyError for an operation that is not pure."""
    return PURE[code](values, sizes, out_size) & mask(out_size)
