# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory: pages seen through two page-table roots, and named regions.

With page-table isolation a CPU has a kernel and a user root (SDM vol. 3, 4.5;
Linux arch/x86/mm/pti.c); which one is in force is a bit of CR3.  All code of
this model runs in ring 0, so what matters of a page is: mapped in which root,
writable, executable, and whether it is user memory (refused under SMAP).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

PAGE: Final = 4096
WORD: Final = 8


class PageFlag(IntFlag):
    """What the page tables, and the search, say of a page."""

    KERNEL_ROOT = 1
    USER_ROOT = 2
    USER_PAGE = 4
    WRITABLE = 8
    EXECUTABLE = 16
    CONSTANT = 32
    """Its contents are the same in every context (TSS, per-CPU constants)."""
    SCRATCH = 64
    """The entry may write here before it has committed."""


class RegionKind(IntEnum):
    """What a range of memory is used for."""

    OTHER = 0
    IST_STACK = 1
    MAIN_STACK = 2
    TASK_STACK = 3
    ENTRY_STACK = 4
    IRQ_STACK = 5


@dataclass(frozen=True, slots=True)
class Page:
    """One 4 KiB page: address ``base``, initial ``data`` (4096 bytes)."""

    base: int
    data: bytes
    flags: PageFlag


@dataclass(frozen=True, slots=True)
class Region:
    """The stack (or other range) ``name``, [``bottom``, ``top``)."""

    name: str
    bottom: int
    top: int
    kind: RegionKind

    def holds(self, address: int) -> bool:
        """Whether ``address`` lies in the region."""
        return self.bottom <= address < self.top


class Refused(Exception):  # noqa: N818 - an event of the model
    """An access that hardware would refuse, or that the specification forbids."""

    def __init__(self, reason: str, address: int) -> None:
        super().__init__(f"{reason} at {address:#x}")
        self.reason = reason
        self.address = address


def canonical(address: int) -> bool:
    """Whether bits 63..47 of ``address`` are equal (SDM vol. 1, 3.3.7.1)."""
    return address >> 47 in (0, (1 << 17) - 1)


_USER_ROOT: Final = int(PageFlag.USER_ROOT)
_KERNEL_ROOT: Final = int(PageFlag.KERNEL_ROOT)
_USER_PAGE: Final = int(PageFlag.USER_PAGE)
_WRITABLE: Final = int(PageFlag.WRITABLE)
_EXECUTABLE: Final = int(PageFlag.EXECUTABLE)


class Memory:
    """Pages by number; every access is checked against the root in force."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._flags: dict[int, PageFlag] = {}
        self._bits: dict[int, int] = {}  # the same as plain numbers, which is what costs no time
        self._data: dict[int, bytearray] = {}
        for page in pages:
            number = page.base // PAGE
            self._flags[number] = page.flags
            self._bits[number] = int(page.flags)
            self._data[number] = bytearray(page.data)

    def check(self, address: int, *, write: bool, user_root: bool) -> None:
        """Raise `Refused` unless ring 0 may touch the byte at ``address``."""
        if not canonical(address):
            raise Refused("non-canonical", address)
        bits = self._bits.get(address // PAGE)
        if bits is None:
            raise Refused("unmapped", address)
        if not bits & (_USER_ROOT if user_root else _KERNEL_ROOT):
            raise Refused("not-in-user-tables", address)
        if bits & _USER_PAGE:
            raise Refused("user-memory", address)
        if write and not bits & _WRITABLE:
            raise Refused("read-only", address)

    def flags(self, address: int) -> PageFlag | None:
        """The flags of the page at ``address``; None if there is none."""
        return self._flags.get(address // PAGE)

    def present(self, address: int, *, user_root: bool) -> bool:
        """Whether the root in force maps the page at ``address``."""
        return bool(self._bits.get(address // PAGE, 0) & (_USER_ROOT if user_root else _KERNEL_ROOT))

    def fetchable(self, address: int, *, user_root: bool) -> bool:
        """Whether ring 0 can fetch an instruction at ``address``."""
        wanted = _EXECUTABLE | (_USER_ROOT if user_root else _KERNEL_ROOT)
        return self._bits.get(address // PAGE, 0) & (wanted | _USER_PAGE) == wanted

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes, unchecked. KeyError if unmapped."""
        number, at = divmod(address, PAGE)
        if at + size <= PAGE:
            return bytes(self._data[number][at : at + size])
        first = PAGE - at
        return bytes(self._data[number][at:]) + self.read(address + first, size - first)

    def write(self, address: int, data: bytes) -> None:
        """Write ``data``, unchecked. KeyError if unmapped."""
        number, at = divmod(address, PAGE)
        first = min(len(data), PAGE - at)
        self._data[number][at : at + first] = data[:first]
        if first < len(data):
            self.write(address + first, data[first:])

    def peek(self, address: int, size: int) -> int:
        """Little-endian value of ``size`` bytes, unchecked. KeyError if unmapped."""
        return int.from_bytes(self.read(address, size), "little")

    def poke(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes, unchecked. KeyError if unmapped."""
        self.write(address, value.to_bytes(size, "little"))

    def word(self, address: int) -> int | None:
        """The aligned 8-byte word at ``address``; None if there is none."""
        if address % WORD:
            return None
        number, at = divmod(address, PAGE)
        page = self._data.get(number)
        return None if page is None else int.from_bytes(page[at : at + WORD], "little")
