# SPDX-License-Identifier: GPL-2.0-only
"""The shape of what `linux.describe` answers: entries, memory and first contents, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from atomicist.image.alternatives import PatchedText
from atomicist.image.errors import ImageError
from atomicist.image.reach import Reach


@dataclass(frozen=True, slots=True)
class Vector:
    """An exception: `ist` is 1 to 7 as in the IDT; handlers get pt_regs in RDI, an error code in RSI.

    `kernel_handler` is called for an event in kernel mode, `user_handler` for one in user mode.
    """

    name: str
    number: int
    ist: int
    entry: int
    symbol: str
    stack: str
    error_code: bool
    kernel_handler: int
    user_handler: int


@dataclass(frozen=True, slots=True)
class Stack:
    """[bottom, top), and the guard page below it (0: none); a second map of the memory at `backing`."""

    name: str
    bottom: int
    top: int
    guard: int
    backing: int


@dataclass(frozen=True, slots=True)
class Region:
    """`size` bytes at `va`, being the memory at `backing` (the same address unless it is a second map).

    First contents: of "image", "text" and "entry text" `LinuxLayout.text`, of the per-CPU area what the image
    has from address 0 on; the rest is one of these.
    `user`: also in the page tables that user mode runs on under PTI.
    """

    name: str
    va: int
    size: int
    backing: int
    write: bool
    execute: bool
    user: bool


@dataclass(frozen=True, slots=True)
class Word:
    """`size` bytes of memory that boot sets to `value`; everything else is as in the image."""

    va: int
    size: int
    value: int
    why: str


@dataclass(frozen=True, slots=True)
class Handler:
    """A C function that entry code calls and that a model replaces."""

    symbol: str
    address: int


@dataclass(frozen=True, slots=True)
class LinuxLayout:
    """A kernel under features, for CPU 0 in the idle task: nothing else needs to be known to run its entries.

    `regions` may overlap (a page of the per-CPU area has its own flags); the later one wins.  `msrs` are
    those of kernel mode, number -> value.  `percpu_from` says how paranoid_entry finds the per-CPU base:
    "lsl", "rdpid" or "gsbase sign".  `notes` are choices made where the kernel has a range, and limits.
    """

    text: PatchedText
    features: frozenset[str]
    build_id: str
    vectors: tuple[Vector, ...]
    syscall_entry: int
    stacks: tuple[Stack, ...]
    entry_stack: Stack
    thread_stack: Stack
    idt: int
    gdt: int
    tss: int
    percpu_base: int
    percpu_size: int
    percpu_from: str
    user_text: tuple[int, int]
    regions: tuple[Region, ...]
    words: tuple[Word, ...]
    msrs: dict[int, int]
    handlers: tuple[Handler, ...]
    helpers: tuple[str, ...]
    reach: Reach
    notes: tuple[str, ...]

    def percpu(self, name: str) -> int:
        """The address of CPU 0's copy of per-CPU variable `name`."""
        return self.percpu_base + self.text.kernel.symbol(name)

    def vector(self, name: str) -> Vector:
        """The vector called `name`: "db", "nmi", "df", "mc" or "vc"."""
        found = next((vector for vector in self.vectors if vector.name == name), None)
        if found is None:
            have = ", ".join(vector.name for vector in self.vectors)
            raise ImageError(f"kernel has no exception {name!r}: it has {have}")
        return found
