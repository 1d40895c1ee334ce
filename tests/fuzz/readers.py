# SPDX-License-Identifier: GPL-2.0-only
"""The readers that strangers' bytes reach, each with seeds, the fields in them, and its one error.

A case is a reader's name and a number; both together give the same bytes again.
"""

from __future__ import annotations

import bz2
import dataclasses
import functools
import hashlib
import itertools
import lzma
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from atomicist.image import bare, cache
from atomicist.image.alternatives import patch
from atomicist.image.bare import BareConfig
from atomicist.image.btf import Btf
from atomicist.image.bzimage import extract_vmlinux
from atomicist.image.elf import read_elf
from atomicist.image.errors import ImageError
from atomicist.image.kallsyms import decode_kallsyms
from atomicist.image.kernel import parse_kernel
from atomicist.image.linux import describe
from atomicist.image.source_lines import SourceLines
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.search.schedule import ScheduleError, parse
from atomicist.spec.events import EVENTS
from tests.fuzz import seeds
from tests.fuzz.mutate import Field, damage, every
from tests.image import builders

MEMORY: Final = 1 << 30
"""Bytes that a reader may make the process hold."""

CPU_SECONDS: Final = 20
"""Beyond which a case hangs; the longest honest one takes two."""


@dataclass(frozen=True)
class Reader:
    """``run`` reads bytes and raises nothing but ``error``; ``share`` is of 1,000 cases."""

    make: Callable[[Random], bytes]
    run: Callable[[bytes], object]
    error: type[Exception] | None
    share: int


_NAMES: Final = 800


def _elf_fields(data: bytes, records: int = 40) -> list[Field]:
    """The header, program and section headers, and first symbols of an ELF file."""
    phoff, shoff = struct.unpack_from("<QQ", data, 32)
    phnum, _, shnum, _ = struct.unpack_from("<4H", data, 56)
    fields = [(4, 1), (5, 1), *every(16, 1, 2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2)]
    fields += every(phoff, phnum, 4, 4, 8, 8, 8, 8, 8, 8) + every(shoff, shnum, 4, 4, 8, 8, 8, 8, 4, 4, 8, 8)
    for n in range(shnum):
        kind, offset, size = struct.unpack_from("<4xI16xQQ", data, shoff + 64 * n)
        if kind == 2:
            fields += every(offset, min(size // 24, records), 4, 1, 1, 2, 8, 8)
        elif kind == 7:
            fields += every(offset, 3, 4)
    return fields


@functools.cache
def _bare() -> tuple[bytes, list[Field]]:
    data = seeds.bare_image()
    return data, _elf_fields(data)


@functools.cache
def _dwarf_fields() -> list[Field]:
    """Heads of the DWARF sections, and their section headers: what says how much is read."""
    data, _ = _bare()
    (shoff,) = struct.unpack_from("<Q", data, 40)
    (shnum,) = struct.unpack_from("<H", data, 60)
    fields: list[Field] = []
    for n, section in enumerate(read_elf(data).sections[:shnum]):
        if section.name.startswith(".debug_"):
            at = struct.unpack_from("<Q", data, shoff + 64 * n + 24)[0]
            fields += every(shoff + 64 * n, 1, 4, 4, 8, 8, 8, 8) + every(at, 1, 4, 2, 4, 1, 1, 1, 1, 1)
            fields += [(at + i, 1) for i in range(16, min(section.size, 400))]
    return fields


@functools.cache
def carved() -> tuple[bytes, list[Field]]:
    """The carved kernel; its fields are the headers', and the lists' of patches."""
    place = seeds.ROOT / "build" / "fuzz" / "carved-kernel.elf"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(seeds.carve(seeds.debian_kernel()))
        Path(file.name).rename(place)
    data = place.read_bytes()
    fields = _elf_fields(data, 200)
    image = parse_kernel(data)
    for (name, end, _), widths in zip(seeds._LISTS, ((8, 1, 1, 6), (4,), (4,), (4, 4, 2, 1, 1)), strict=True):
        low, high = image.symbol(name), image.symbol(end)
        segment = image.elf.segment(low)
        start = data.index(bytes(segment.data)) + low - segment.va
        fields += every(start, (high - low) // sum(widths), *widths)
    return data, fields


@functools.cache
def _tables() -> tuple[bytes, bytes]:
    """kallsyms and BTF: Debian's own, cut."""
    kernel = seeds.debian_kernel()
    start, end = kernel.range("__start_BTF", "__stop_BTF")
    return seeds.small_kallsyms(kernel.elf, _NAMES), seeds.small_btf(kernel.read(start, end - start), 600)


def _elf(random: Random) -> bytes:
    """Most changes are to the headers; some to any byte."""
    data, fields = random.choice((_bare, carved))()
    return damage(random, data, fields)


@functools.cache
def _bzimages() -> list[bytes]:
    small, _ = _bare()
    end = struct.pack("<I", len(small))
    xz = lzma.compress(small, lzma.FORMAT_XZ) + end
    packed = [
        builders.gzip(small),
        xz,
        lzma.compress(small, lzma.FORMAT_ALONE) + end,
        bz2.compress(small) + end,
    ]
    made = [builders.bzimage(payload) for payload in packed]
    # and the head of the real one: its header, its compressor, its first 64 KB
    return [*made, seeds.debian()[: 1 << 16]]


_BZIMAGE_FIELDS: Final = [(0x1F1, 1), (0x202, 4), (0x206, 2), (0x248, 4), (0x24C, 4), *every(0x410, 16, 1)]


def _bzimage(random: Random) -> bytes:
    data = random.choice(_bzimages())
    tail = len(data) - 4
    return damage(random, data, [*_BZIMAGE_FIELDS, (tail, 4)])


def _kallsyms(random: Random) -> bytes:
    table, _ = _tables()
    head = 4 * _NAMES
    fields = [*every(0, 8, 4), (head, 8), (head + 8, 4), (head + 12, 4), *every(head + 16, 64, 1)]
    fields += every(len(table) - 512, 256, 2) + every(len(table) - 5200, 40, 4)
    return damage(random, table, fields)


def _run_kallsyms(data: bytes) -> object:
    return decode_kallsyms(read_elf(builders.elf({builders.BASE - 4096: bytes(8), builders.BASE: data})))


@functools.cache
def _btf_fields() -> list[Field]:
    (size,) = struct.unpack_from("<I", _tables()[1], 12)
    return every(0, 1, 2, 1, 1, 4, 4, 4, 4, 4) + every(24, size // 4, 4)


def _btf(random: Random) -> bytes:
    return damage(random, _tables()[1], _btf_fields())


def _run_btf(data: bytes) -> object:
    btf, refused = Btf(data), 0
    names = sorted(btf._structs)
    for name in names[:: max(1, len(names) // 40)]:
        try:
            layout = btf.struct(name)
            for member in list(layout.members)[:4]:
                btf.offset(name, member)
        except ImageError:
            refused += 1
    return refused


def _carved(random: Random) -> bytes:
    data, fields = carved()
    return damage(random, data, fields, same_size=True)


def _features(data: bytes) -> frozenset[str]:
    return seeds.FEATURES[zlib.crc32(data) % len(seeds.FEATURES)]


def _run_alternatives(data: bytes) -> object:
    return len(patch(parse_kernel(data), _features(data)).patches)


def _run_describe(data: bytes) -> object:
    return describe(parse_kernel(data), _features(data)).reach.unknown


def _run_target(data: bytes) -> object:
    return len(seeds.read_target(describe(parse_kernel(data), _features(data))).insns)


def _dwarf(random: Random) -> bytes:
    return damage(random, _bare()[0], _dwarf_fields(), same_size=True)


@functools.cache
def _addresses() -> list[int]:
    return sorted(entry().insns)[::300]


def _run_dwarf(data: bytes) -> object:
    with tempfile.NamedTemporaryFile(prefix="atomicist-fuzz-") as file:
        file.write(data)
        file.flush()
        lines = SourceLines(Path(file.name))
        return [*filter(None, (lines(address) for address in _addresses()))] or None


@functools.cache
def entry() -> Target:
    """Our entry."""
    return bare.load(bare.build(bare.kernel_source(), BareConfig(), cache_dir()), BareConfig())


@functools.cache
def small_entry() -> Target:
    """Our entry with a few of its instructions: all kinds of parts, in a tenth of the bytes."""
    whole = entry()
    return dataclasses.replace(whole, insns=dict(itertools.islice(whole.insns.items(), 0, None, 20)))


@functools.cache
def _entries() -> bytes:
    with tempfile.TemporaryDirectory(prefix="atomicist-fuzz-") as work:
        cache._write(Path(work, "target"), small_entry())
        return Path(work, "target").read_bytes()


def _cache(random: Random) -> bytes:
    """One entry in ten has the hash of what they hold: damage that someone meant."""
    data = damage(random, _entries(), [(0, 8), (32, 1), (33, 1), (34, 8)])
    return data if random.random() < 0.9 else hashlib.sha256(data[32:]).digest() + data[32:]


def _run_cache(data: bytes) -> object:
    with tempfile.NamedTemporaryFile(prefix="atomicist-fuzz-") as file:
        file.write(data)
        file.flush()
        return cache._read(Path(file.name))


_SCHEDULES: Final = (
    "user:NMI", "kernel-task:NMI,MC@asm_exc_nmi+0x4,NMI@asm_exc_nmi+0x4", "user:NMI@+4",
    "gap-entry_SYSCALL_64+0x3-hostile:VC,DB@asm_exc_debug+0x2b#3~64,NMI@+0x10", "user:NMI,MC@asm_exc_nmi+43",
)  # fmt: skip
_PIECES: Final = (
    *"@+#~,:.-_$ \t\n\0", "NMI", "MC", "DB", "VC", "user", "asm_exc_nmi", "0x", "+0x", "99999999999999999999",
    "\u0661\u0662", "\ud800", "\U0001f4a3", "\x1b[31m", "<!--", "]]>", "%s", "{0}", "../", "NMI," * 70,
    "9" * 9000,
)  # fmt: skip


def _schedule(random: Random) -> bytes:
    text = random.choice(_SCHEDULES)
    if random.random() < 0.3:
        places = random.sample(_addresses(), 4)
        events = [f"{random.choice(EVENTS)}@{entry().symbolize(at)}" for at in places]
        text = f"user:{random.choice(EVENTS)}," + ",".join(events)
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        at = random.randrange(len(text) + 1)
        end = at + random.choice((0, 0, 1, 3)) if random.random() < 0.7 else len(text)
        piece = random.choice((*_PIECES, text[at:end], chr(random.randrange(0x250))))
        text = text[:at] + piece + text[end:]
    return text.encode("utf-8", "surrogatepass")


def _run_schedule(data: bytes) -> object:
    target = entry()
    schedule = parse(data.decode("utf-8", "surrogateescape"), target)
    # what was read is written so that it is read again
    if all(i.rip is None or target.symbolize(i.rip)[:2] != "0x" for i in schedule.injections):
        again = parse(schedule.text(target), target)
        if again != schedule:
            raise AssertionError(f"{schedule} was read back as {again}")
    return schedule


READERS: Final[dict[str, Reader]] = {
    "elf": Reader(_elf, read_elf, ImageError, 200),
    "bzimage": Reader(_bzimage, extract_vmlinux, ImageError, 322),
    "kallsyms": Reader(_kallsyms, _run_kallsyms, ImageError, 60),
    "btf": Reader(_btf, _run_btf, ImageError, 20),
    "alternatives": Reader(_carved, _run_alternatives, ImageError, 10),
    "describe": Reader(_carved, _run_describe, ImageError, 2),
    "target": Reader(_carved, _run_target, ImageError, 1),
    "dwarf": Reader(_dwarf, _run_dwarf, None, 5),
    "cache": Reader(_cache, _run_cache, None, 30),
    "schedule": Reader(_schedule, _run_schedule, ScheduleError, 350),
}
"""Name -> reader; DWARF and the cache answer damage with nothing at all, so they raise nothing."""


def case(reader: str, number: int) -> bytes:
    """The bytes of case ``number``."""
    return READERS[reader].make(Random(f"{reader}:{number}"))  # noqa: S311 - to be repeated


def attempt(reader: Reader, data: bytes) -> bool:
    """Whether ``data`` was read, not refused. Raises what it should not raise."""
    errors: Sequence[type[Exception]] = (reader.error,) if reader.error else ()
    try:
        return reader.run(data) is not None
    except tuple(errors):
        return False
