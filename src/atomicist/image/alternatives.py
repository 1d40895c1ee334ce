# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's text as it is after boot on a CPU with chosen features.

What is executed is not what is in the file.  arch/x86/kernel/alternative.c, alternative_instructions, goes
over four lists, in this order because a later one may overwrite an earlier one's work:

    .parainstructions   pv_ops calls   -> a direct call of what pv_ops holds (here: the file's, bare metal)
    .retpoline_sites    thunk calls    -> left, or the indirect branch itself
    .return_sites       return jumps   -> `ret; int3...`, or a jump to the return thunk in force
    .altinstructions    anything       -> its replacement, when the CPU has (or lacks) a feature

Formats (all little-endian, addresses relative to the field itself unless said otherwise):
`struct alt_instr`, 12 bytes: s32 site, s32 replacement, u16 feature (bit 15: patch when it is absent),
u8 site length, u8 replacement length.  `struct paravirt_patch_site`, 16 bytes: u64 absolute address, u8
index into pv_ops, u8 length.  The two site lists are s32 each.

Not patched here, because none of it lies on the exception-entry paths (`linux.describe` checks that):
jump labels and static calls (left as linked: keys in their default state, calls through their trampolines),
ftrace's NOPs, lock prefixes (left as SMP).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from atomicist.image.errors import ImageError
from atomicist.image.features import NUMBERS, RETURN_THUNKS, WORDS, feature_name, feature_set
from atomicist.image.kernel import Kernel
from atomicist.image.nops import nops, optimise_nops

PAGE = 4096
_FLAG_NOT = 1 << 15
_MAX_SITE = 254
"""Bytes (alternative.c, MAX_PATCH_LEN)."""
_MAX_SITES = 1 << 18
"""In one list; Debian's 6.1 has 50,858 returns."""

PARAVIRT, RETPOLINE, RETURN, ALTERNATIVE, NOP = "paravirt", "retpoline", "return", "alternative", "nop"


@dataclass(frozen=True, slots=True)
class Patch:
    """One site: `before` at `va` became `after`, by list `kind`, for `feature` ("!X": for want of X)."""

    va: int
    before: bytes
    after: bytes
    kind: str
    feature: str


@dataclass(frozen=True, slots=True)
class PatchedText:
    """The patched image: `pages` (address -> 4096 bytes) wherever a byte differs, the rest is the kernel's.

    `patches` are in the order applied.
    """

    kernel: Kernel
    features: frozenset[str]
    pages: Mapping[int, bytes]
    patches: tuple[Patch, ...]

    def read(self, va: int, size: int) -> bytes:
        """`size` bytes at `va` as the CPU would fetch them."""
        return _overlaid(self.kernel, self.pages, va, size)

    def patches_in(self, start: int, end: int) -> tuple[Patch, ...]:
        """The patches of sites in [start, end), in address order."""
        return tuple(sorted((p for p in self.patches if start <= p.va < end), key=lambda p: p.va))


def patch(kernel: Kernel, features: frozenset[str]) -> PatchedText:
    """Apply all four lists for a CPU with exactly `features` (names: `features.NUMBERS`).

    Raises ImageError for an unknown feature or a list that does not fit the image.
    """
    work = _Work(kernel, feature_set(features))
    work.paravirt()
    work.retpolines()
    work.returns()
    work.alternatives()
    pages = {va: bytes(page) for va, page in work.pages.items()}
    return PatchedText(kernel, work.features, pages, tuple(work.patches))


def _overlaid(kernel: Kernel, pages: Mapping[int, bytes | bytearray], va: int, size: int) -> bytes:
    out = bytearray(kernel.read(va, size))
    for page in range(va & -PAGE, va + size, PAGE):
        if page in pages:
            low, high = max(va, page), min(va + size, page + PAGE)
            out[low - va : high - va] = pages[page][low - page : high - page]
    return bytes(out)


def _rel32(opcode: int, at: int, target: int) -> bytes:
    distance = target - at - 5
    if not -(1 << 31) <= distance < 1 << 31:
        raise ImageError(f"branch at {at:#x} cannot reach {target:#x}: the image is damaged")
    return struct.pack("<Bi", opcode, distance)


class _Work:
    """The text while it is being patched."""

    def __init__(self, kernel: Kernel, features: frozenset[str]) -> None:
        self.kernel = kernel
        self.features = features
        self.numbers = frozenset(NUMBERS[name] for name in features)
        self.pages: dict[int, bytearray] = {}
        self.patches: list[Patch] = []

    def read(self, va: int, size: int) -> bytes:
        page = va & -PAGE
        if page not in self.pages and (va + size - 1) & -PAGE not in self.pages:
            return self.kernel.read(va, size)
        return _overlaid(self.kernel, self.pages, va, size)

    def write(self, va: int, after: bytes, kind: str, feature: str) -> None:
        before = self.read(va, len(after))
        if before == after:
            return
        self.patches.append(Patch(va, before, after, kind, feature))
        for page in range(va & -PAGE, va + len(after), PAGE):
            if page not in self.pages:
                segment = self.kernel.elf.segment(va)
                low, high = max(page, segment.va), min(page + PAGE, segment.va + segment.size)
                body = self.kernel.read(low, high - low)
                self.pages[page] = bytearray(body.rjust(high - page, b"\0").ljust(PAGE, b"\0"))
            low, high = max(va, page), min(va + len(after), page + PAGE)
            self.pages[page][low - page : high - page] = after[low - va : high - va]

    def records(self, start: str, end: str, size: int) -> Iterator[tuple[int, bytes]]:
        """(address, bytes) of each record of `size` bytes between two symbols."""
        low, high = self.kernel.range(start, end)
        if (high - low) % size or high - low > size * _MAX_SITES:
            raise ImageError(f"{start} is not a list of {size}-byte records: not a kernel of the 6.1 kind")
        data = self.kernel.read(low, high - low)
        for offset in range(0, len(data), size):
            yield low + offset, data[offset : offset + size]

    def sites(self, start: str, end: str) -> Iterator[int]:
        for at, record in self.records(start, end, 4):
            yield at + int.from_bytes(record, "little", signed=True)

    def paravirt(self) -> None:
        """alternative.c, apply_paravirt; paravirt.c, paravirt_patch."""
        if not self.kernel.has("__parainstructions"):
            return
        ops = self.kernel.symbol("pv_ops")
        nothing, bug = self.kernel.symbol("_paravirt_nop"), self.kernel.symbol("paravirt_BUG")
        for _at, record in self.records("__parainstructions", "__parainstructions_end", 16):
            site, index, length = struct.unpack_from("<QBB", record)
            target = self.kernel.word(ops + 8 * index)
            code = b"" if target == nothing else _rel32(0xE8, site, target or bug)
            if len(code) > length:
                raise ImageError(
                    f"paravirt site at {site:#x} has {length} bytes, needs 5: the image is damaged"
                )
            self.write(site, code + nops(length - len(code)), PARAVIRT, "")

    def retpolines(self) -> None:
        """alternative.c, apply_retpolines: thunk calls go, unless RETPOLINE without RETPOLINE_LFENCE."""
        if "RETPOLINE" in self.features and "RETPOLINE_LFENCE" not in self.features:
            return
        if not self.kernel.has("__retpoline_sites"):
            return
        array = self.kernel.symbol("__x86_indirect_thunk_array")
        for site in self.sites("__retpoline_sites", "__retpoline_sites_end"):
            code = self.read(site, 6)
            length = 5 if code[0] in (0xE8, 0xE9) else 6
            opcode = code[length - 5]
            jcc = code[0] == 0x0F and opcode & 0xF0 == 0x80
            if opcode not in (0xE8, 0xE9) and not jcc:
                raise ImageError(f"retpoline site at {site:#x} is no call or jump: the image is damaged")
            distance = int.from_bytes(code[length - 4 : length], "little", signed=True)
            register, rest = divmod(site + length + distance - array, 32)  # RETPOLINE_THUNK_SIZE
            if rest or not 0 <= register < 16 or register == 4:
                raise ImageError(f"retpoline site at {site:#x} calls no thunk: the image is damaged")
            self.write(site, self._branch(site, length, opcode, jcc, register), RETPOLINE, "!RETPOLINE")

    def _branch(self, site: int, length: int, opcode: int, jcc: bool, register: int) -> bytes:
        """The indirect branch through `register` itself (alternative.c, patch_retpoline)."""
        out = bytes([0x70 | (opcode & 15 ^ 1), length - 2]) if jcc else b""
        if "RETPOLINE_LFENCE" in self.features:
            out += b"\x0f\xae\xe8"
        indirect = bytes(
            [0x41] * (register >> 3) + [0xFF, (0xD0 if opcode == 0xE8 else 0xE0) + (register & 7)]
        )
        # Its second (third) byte in a cache line's lower half: indirect target selection.
        if "INDIRECT_THUNK_ITS" in self.features and not site + len(out) + len(indirect) - 1 & 0x20:
            # The kernel makes thunks on fresh pages and falls back to these, which do the same.
            thunk = self.kernel.symbol("__x86_indirect_its_thunk_array") + 64 * register
            if jcc:
                return bytes([0x0F, opcode]) + _rel32(0, site + 1, thunk)[1:]
            return b"\x2e" * (length - 5) + _rel32(opcode, site + length - 5, thunk)
        out += indirect
        if opcode != 0xE8 and len(out) < length:
            out += b"\xcc"
        if len(out) > length:
            raise ImageError(f"retpoline site at {site:#x} is too short for its branch: the image is damaged")
        return optimise_nops(out + b"\x90" * (length - len(out)))

    def returns(self) -> None:
        """alternative.c, apply_returns: `jmp __x86_return_thunk` -> what this CPU needs."""
        if not self.kernel.has("__return_sites"):
            return
        default = self.kernel.symbol("__x86_return_thunk")
        name = next((thunk for feature, thunk in RETURN_THUNKS if feature in self.features), "")
        thunk = self.kernel.symbol(name) if name else default
        wanted, its = "RETHUNK" in self.features, name == "its_return_thunk"
        feature = "RETHUNK" if wanted else "!RETHUNK"
        for site in self.sites("__return_sites", "__return_sites_end"):
            if self.read(site, 5) != _rel32(0xE9, site, default):
                raise ImageError(
                    f"return site at {site:#x} is no jump to the return thunk: the image is damaged"
                )
            stay = wanted and not (its and site & 0x20)
            self.write(site, _rel32(0xE9, site, thunk) if stay else b"\xc3\xcc\xcc\xcc\xcc", RETURN, feature)

    def alternatives(self) -> None:
        """alternative.c, apply_alternatives, in order: a later entry may rewrite an earlier one's."""
        for at, record in self.records("__alt_instructions", "__alt_instructions_end", 12):
            site, replacement, flags, length, new_length = struct.unpack("<iiHBB", record)
            site, replacement = at + site, at + 4 + replacement
            number, absent = flags & ~_FLAG_NOT, bool(flags & _FLAG_NOT)
            if number >= 32 * WORDS or length > _MAX_SITE or new_length > length:
                raise ImageError(
                    f"alternative at {at:#x} ({length} bytes, feature {number}) is not 6.1's:"
                    " kernel of another version, or damaged"
                )
            if (number in self.numbers) != absent:
                code = self._relocated(self.read(replacement, new_length), replacement, site)
                feature = "!" * absent + feature_name(number)
                self.write(site, code + b"\x90" * (length - len(code)), ALTERNATIVE, feature)
            self.write(site, optimise_nops(self.read(site, length)), NOP, "")

    @staticmethod
    def _relocated(code: bytes, old: int, new: int) -> bytes:
        """A replacement that is one call or jump, moved (alternative.c, recompute_jump: made short)."""
        if len(code) != 5 or code[0] not in (0xE8, 0xE9):
            return code
        target = old + 5 + int.from_bytes(code[1:], "little", signed=True)
        # For backward jumps the kernel's own test never holds, so those stay long.
        if code[0] == 0xE9 and 0 <= target - new <= 129:
            return bytes([0xEB, target - new - 2 & 0xFF]) + nops(3)
        return _rel32(code[0], new, target)


def site_lists(kernel: Kernel, ranges: tuple[tuple[int, int], ...]) -> dict[str, tuple[int, ...]]:
    """Sites of jump labels and static calls within `ranges`, which `patch` leaves as they were linked."""
    lists = {
        "jump label": ("__start___jump_table", "__stop___jump_table", 16),
        "static call": ("__start_static_call_sites", "__stop_static_call_sites", 8),
    }
    found = {}
    for what, (start, end, size) in lists.items():
        sites = []
        if kernel.has(start):
            work = _Work(kernel, frozenset())
            for at, record in work.records(start, end, size):
                sites.append(at + int.from_bytes(record[:4], "little", signed=True))
        sites.sort()
        found[what] = tuple(
            site for low, high in ranges for site in sites[bisect_left(sites, low) : bisect_left(sites, high)]
        )
    return found
