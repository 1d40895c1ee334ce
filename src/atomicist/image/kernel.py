# SPDX-License-Identifier: GPL-2.0-only
"""A kernel image under its symbols: what every other reader in this room starts from."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atomicist.image.btf import Btf
from atomicist.image.bzimage import MAX_FILE, extract_vmlinux, is_bzimage
from atomicist.image.elf import ElfImage, Segment, read_elf
from atomicist.image.errors import ImageError
from atomicist.image.kallsyms import decode_kallsyms


@dataclass(frozen=True, slots=True)
class Kernel:
    """A vmlinux: memory (`elf`), names -> all addresses of that name, and all addresses with one name each.

    Addresses are those of the link: an image as loaded without KASLR.  Per-CPU symbols have offsets.
    `starts` is sorted; `labels` are the names at those addresses.
    """

    elf: ElfImage
    names: Mapping[str, tuple[int, ...]]
    starts: tuple[int, ...]
    labels: tuple[str, ...]

    def symbol(self, name: str) -> int:
        """The address of `name`; ImageError when the kernel has none, or several of that name."""
        found = self.names.get(name, ())
        if len(found) != 1:
            how = f"{len(found)} symbols" if found else "no symbol"
            raise ImageError(f"kernel has {how} {name}: not an x86-64 kernel of the 6.1 kind")
        return found[0]

    def has(self, name: str) -> bool:
        """Whether exactly one symbol is called `name`."""
        return len(self.names.get(name, ())) == 1

    def range(self, start: str, end: str) -> tuple[int, int]:
        """The addresses of two symbols, of which the second must not lie before the first."""
        low, high = self.symbol(start), self.symbol(end)
        if low > high:
            raise ImageError(f"kernel symbol {end} lies before {start}: the image is damaged")
        return low, high

    def read(self, va: int, size: int) -> bytes:
        """`size` bytes of the unpatched image at `va`."""
        return self.elf.read(va, size)

    def word(self, va: int) -> int:
        """The 64-bit word at `va`."""
        return int.from_bytes(self.elf.read(va, 8), "little")

    def where(self, va: int) -> str:
        """`va` as symbol+0x1f, the form that reports and replay strings use."""
        index = bisect_right(self.starts, va) - 1
        if index < 0:
            return f"{va:#x}"
        offset = va - self.starts[index]
        return self.labels[index] + (f"+{offset:#x}" if offset else "")

    def end(self, va: int) -> int:
        """The next symbol's address above `va`: the most that an object at `va` can extend to."""
        index = bisect_right(self.starts, va)
        if index == len(self.starts):
            raise ImageError(f"no symbol lies above {va:#x}: the image is damaged")
        return self.starts[index]

    def is_text(self, va: int) -> bool:
        """Whether `va` lies between _text and _etext."""
        return self.symbol("_text") <= va < self.symbol("_etext")

    def in_image(self, va: int) -> bool:
        """Whether some segment holds `va`."""
        return any(segment.va <= va < segment.va + segment.size for segment in self.elf.segments)

    def btf(self) -> Btf:
        """The kernel's type information; ImageError when it was built without."""
        section = self.elf.section(".BTF")
        if section is not None:
            return Btf(bytes(section.data))
        if not (self.has("__start_BTF") and self.has("__stop_BTF")):
            raise ImageError(
                "kernel has no BTF, so the layouts of cpu_entry_area and tss_struct are unknown:"
                " give a kernel with CONFIG_DEBUG_INFO_BTF"
            )
        start, end = self.range("__start_BTF", "__stop_BTF")
        return Btf(self.read(start, end - start))

    def percpu(self) -> Segment:
        """The segment with the first contents of the per-CPU area; it is linked at address 0."""
        return self.elf.segment(self.symbol("__per_cpu_start"))


def load_kernel(path: Path) -> Kernel:
    """Read a vmlinuz or vmlinux file; ImageError when it is not a whole x86-64 kernel with symbols."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ImageError(f"{path} is larger than {MAX_FILE >> 20} MB: strip debug information first")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from None
    return parse_kernel(data)


def parse_kernel(data: bytes) -> Kernel:
    """`load_kernel` for bytes in memory."""
    elf = read_elf(extract_vmlinux(data) if is_bzimage(data) else data)
    symbols = elf.symbols or decode_kallsyms(elf)
    found: defaultdict[str, list[int]] = defaultdict(list)
    for symbol in symbols:
        found[symbol.name].append(symbol.address)
    names = {name: tuple(dict.fromkeys(addresses)) for name, addresses in found.items()}
    percpu_end = max(names.get("__per_cpu_end", (0,)))
    labels: dict[int, str] = {}
    for symbol in symbols:
        # Numbers that are no addresses (type A) would make names for data that have none.
        if symbol.type in "aA" and symbol.address >= percpu_end:
            continue
        # Section marks (__entry_text_start) share an address with an object, whose name says more.
        if labels.get(symbol.address, "__").startswith("__"):
            labels[symbol.address] = symbol.name
    starts = tuple(sorted(labels))
    return Kernel(elf, names, starts, tuple(labels[start] for start in starts))
