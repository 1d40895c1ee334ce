# SPDX-License-Identifier: GPL-2.0-only
"""Symbols of a stripped kernel, from the table that the kernel keeps for its own back-traces.

Nothing points at the table, so it is found by its shape (scripts/kallsyms.c, write_src; each part aligned
to 8 bytes, the order of Linux 6.1):

    offsets        s32[n]    see `_address`
    relative_base  u64       address of the first symbol that is not per-CPU: _text
    num_syms       u32       n
    names                    n times: length (one byte, or two when the first has bit 7), then token numbers
    markers        u32[]     position in names of symbols 0, 256, 512, ...
    seqs_of_names  u8[3][n]  (since Linux kernel commit 60443c88f3a8, in 6.2 and in 6.1's later updates)
    token_table              256 strings, each ended by a zero
    token_index    u16[256]  position in token_table of each string

A token whose character occurs in symbols stands for itself, so the digits make a recognisable run in
token_table; token_index then proves it, and markers prove num_syms.  A symbol's first character is its type
(nm's letter).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from atomicist.image.elf import PF_X, ElfImage, Symbol
from atomicist.image.errors import ImageError

MAX_SYMBOLS = 1 << 20
MAX_NAME = 511
"""Characters (include/linux/kallsyms.h, KSYM_NAME_LEN)."""
MAX_TEXT = 64 << 20
"""Characters in all names together; Debian's 6.1 has 3.3 million."""
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_MAX_WALKS = 16
_MAX_PLACES = 1024
"""How many places with the right outline are looked at before giving up; Debian's 6.1 needs 1 of 6."""


def decode_kallsyms(image: ElfImage) -> tuple[Symbol, ...]:
    """All symbols in the kernel's own table, in its order (per-CPU symbols first, then by address).

    Per-CPU symbols have their offset from the start of the per-CPU area as address.
    Raises ImageError when there is no table, or what looks like one contradicts itself.
    """
    bases = [segment.va for segment in image.segments if segment.flags & PF_X][:2]
    walks = _MAX_WALKS
    for segment in image.segments:
        data = bytes(segment.data)
        for table in _token_tables(data):
            for at in (at for base in bases for at in _bases(data, base, table.start)):
                ends = _name_ends(data, at, table.start)
                if ends is not None:
                    return _symbols(data, at, ends, table)
                walks -= 1
                if not walks:
                    raise ImageError("kallsyms cannot be told from what surrounds it: the image is damaged")
    raise ImageError(
        "image has no symbol table, and no kallsyms of Linux 6.1's layout: give a vmlinux with symbols"
    )


@dataclass(frozen=True, slots=True)
class _Tokens:
    start: int
    texts: tuple[bytes, ...]


def _token_tables(data: bytes) -> Iterator[_Tokens]:
    """Every token_table in `data` that the token_index behind it confirms."""
    zero = -1
    for _ in range(_MAX_PLACES):
        zero = data.find(_DIGITS, zero + 1)
        if zero < 0:
            return
        end = zero
        for _ in range(ord("0"), 256):
            end = data.find(b"\0", end, end + MAX_NAME + 2) + 1
            if not end:
                break
        index_at = _align(end)
        if not end or index_at + 512 > len(data):
            continue
        index = struct.unpack_from("<256H", data, index_at)
        start = zero - index[ord("0")]
        if start < 0 or start % 8 or index[0]:
            continue
        texts = data[start:end].split(b"\0")[:-1]
        if (
            len(texts) == 256
            and max(map(len, texts)) <= MAX_NAME
            and all(start + offset == at for offset, at in zip(index, _starts(texts, start), strict=True))
        ):
            yield _Tokens(start, tuple(texts))


def _starts(texts: list[bytes], at: int) -> Iterator[int]:
    for text in texts:
        yield at
        at += len(text) + 1


def _bases(data: bytes, base: int, before: int) -> Iterator[int]:
    """Every aligned place of the number `base` that a plausible num_syms follows."""
    wanted = struct.pack("<Q", base)
    at = -1
    for _ in range(_MAX_PLACES):
        at = data.find(wanted, at + 1, before)
        if at < 0:
            return
        if at % 8 == 0 and at + 16 <= before:
            count, padding = struct.unpack_from("<II", data, at + 8)
            # The markers and the offsets must have room around it before anything is walked.
            fits = 4 * count <= at and at + 16 + 2 * count <= before
            if padding == 0 and 0 < count <= MAX_SYMBOLS and fits:
                yield at


def _name_ends(data: bytes, at: int, table: int) -> list[tuple[int, int]] | None:
    """(start, end) of each compressed name, relative_base being at `at`; None if markers deny it."""
    (count,) = struct.unpack_from("<I", data, at + 8)
    names = place = at + 16
    spans = []
    markers = []
    for number in range(count):
        if number % 256 == 0:
            markers.append(place - names)
        length = data[place]
        place += 1
        if length & 0x80:
            length = length & 0x7F | data[place] << 7
            place += 1
        spans.append((place, place + length))
        place += length
        if not length or place >= table:
            return None
    marks = struct.pack(f"<{len(markers)}I", *markers)
    place = _align(place)
    end = _align(place + len(marks))
    if data[place : place + len(marks)] != marks or table not in (end, _align(end + 3 * count)):
        return None
    return spans


def _symbols(data: bytes, at: int, spans: list[tuple[int, int]], table: _Tokens) -> tuple[Symbol, ...]:
    (base,) = struct.unpack_from("<Q", data, at)
    # The offsets end where relative_base begins, but for padding to 8.
    offsets = struct.unpack_from(f"<{len(spans)}i", data, at - _align(4 * len(spans)))
    symbols = []
    room = MAX_TEXT
    tokens = table.texts
    for (start, end), offset in zip(spans, offsets, strict=True):
        text = b"".join([tokens[token] for token in data[start:end]])
        room -= len(text)
        if not 2 <= len(text) <= MAX_NAME + 1 or room < 0:
            raise ImageError(f"kallsyms has a name of {len(text)} characters: the image is damaged")
        name = text.decode("utf-8", "replace")
        symbols.append(Symbol(name[1:], _address(offset, base), name[0]))
    return tuple(symbols)


def _address(offset: int, base: int) -> int:
    """CONFIG_KALLSYMS_ABSOLUTE_PERCPU: not negative is absolute, the rest counts down from base - 1."""
    return offset if offset >= 0 else base - 1 - offset


def _align(place: int) -> int:
    return place + 7 & ~7
