# SPDX-License-Identifier: GPL-2.0-only
"""Damage to a file, drawn from a random source: bits, fields, pieces, and the end.

``hot`` are the places of fields - (offset, width) - that say where and how much: half of the
changes go there, with the values at which arithmetic on sizes and offsets goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

Field = tuple[int, int]

_EDGES: Final = (0, 1, 2, 3, 7, 8, 0x10, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0x8000, 0xFFFF)
_WIDE: Final = (
    1 << 20,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 47,
    1 << 63,
    (1 << 64) - 1,
)


def _value(random: Random, old: int, width: int, size: int) -> int:
    """A number for a field: near its own, near the file's size, or at an edge."""
    near = old + random.choice((-8, -4, -2, -1, 1, 2, 4, 8, 0x100, -0x100, 0x1000))
    other = random.choice(
        (*_EDGES, *_WIDE, size, size - 1, size + 1, old * 2, old // 2, random.getrandbits(64))
    )
    return (near if random.random() < 0.4 else other) & (1 << 8 * width) - 1


def _field(random: Random, data: bytearray, hot: Sequence[Field]) -> None:
    at, width = random.choice(hot)
    if at + width <= len(data):
        old = int.from_bytes(data[at : at + width], "little")
        data[at : at + width] = _value(random, old, width, len(data)).to_bytes(width, "little")


def _bit(random: Random, data: bytearray, _: Sequence[Field]) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _byte(random: Random, data: bytearray, _: Sequence[Field]) -> None:
    data[random.randrange(len(data))] = random.getrandbits(8)


def _number(random: Random, data: bytearray, _: Sequence[Field]) -> None:
    width = random.choice((2, 4, 8))
    _field(random, data, [(random.randrange(len(data)) & -width, width)])


def _copy(random: Random, data: bytearray, _: Sequence[Field]) -> None:
    size = min(random.choice((1, 4, 8, 12, 24, 56, 64, 512)), len(data))
    source, to = (random.randrange(len(data) - size + 1) for _ in range(2))
    data[to : to + size] = data[source : source + size]


def _fill(random: Random, data: bytearray, _: Sequence[Field]) -> None:
    size = min(random.choice((4, 16, 64, 1024)), len(data))
    at = random.randrange(len(data) - size + 1)
    data[at : at + size] = bytes([random.choice((0, 0xFF, 0x80, 0x30))]) * size


def _cut(random: Random, data: bytearray, _: Sequence[Field]) -> None:
    del data[random.randrange(len(data)) :]


def _insert(random: Random, data: bytearray, _: Sequence[Field]) -> None:
    at = random.randrange(len(data))
    data[at:at] = random.randbytes(random.choice((1, 2, 8)))


def _swap(random: Random, data: bytearray, hot: Sequence[Field]) -> None:
    (a, width), (b, other) = random.choice(hot), random.choice(hot)
    if width == other and max(a, b) + width <= len(data):
        data[a : a + width], data[b : b + width] = data[b : b + width], data[a : a + width]


_ANYWHERE: Final = (_bit, _bit, _byte, _number, _copy, _fill, _cut, _insert)
Change = Callable[[Random, bytearray, Sequence[Field]], None]


def damage(random: Random, original: bytes, hot: Sequence[Field] = (), *, same_size: bool = False) -> bytes:
    """``original`` with one to four changes; ``same_size`` leaves out those that move or cut."""
    data = bytearray(original)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        if not data:
            break
        change: Change = random.choice(_ANYWHERE)
        if hot and random.random() < 0.6:
            change = _field if random.random() < 0.9 else _swap
        elif same_size and change in (_cut, _insert):
            change = _number
        change(random, data, hot)
    return bytes(data)


def every(start: int, count: int, *widths: int) -> list[Field]:
    """The fields of ``count`` records in a row, each made of fields of ``widths``."""
    fields, at = [], start
    for _ in range(count):
        for width in widths:
            fields.append((at, width))
            at += width
    return fields
