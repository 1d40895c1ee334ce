# SPDX-License-Identifier: GPL-2.0-only
"""Compares what two builds of a kernel made, object by object: what gets into memory, and relocations.

Line numbers in code (``__LINE__`` of BUG and WARN) count as code, so the builds to compare have
``CONFIG_DEBUG_BUGVERBOSE=n``: a hook moves the lines behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

_ALLOC: Final = 0x2
_WHOLE: Final = ("vmlinux.o", ".vmlinux.export.o", ".tmp_vmlinux")
"""Made of all the others, at the end of the build."""


def digest(path: Path) -> str:
    """A hash of everything in an object file that gets into memory, and of its relocations."""
    key = hashlib.sha256()
    with path.open("rb") as file:
        elf = ELFFile(file)
        loaded = {i for i, section in enumerate(elf.iter_sections()) if section.header["sh_flags"] & _ALLOC}
        symbols = elf.get_section_by_name(".symtab")
        for i, section in enumerate(elf.iter_sections()):
            header = section.header
            if i in loaded:
                key.update(f"{section.name} {header['sh_type']} {header['sh_flags']:#x} ".encode())
                key.update(f"{header['sh_size']} {header['sh_addralign']}\n".encode())
                key.update(section.data() if header["sh_type"] != "SHT_NOBITS" else b"")
            elif isinstance(section, RelocationSection) and header["sh_info"] in loaded:
                assert isinstance(symbols, SymbolTableSection)  # noqa: S101 - what has relocations has symbols
                for entry in section.iter_relocations():
                    symbol = symbols.get_symbol(entry["r_info_sym"])
                    fields = [entry["r_offset"], entry["r_info_type"], entry.entry.get("r_addend", 0)]
                    where = symbol.name or elf.get_section(symbol["st_shndx"]).name
                    key.update(f"{section.name} {fields} {where}\n".encode())
    return key.hexdigest()


def objects(tree: Path) -> Iterator[str]:
    """The names of a build's objects that go into the kernel."""
    for path in sorted(tree.rglob("*.o")):
        name = str(path.relative_to(tree))
        if not name.startswith(("scripts/", "tools/")) and not path.name.startswith(_WHOLE):
            yield name


def different(one: Path, other: Path) -> tuple[str, ...]:
    """Objects that only one of the two has, or that differ."""
    names = [set(objects(tree)) for tree in (one, other)]
    found = [f"{name}: only in one" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        try:
            same = digest(one / name) == digest(other / name)
        except ELFError:
            same = (one / name).read_bytes() == (other / name).read_bytes()
        if not same:
            found.append(f"{name}: differs")
    return tuple(found)
