# SPDX-License-Identifier: GPL-2.0-only
"""Memory of the walker, and what the processor refuses, from the manuals."""

from __future__ import annotations

import ctypes as c
import struct
from typing import Any, Final

from atomicist.machine.memory import PageFlag, Region
from atomicist.machine.target import Target
from atomicist.spec.instance import poison

PAGE: Final = 4096
ALL: Final = (1 << 64) - 1
_USER_ROOT: Final = int(PageFlag.USER_ROOT)
_KERNEL_ROOT: Final = int(PageFlag.KERNEL_ROOT)
_USER_PAGE: Final = int(PageFlag.USER_PAGE)
_WRITABLE: Final = int(PageFlag.WRITABLE)
_EXECUTABLE: Final = int(PageFlag.EXECUTABLE)


class Refused(Exception):  # noqa: N818 - an event of the machine
    """An exception of the processor: ``vector``, ``error`` code, ``why``."""

    def __init__(self, vector: str, error: int, why: str, address: int) -> None:
        super().__init__(why)
        self.vector, self.error, self.why, self.address = vector, error, why, address


def is_canonical(address: int) -> bool:
    """SDM vol. 1, 3.3.7.1."""
    return address < 1 << 47 or address >= ALL + 1 - (1 << 47)


class Memory:
    """The pages in one buffer, which Unicorn works on too."""

    def __init__(self, target: Target, uc: Any, machine: Any) -> None:
        pages = sorted(target.pages, key=lambda p: p.base)
        self._at = {page.base: n * PAGE for n, page in enumerate(pages)}
        self._flags = {page.base: page.flags for page in pages}
        self._bits = {page.base: int(page.flags) for page in pages}
        self._raw = (c.c_char * (PAGE * len(pages) + PAGE))()
        start = -c.addressof(self._raw) % PAGE
        self._base = c.addressof(self._raw) + start
        self._view = memoryview(self._raw).cast("B")[start : start + PAGE * len(pages)]
        for page in pages:
            at = self._at[page.base]
            self._view[at : at + PAGE] = page.data
            machine.mem_map_ptr(page.base, PAGE, uc.UC_PROT_ALL, self._base + at)
        # what can change: a snapshot is of these
        writable = [self._at[p.base] for p in pages if p.flags & PageFlag.WRITABLE]
        self._low, self._high = min(writable), max(writable) + PAGE

    def save(self) -> bytes:
        return bytes(self._view[self._low : self._high])

    def restore(self, saved: bytes) -> None:
        self._view[self._low : self._high] = saved

    def flags(self, address: int) -> PageFlag | None:
        return self._flags.get(address & -PAGE)

    def _place(self, address: int, size: int) -> int | None:
        """Where in the buffer it is, if that is in one page. KeyError if it is nowhere."""
        at = self._at[address & -PAGE] + address % PAGE
        return at if address % PAGE + size <= PAGE else None

    def peek(self, address: int, size: int) -> int:
        at = self._place(address, size)
        if at is not None:
            return int.from_bytes(self._view[at : at + size], "little")
        data = bytes(self._view[self._at[(address + i) & -PAGE] + (address + i) % PAGE] for i in range(size))
        return int.from_bytes(data, "little")

    def poke(self, address: int, value: int) -> None:
        at = self._place(address, 8)
        if at is not None:
            self._view[at : at + 8] = value.to_bytes(8, "little")
            return
        for i, byte in enumerate(value.to_bytes(8, "little")):
            self._view[self._at[(address + i) & -PAGE] + (address + i) % PAGE] = byte

    def word(self, address: int) -> int | None:
        at = self._at.get(address & -PAGE)
        if at is None or address % 8:
            return None
        return int(struct.unpack_from("<Q", self._view, at + address % PAGE)[0])

    def poison(self, region: Region) -> None:
        bottom = (region.bottom + 7) & ~7
        for page in range(bottom & -PAGE, region.top, PAGE):
            at = self._at.get(page)
            low, high = max(bottom, page), min((region.top + 7) & ~7, page + PAGE)
            if at is not None and low < high:
                self._view[at + low % PAGE : at + low % PAGE + high - low] = poison(low, high)

    def refusal(self, address: int, *, write: bool, user_root: bool) -> tuple[str, int] | None:
        """Why ring 0 may not touch the byte, and the error code of #PF (SDM vol. 3, 4.6, 4.7)."""
        flags = self._bits.get(address & -PAGE)
        code = 2 if write else 0
        if flags is None:
            return "unmapped", code
        if not flags & (_USER_ROOT if user_root else _KERNEL_ROOT):
            return "not-in-user-tables", code
        if flags & _USER_PAGE:
            return "user-memory", code | 1
        if write and not flags & _WRITABLE:
            return "read-only", code | 1
        return None

    def may_fetch(self, address: int, *, user_root: bool) -> bool:
        """Whether ring 0 may fetch an instruction there (SDM vol. 3, 4.6)."""
        wanted = _EXECUTABLE | (_USER_ROOT if user_root else _KERNEL_ROOT)
        return self._bits.get(address & -PAGE, 0) & (wanted | _USER_PAGE) == wanted
