# SPDX-License-Identifier: GPL-2.0-only
"""What is damaged: pieces of real images, small enough that a case costs milliseconds.

Debian's kernel is 66 MB.  `carved_kernel` keeps of it the pages, symbols and patch records that
reading its exception entries needs; `kallsyms` and `btf` keep the first records of its own tables, with
only the counts adapted.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from atomicist.image import bare, kallsyms, vmlinux
from atomicist.image.alternatives import PAGE
from atomicist.image.bare import BareConfig
from atomicist.image.btf import (
    _ALIASES,
    _ARRAY,
    _ENUM,
    _ENUM64,
    _FLOAT,
    _INT,
    _PTR,
    _STRUCT,
    _TAILS,
    _UNION,
    Btf,
)  # fmt: skip
from atomicist.image.elf import ElfImage
from atomicist.image.errors import ImageError
from atomicist.image.kernel import Kernel, parse_kernel
from atomicist.image.layout import LinuxLayout
from atomicist.image.linux import describe
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from tests.image import builders

ROOT: Final = Path(__file__).resolve().parents[2]
VMLINUZ: Final = ROOT / "build" / "kernel-image" / "vmlinuz"
FEATURES: Final = tuple(
    frozenset(names.split())
    for names in (
        "PTI PCID FSGSBASE SMAP",
        "RETHUNK UNRET SRSO",
        "RETPOLINE KERNEL_IBRS PTI",
        "RETPOLINE RETPOLINE_LFENCE SMAP",
    )
)
"""CPUs; between them each kind of patch is applied and left out."""

_BTF_AT: Final = 0xFFFF_FFFF_F000_0000
"""A place for the types, behind all of the kernel."""

_LISTS: Final = (
    ("__parainstructions", "__parainstructions_end", 16), ("__retpoline_sites", "__retpoline_sites_end", 4),
    ("__return_sites", "__return_sites_end", 4), ("__alt_instructions", "__alt_instructions_end", 12),
)  # fmt: skip


def read_target(layout: LinuxLayout) -> Target:
    """The rest of the way to a target."""
    return vmlinux._Loader(layout, "fuzz").target()


def bare_image() -> bytes:
    """Our entry, with symbols and DWARF."""
    return bare.build(bare.kernel_source(), BareConfig(), cache_dir()).read_bytes()


def debian() -> bytes:
    """Debian's vmlinuz. FileNotFoundError until tools/kernel-image has fetched it."""
    return VMLINUZ.read_bytes()


def small_kallsyms(image: ElfImage, count: int) -> bytes:
    """The first ``count`` names of a kernel's own kallsyms, in its own compression."""
    for segment in image.segments:
        data = bytes(segment.data)
        for table in kallsyms._token_tables(data):
            for at in kallsyms._bases(data, image.segments[1].va, table.start):
                spans = kallsyms._name_ends(data, at, table.start)
                if spans is not None:
                    return _cut_kallsyms(data, at, spans[:count], len(spans), table)
    raise ImageError("no kallsyms")


def _cut_kallsyms(
    data: bytes, at: int, spans: list[tuple[int, int]], total: int, table: kallsyms._Tokens
) -> bytes:
    def pad(part: bytes) -> bytes:
        return part + bytes(-len(part) % 8)

    first = at - (4 * total + 7 & ~7)
    names = data[at + 16 : spans[-1][1]]
    marks = [
        spans[n][0] - at - 16 - (2 if spans[n][1] - spans[n][0] > 127 else 1)
        for n in range(0, len(spans), 256)
    ]
    end = table.start + sum(len(text) + 1 for text in table.texts)
    return (
        pad(data[first : first + 4 * len(spans)]) + data[at : at + 8] + struct.pack("<II", len(spans), 0)
        + pad(names) + pad(struct.pack(f"<{len(marks)}I", *marks)) + pad(bytes(3 * len(spans)))
        + pad(data[table.start : end]) + data[kallsyms._align(end) : kallsyms._align(end) + 512]
    )  # fmt: skip


def small_btf(data: bytes, count: int) -> bytes:
    """The first ``count`` types of real BTF, with all strings."""
    header, types, _, strings, size = struct.unpack_from("<5I", data, 4)
    names = data[header + strings : header + strings + size]
    place, body = 0, data[header + types :]
    used = 0
    for _ in range(count):
        name, info = struct.unpack_from("<II", body, place)
        fixed, each = _TAILS[info >> 24 & 31]
        place += 12 + fixed + each * (info & 0xFFFF)
        used = max(used, name)
    return b"\x9f\xeb\x01\0" + struct.pack("<5I", 24, 0, place, place, len(names)) + body[:place] + names


_NEEDED: Final = (
    "idt_data", "cpu_entry_area", "cea_exception_stacks", "exception_stacks", "x86_hw_tss", "tss_struct",
)  # fmt: skip


class _Types:
    """BTF of a few structures and what they are made of, numbered anew; pointers point to nothing."""

    def __init__(self, data: bytes) -> None:
        self._btf = Btf(data)
        self._made = builders.BtfBuilder()
        self._numbers: dict[int, int] = {}

    def build(self) -> bytes:
        for name in _NEEDED:
            self._type(self._btf._structs[name])
        return self._made.build()

    def _type(self, number: int) -> int:
        if not number:
            return 0
        if number not in self._numbers:
            self._numbers[number] = self._copy(self._btf._places[number])
        return self._numbers[number]

    def _copy(self, place: int) -> int:
        types = self._btf._types
        name, info, size = struct.unpack_from("<III", types, place)
        kind, count = info >> 24 & 31, info & 0xFFFF
        tail = types[place + 12 : place + 12 + _TAILS[kind][0] + _TAILS[kind][1] * count]
        if kind == _PTR:
            size = 0
        elif kind in _ALIASES:
            size = self._type(size)
        elif kind == _ARRAY:
            of, by, number = struct.unpack("<III", tail)
            tail = struct.pack("<III", self._type(of), self._type(by), number)
        elif kind in (_STRUCT, _UNION):
            members = [struct.unpack_from("<III", tail, 12 * n) for n in range(count)]
            tail = b"".join(struct.pack("<III", self._text(m), self._type(of), at) for m, of, at in members)
        elif kind not in (_INT, _FLOAT):
            tail = tail if kind not in (_ENUM, _ENUM64) else b""
            count = 0
        text = self._btf._string(name) if name else ""
        return self._made.add(text, kind, size, tail, vlen=count, flag=info >> 31)

    def _text(self, name: int) -> int:
        return self._made.name(self._btf._string(name)) if name else 0


class _Names(dict[str, tuple[int, ...]]):
    """Symbols, and which of them were asked for."""

    def __init__(self, known: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(known)
        self.asked: set[str] = set()

    def get(self, name: str, other: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, other)


class _Carver:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        names = _Names(kernel.names)
        asking = replace(kernel, names=names)
        layouts = [describe(asking, features) for features in FEATURES]
        for layout in layouts:
            read_target(layout)
        self.code = {va & -PAGE for layout in layouts for va in layout.reach.instructions}
        self.pages = set(self.code)
        self.symbols = {n for n in names.asked if kernel.has(n)} - {"__start_BTF", "__stop_BTF"}
        for name in sorted(self.symbols):
            self._behind(kernel.symbol(name))
        start, end = kernel.range("__start_BTF", "__stop_BTF")
        self.types = _Types(kernel.read(start, end - start)).build()

    def _behind(self, at: int) -> None:
        behind = next((a for a in self.kernel.starts if a > at), 0)
        if behind:
            self.symbols.add(self.kernel.where(behind))

    def build(self) -> bytes:
        records = {name: self._records(name, end, size) for name, end, size in _LISTS}
        symbols = {name: self.kernel.names[name][0] for name in self.symbols if self.kernel.has(name)}
        for name, end, _ in _LISTS:
            symbols[end] = symbols[name] + len(records[name])
        parts: dict[int, bytearray] = {}
        last = -1
        for va in sorted(self.pages):
            segment = self.kernel.elf.segment(va)
            size = min(PAGE, segment.va + segment.size - va)
            if last >= 0 and last + len(parts[last]) == va:
                parts[last] += self.kernel.read(va, size)
            else:
                parts[va], last = bytearray(self.kernel.read(va, size)), va
        for name, _, _ in _LISTS:
            at = symbols[name]
            start = max(start for start in parts if start <= at)
            parts[start][at - start : at - start + len(records[name])] = records[name]
        symbols |= {"__start_BTF": _BTF_AT, "__stop_BTF": _BTF_AT + len(self.types)}
        return builders.elf({**{va: bytes(body) for va, body in parts.items()}, _BTF_AT: self.types}, symbols)

    def _records(self, name: str, end: str, size: int) -> bytes:
        """The records of a list whose sites are kept, at the list's own place."""
        low, high = self.kernel.range(name, end)
        data, out = self.kernel.read(low, high - low), b""
        for at in range(0, len(data), size):
            record = data[at : at + size]
            here = low + len(out)
            absolute = size == 16
            site = struct.unpack_from("<Q" if absolute else "<i", record)[0] + (0 if absolute else low + at)
            if site & -PAGE not in self.code:
                continue
            if size == 12:
                spare = low + at + 4 + struct.unpack_from("<i", record, 4)[0]
                self.pages |= {spare & -PAGE, spare + 255 & -PAGE}
                record = struct.pack("<ii", site - here, spare - here - 4) + record[8:]
            elif size == 4:
                record = struct.pack("<i", site - here)
            out += record
        self.pages |= {va & -PAGE for va in (low, low + len(out))}
        return out

    def missing(self, words: str) -> bool:
        """Add the memory that an error says is missing; False if it says something else."""
        place = re.search(r"address (0x[0-9a-f]+) is in no segment", words)
        several = re.search(r"(\d+) bytes at (0x[0-9a-f]+) leave", words)
        found = (place[1], "1") if place else (several[2], several[1]) if several else None
        if found is None:
            return False
        start, size = int(found[0], 16), int(found[1])
        new = set(range(start & -PAGE, start + size, PAGE)) - self.pages
        self.pages |= new
        return bool(new)


def carve(kernel: Kernel) -> bytes:
    """An ELF file with what `describe` needs of ``kernel``."""
    carver = _Carver(kernel)
    for _ in range(1000):
        data = carver.build()
        try:
            for features in FEATURES:
                read_target(describe(parse_kernel(data), features))
        except ImageError as error:
            if not carver.missing(str(error)):
                raise
        else:
            return data
    raise ImageError("no end of what is missing")


def debian_kernel() -> Kernel:
    """Debian's kernel, read."""
    return parse_kernel(debian())
