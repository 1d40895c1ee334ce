# SPDX-License-Identifier: GPL-2.0-only
"""What is executed: code, gates, memory and the marks on it, for any engine.

A `Target` is made by the `image` room and read by the reference interpreter
and the native model alike; neither knows where it came from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from atomicist.isa.delivery import Gate
from atomicist.isa.ir import Insn
from atomicist.machine.memory import Page, Region, RegionKind


class Place(IntFlag):
    """What an instruction's address means to the observer."""

    ENTRY = 1
    """Entry text: may be interrupted, and resumed elsewhere in entry text."""
    COMMITTED = 2
    """Label that claims: from here every IST stack is free."""
    DELIBERATE = 4
    """Part of a deliberate double fault."""
    NO_ROOM = 8
    """... raised because the main stack has no room."""
    RET_LEFT = 16
    """Within a sequence that must not be resumed: of it a RET is left."""
    LEA_LEFT = 32
    """... and before the RET a LEA 8(%rsp), %rsp."""


@dataclass(frozen=True, slots=True)
class Target:
    """One image in one configuration.

    ``gates`` maps a vector name to its IDT gate, ``handlers`` an address to the
    vector name whose C handler starts there, ``places`` an address to its
    marks.  ``user_root_bit`` is the CR3 bit that selects the user page tables
    (0: no isolation).  ``reserve`` is the stack, in bytes, that a handler on
    the main stack may count on; ``slot_bytes`` the main-stack use of a level; ``exit_bytes``
    what a return takes of the entry stack, below a kernel-mode context that is on it.
    ``mitigation`` is what makes return predictions safe on the processor: "none" (needed),
    "ibrs", "unret" or "ibpb"; ``kernel_spec_ctrl`` is the kernel's SPEC_CTRL with "ibrs",
    and the user's is the same without bit 0.  ``call_alignment`` is what RSP + 8 is a multiple of
    where a handler starts; ``cpunode`` the limit of Linux's segment 0x7b: CPU number in bits
    11:0, NUMA node above.
    """

    name: str
    build_id: str
    config: tuple[str, ...]
    insns: Mapping[int, Insn]
    gates: Mapping[str, Gate]
    handlers: Mapping[int, str]
    places: Mapping[int, Place]
    pages: tuple[Page, ...]
    regions: tuple[Region, ...]
    symbols: Mapping[str, int]
    user_root_bit: int
    kernel_cr3: int
    kernel_gsbase: int
    tr_base: int
    fsgsbase: bool
    reserve: int
    slot_bytes: int
    mitigation: str = "none"
    kernel_spec_ctrl: int = 0
    call_alignment: int = 8
    cpunode: int = 0
    exit_bytes: int = 0

    @property
    def claims(self) -> bool:
        """Whether the image says by labels where its IST stacks become free."""
        committed = int(Place.COMMITTED)
        return any(int(p) & committed for p in self.places.values())

    def region(self, address: int) -> Region | None:
        """The region that holds ``address``."""
        return next((r for r in self.regions if r.holds(address)), None)

    def named_region(self, name: str) -> Region:
        """The region called ``name``. KeyError if there is none."""
        found = next((r for r in self.regions if r.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def main_stack(self) -> Region | None:
        """The main stack, where the image has one."""
        return next((r for r in self.regions if r.kind is RegionKind.MAIN_STACK), None)

    def symbolize(self, address: int) -> str:
        """``address`` as symbol+offset, or in hexadecimal if none is near."""
        starts, names = _by_address(self.symbols)
        index = bisect_right(starts, address) - 1
        if index < 0 or address - starts[index] >= NEAR:
            return f"{address:#x}"
        name, offset = names[index], address - starts[index]
        return f"{name}+{offset:#x}" if offset else name


NEAR: Final = 0x10000
"""Bytes behind a symbol that are still called by its name."""

_sorted: dict[int, tuple[Mapping[str, int], list[int], list[str]]] = {}


def _by_address(symbols: Mapping[str, int]) -> tuple[list[int], list[str]]:
    """Addresses in order and the name for each: of several the shorter, then the first.

    Made once for each table of symbols, which is kept so that its identity is its own."""
    known = _sorted.get(id(symbols))
    if known is None:
        best: dict[int, str] = {}
        for name in sorted(symbols, key=lambda n: (n.startswith("__"), len(n), n)):
            best.setdefault(symbols[name], name)
        starts = sorted(best)
        known = _sorted[id(symbols)] = symbols, starts, [best[a] for a in starts]
    return known[1], known[2]
