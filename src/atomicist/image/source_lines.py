# SPDX-License-Identifier: GPL-2.0-only
"""Finds the source line of an instruction in an image's DWARF, as far as it has any.

Only a convenience of reports: where there is no answer, or the file is damaged, the
answer is empty.  Nothing is read before the first question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from elftools.elf.elffile import ELFFile

MAX_UNITS: Final = 64
"""Compilation units that are searched without an index; a kernel has thousands, and one."""

MAX_FILE: Final = 512 << 20


class SourceLines:
    """Callable: the file:line of the instruction at an address, or an empty string."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._dwarf: Any = None
        self._opened = False
        self._units: dict[int, list[tuple[int, int, str]]] = {}
        self._known: dict[int, str] = {}

    def __call__(self, address: int) -> str:
        """The file:line of the instruction at ``address``."""
        if address not in self._known:
            try:
                self._known[address] = self._find(address)
            except Exception:  # noqa: BLE001
                # pyelftools reports damage by whatever its parser stumbled over; see image.elf.
                self._known[address] = ""
        return self._known[address]

    def _find(self, address: int) -> str:
        if not self._opened:
            self._opened = True
            self._open()
        if self._dwarf is None:
            return ""
        for offset in self._candidates(address):
            if offset not in self._units:
                self._units[offset] = self._read(offset)
            found = next((text for low, high, text in self._units[offset] if low <= address < high), "")
            if found:
                return found
        return ""

    def _open(self) -> None:
        if self._path is None or self._path.stat().st_size > MAX_FILE:
            return
        with self._path.open("rb") as file:
            elf = ELFFile(file)
            # Sections are read into memory here, so the file need not stay open.
            self._dwarf = elf.get_dwarf_info() if elf.has_dwarf_info() else None
        self._aranges = self._dwarf.get_aranges() if self._dwarf is not None else None

    def _candidates(self, address: int) -> list[int]:
        offset = self._aranges.cu_offset_at_addr(address) if self._aranges is not None else None
        if offset is not None:
            return [offset]
        units = []
        for unit in self._dwarf.iter_CUs():
            units.append(unit.cu_offset)
            if len(units) > MAX_UNITS:
                return []
        return units

    def _read(self, offset: int) -> list[tuple[int, int, str]]:
        """The line table of the unit at ``offset``: [low, high) and file:line."""
        program = self._dwarf.line_program_for_CU(self._dwarf.get_CU_at(offset))
        rows: list[tuple[int, int, str]] = []
        if program is None:
            return rows
        before = None
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            if before is not None and state.address > before.address:
                rows.append((before.address, state.address, f"{_file(program, before.file)}:{before.line}"))
            before = None if state.end_sequence else state
        return rows


def _file(program: Any, number: int) -> str:
    """The file's name with its directory (DWARF 4, 6.2.4: counted from 1; DWARF 5: from 0)."""
    header = program.header
    first = 0 if header["version"] >= 5 else 1
    entry = header["file_entry"][number - first]
    name = entry.name.decode("utf-8", "replace")
    directory = entry.dir_index - first
    if directory < 0 or name.startswith("/"):
        return str(name)
    return f"{header['include_directory'][directory].decode('utf-8', 'replace')}/{name}"
