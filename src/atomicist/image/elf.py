# SPDX-License-Identifier: GPL-2.0-only
"""An x86-64 ELF executable as memory: segments, sections, symbols, build id, and bytes at an address.

Headers are read with pyelftools; what they promise is checked against the file before anything is sliced.
The symbol table is walked with `struct`, because a kernel has 200,000 symbols.  All bytes are views of the
one file: nothing is copied, and a .bss is a number.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from atomicist.image.errors import ImageError

MAX_HEADERS = 4096
"""Program or section headers; Debian's vmlinux has 5 and 39."""
MAX_SYMBOLS = 1 << 20
MAX_NAME = 4096
MAX_TEXT = 64 << 20
"""Characters in one name, and in all symbols' names together."""
MAX_READ = 64 << 20
"""Bytes in one `read`."""

PF_X, PF_W, PF_R = 1, 2, 4
_EMPTY = ("SHT_NOBITS", "SHT_NULL")
_SHN_UNDEF, _SHN_ABS = 0, 0xFFF1
_STT_NAMED = (0, 1, 2)  # NOTYPE, OBJECT, FUNC; not SECTION, FILE
_TOP = 1 << 64


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD: `data` at `va`, then zeros up to `size` bytes; `flags` are PF_X | PF_W | PF_R."""

    va: int
    data: memoryview
    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class Section:
    """A named section at `va` (0 when it is not loaded); `data` is empty for NOBITS."""

    name: str
    va: int
    size: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name for an address; `type` is nm's letter (upper case: global), "?" where the table has none."""

    name: str
    address: int
    type: str


@dataclass(frozen=True, slots=True)
class ElfImage:
    """An executable as loaded.  `symbols` is empty for a stripped file; `build_id` is hex, "" if none.

    `segments` are sorted by address and do not overlap.
    """

    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    build_id: str

    def segment(self, va: int) -> Segment:
        """The segment that holds address `va`; ImageError if none does."""
        index = bisect_right(self.segments, va, key=lambda s: s.va) - 1
        if index < 0 or va >= self.segments[index].va + self.segments[index].size:
            raise ImageError(f"address {va:#x} is in no segment of the image: the image is damaged")
        return self.segments[index]

    def read(self, va: int, size: int) -> bytes:
        """`size` bytes at `va`, all within one segment; zeros where the file ends before the segment."""
        segment = self.segment(va)
        offset = va - segment.va
        if not 0 <= size <= min(MAX_READ, segment.size - offset):
            raise ImageError(f"{size} bytes at {va:#x} leave their segment: the image is damaged")
        return bytes(segment.data[offset : offset + size]).ljust(size, b"\0")

    def section(self, name: str) -> Section | None:
        """The first section called `name`, or None."""
        return next((section for section in self.sections if section.name == name), None)


def read_elf(data: bytes) -> ElfImage:
    """Read the ELF file `data`; ImageError when it is not a whole x86-64 executable."""
    if data[:4] != b"\x7fELF":
        raise ImageError("not an ELF file: give a vmlinux, or a vmlinuz that holds one")
    try:
        elf = ELFFile(io.BytesIO(data))
        if elf.elfclass != 64 or not elf.little_endian or elf["e_machine"] != "EM_X86_64":
            raise ImageError(
                f"ELF file is for {elf['e_machine']}, {elf.elfclass} bits: give an x86-64 kernel"
            )
        if max(elf.num_segments(), elf.num_sections()) > MAX_HEADERS:
            raise ImageError(f"ELF file has more than {MAX_HEADERS} headers: not a kernel")
        return _convert(elf, memoryview(data))
    except ImageError:
        raise
    except (MemoryError, RecursionError):
        raise ImageError("ELF file asks for too much memory: damaged, fetch it again") from None
    except Exception as error:  # noqa: BLE001
        # pyelftools reports damage by whatever its parser stumbled over: ELFError, StreamError, KeyError,
        # AttributeError on a None.  All of them mean the same to us.
        raise ImageError(f"ELF file is damaged ({type(error).__name__}: {error}): fetch it again") from None


def _slice(file: memoryview, offset: int, size: int, what: str) -> memoryview:
    if offset + size > len(file):
        raise ImageError(
            f"ELF file is cut: {what} ends at {offset + size:#x} of {len(file):#x}: fetch it again"
        )
    return file[offset : offset + size]


def _convert(elf: ELFFile, file: memoryview) -> ElfImage:
    segments, notes = _segments(elf, file)
    # pyelftools' section objects read what is in a section when they are made; headers alone cost nothing.
    headers = [
        struct_parse(elf.structs.Elf_Shdr, elf.stream, elf["e_shoff"] + index * elf["e_shentsize"])
        for index in range(elf.num_sections())
    ]
    bodies = [
        _slice(file, header.sh_offset, 0 if header.sh_type in _EMPTY else header.sh_size, f"section {index}")
        for index, header in enumerate(headers)
    ]
    sections = []
    symbols: tuple[Symbol, ...] = ()
    names = bytes(bodies[elf["e_shstrndx"]]) if headers else b""
    for header, body in zip(headers, bodies, strict=True):
        name = _text(names, header.sh_name)
        sections.append(Section(name, header.sh_addr, header.sh_size, body))
        if header.sh_type == "SHT_NOTE":
            notes.append(body)
        elif header.sh_type == "SHT_SYMTAB":
            symbols = _symbols(body, bytes(bodies[header.sh_link]))
    build_id = next(filter(None, map(_build_id, notes)), "")
    return ElfImage(segments, tuple(sections), symbols, build_id)


def _segments(elf: ELFFile, file: memoryview) -> tuple[tuple[Segment, ...], list[memoryview]]:
    segments, notes = [], []
    for index in range(elf.num_segments()):
        header = struct_parse(elf.structs.Elf_Phdr, elf.stream, elf["e_phoff"] + index * elf["e_phentsize"])
        part = _slice(file, header.p_offset, header.p_filesz, f"segment {index}")
        if header.p_type == "PT_NOTE":
            notes.append(part)
        elif header.p_type == "PT_LOAD" and header.p_memsz:
            if header.p_filesz > header.p_memsz or header.p_vaddr + header.p_memsz > _TOP:
                raise ImageError(f"ELF segment {index} is larger than its memory: damaged, fetch it again")
            segments.append(Segment(header.p_vaddr, part, header.p_memsz, header.p_flags))
    if not segments:
        raise ImageError("ELF file has nothing to load: give an executable, not an object file")
    segments.sort(key=lambda s: s.va)
    for low, high in pairwise(segments):
        if low.va + low.size > high.va:
            raise ImageError(f"ELF segments overlap at {high.va:#x}: damaged, fetch it again")
    return tuple(segments), notes


def _text(names: bytes, offset: int) -> str:
    end = names.find(b"\0", offset, offset + MAX_NAME)
    if end < 0:
        raise ImageError(f"ELF name at {offset:#x} has no end: damaged, fetch it again")
    return names[offset:end].decode("utf-8", "replace")


def _symbols(table: memoryview, names: bytes) -> tuple[Symbol, ...]:
    """The named, defined symbols of a .symtab (ELF-64 object file format, "Symbol table")."""
    entry = struct.Struct("<IBBHQQ")
    count = len(table) // entry.size
    if count > MAX_SYMBOLS:
        raise ImageError(f"ELF file has {count} symbols, more than {MAX_SYMBOLS}: not a kernel")
    symbols = []
    room = MAX_TEXT
    for name, info, _other, section, value, _size in entry.iter_unpack(table[: count * entry.size]):
        if section == _SHN_UNDEF or info & 15 not in _STT_NAMED or not name:
            continue
        text = _text(names, name)
        # Names may overlap, so a small file can have large ones.
        room -= len(text)
        if room < 0:
            raise ImageError(f"ELF symbols have more than {MAX_TEXT >> 20} MB of names: not a kernel")
        letter = "a" if section == _SHN_ABS else "t" if info & 15 == 2 else "d"
        symbols.append(Symbol(text, value, letter.upper() if info >> 4 else letter))
    return tuple(symbols)


def _build_id(notes: memoryview) -> str:
    """The NT_GNU_BUILD_ID among `notes` in hex, or "" (ELF "Note section": name, description padded to 4)."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = at + 12
        body = name + (name_size + 3 & ~3)
        if kind == 3 and bytes(notes[name : name + min(name_size, 4)]) == b"GNU\0" and size <= 64:
            return notes[body : body + size].hex()
        at = body + (size + 3 & ~3)
    return ""
