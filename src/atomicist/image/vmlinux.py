# SPDX-License-Identifier: GPL-2.0-only
"""A real kernel as a target: Linux as `linux.describe` finds it, with its C handlers
left to the adversary.

Everything that is reached from the entries is executed as the kernel's own code;
only the handlers (exc_nmi, exc_machine_check, ...) are replaced.  The target makes no
claim about where its IST stacks become free, so it is enumerated, not certified.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from atomicist.image import linux_atomic, safe_ret
from atomicist.image.addresses import KERNEL_PGD, KERNEL_TEXT_OFFSET, USER_PAGE, USER_ROOT_BIT
from atomicist.image.cache import cached
from atomicist.image.errors import ImageError
from atomicist.image.kernel import parse_kernel
from atomicist.image.layout import LinuxLayout
from atomicist.image.layout import Region as LinuxRegion
from atomicist.image.linux import describe
from atomicist.image.reach import DATA, TABLE
from atomicist.image.retbleed import guard
from atomicist.isa.delivery import VECTORS, Gate
from atomicist.isa.ir import Insn
from atomicist.isa.lift import MAX_INSN, Lifter
from atomicist.isa.predictions import IBRS
from atomicist.machine.memory import PAGE, Page, PageFlag, Region, RegionKind
from atomicist.machine.target import Place, Target
from atomicist.native.build import cache_dir

DEFAULT_FEATURES: Final = frozenset({"PTI", "PCID", "FSGSBASE", "SMAP"})
"""A CPU of the kind that needs page-table isolation, as Debian would run it."""

_HANDLERS: Final = {
    "exc_nmi": "NMI", "exc_machine_check": "MC", "noist_exc_machine_check": "MC", "exc_debug": "DB",
    "noist_exc_debug": "DB", "kernel_exc_vmm_communication": "VC", "user_exc_vmm_communication": "VC",
    **linux_atomic.HANDLERS,
}  # fmt: skip

MITIGATION_OF: Final = {"KERNEL_IBRS": "ibrs", "UNRET": "unret", "ENTRY_IBPB": "ibpb"}
"""Feature -> what the CPU that has it set needs (cpu/bugs.c, retbleed_select_mitigation)."""

_SRSO: Final = frozenset({"SRSO", "SRSO_ALIAS"})

_WHOLE: Final = frozenset({"per-CPU area", "cpu_tss_rw", "GDT", "TSS"})
"""Regions that are mapped whole; of the others only what code can touch."""

MAX_PAGES: Final = 4096
"""More pages than any entry code needs; a hostile image stops here."""


def load(path: Path, features: frozenset[str] | None = None, *, legacy: bool = False) -> Target:
    """The kernel in ``path`` (vmlinuz or vmlinux) on a CPU with ``features``; ``legacy``: booted with
    ist_entry=legacy, if it has the atomic entry.

    Raises `ImageError` if it cannot be read, is not of a kind we know, or a
    feature has no such name."""
    wanted = DEFAULT_FEATURES if features is None else features
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ImageError(f"cannot read {path}: {e.strerror}") from e
    how = f"linux {path.name} {','.join(sorted(wanted))}{' legacy' if legacy else ''}"

    def make() -> Target:
        kernel = parse_kernel(data)
        if legacy:
            kernel = linux_atomic.without(kernel)
        return _Loader(describe(kernel, wanted), path.name).target()

    return cached(cache_dir(), data, how, make)


class _Loader:
    def __init__(self, layout: LinuxLayout, name: str) -> None:
        self._layout = layout
        self._kernel = layout.text.kernel
        self._name = name
        self._atomic = linux_atomic.is_atomic(self._kernel)

    def target(self) -> Target:
        layout = self._layout
        handlers = {h.address: _HANDLERS[h.symbol] for h in layout.handlers if h.symbol in _HANDLERS}
        stubs = {h.address for h in layout.handlers}
        lifter = Lifter()
        insns = {
            at: lifter.lift(at, layout.text.read(at, i.size)) for at, i in layout.reach.instructions.items()
        } | {at: lifter.lift(at, layout.text.read(at, 1)) for at in stubs}
        pti = "PTI" in layout.features
        symbols = self._symbols()
        mitigation = next((m for f, m in MITIGATION_OF.items() if f in layout.features), "none")
        return Target(
            name=self._name,
            build_id=layout.build_id,
            config=tuple(sorted(layout.features)),
            insns=MappingProxyType(guard(insns, symbols, mitigation, handlers)),
            gates=MappingProxyType(
                {v.name.upper(): Gate(VECTORS[v.name.upper()], v.entry, v.ist) for v in layout.vectors}
            ),
            handlers=MappingProxyType(handlers),
            places=MappingProxyType(self._places(insns, stubs)),
            pages=self._pages(set(insns)),
            regions=self._regions(),
            symbols=MappingProxyType(symbols),
            user_root_bit=USER_ROOT_BIT if pti else 0,
            kernel_cr3=KERNEL_PGD | ("PCID" in layout.features),
            kernel_gsbase=layout.percpu_base,
            tr_base=layout.tss,
            fsgsbase="FSGSBASE" in layout.features,
            reserve=linux_atomic.RESERVE if self._atomic else 0,
            slot_bytes=linux_atomic.SLOT if self._atomic else 0,
            mitigation=mitigation,
            kernel_spec_ctrl=IBRS if mitigation == "ibrs" else 0,
        )

    def _places(self, insns: Mapping[int, Insn], stubs: set[int]) -> dict[int, Place]:
        code = insns.keys() - stubs
        marks = linux_atomic.places(self._kernel, code) if self._atomic else {}
        known = {n: self._kernel.symbol(n) for n in safe_ret.SAFE_RETS if self._kernel.has(n)}
        marks |= safe_ret.places(known, {va: insns[va] for va in code})
        return {va: Place.ENTRY | marks.get(va, Place(0)) for va in code}

    def _symbols(self) -> dict[str, int]:
        layout = self._layout
        names = {n: a[0] for n, a in self._kernel.names.items() if len(a) == 1}
        low, high = layout.user_text
        kept = {n: a for n, a in names.items() if low <= a < high}
        used = {h.symbol: h.address for h in layout.handlers} | {
            f: names[f] for f in layout.helpers if f in names
        }
        return kept | used

    def _regions(self) -> tuple[Region, ...]:
        layout = self._layout
        used = {v.stack for v in layout.vectors if v.name != "df"}
        kinds = dict.fromkeys(used, RegionKind.IST_STACK)
        if self._atomic:
            kinds[linux_atomic.MAIN] = RegionKind.MAIN_STACK
        regions = [
            Region(
                linux_atomic.REGIONS.get(f"{s.name} stack", f"{s.name} stack"),
                s.bottom,
                s.top,
                kinds.get(s.name, RegionKind.OTHER),
            )
            for s in layout.stacks
        ]
        entry, thread = layout.entry_stack, layout.thread_stack
        regions.append(Region("entry stack", entry.bottom, entry.top, RegionKind.ENTRY_STACK))
        regions.append(Region("task stack", thread.bottom, thread.top, RegionKind.TASK_STACK))
        return tuple(regions)

    def _pages(self, code: set[int]) -> tuple[Page, ...]:
        layout = self._layout
        wanted: dict[int, LinuxRegion] = {}
        touched = {va & -PAGE for va in code} | {(va + MAX_INSN) & -PAGE for va in code}
        touched |= {r.target & -PAGE for r in layout.reach.references if r.kind in (DATA, TABLE)}
        touched |= {w.va & -PAGE for w in layout.words}
        # C code on #VC's path follows current->stack
        touched.add(self._kernel.symbol("init_task") & -PAGE)
        thread = layout.thread_stack
        touched |= set(range(thread.bottom & -PAGE, thread.top, PAGE))
        for region in layout.regions:
            whole = region.name in _WHOLE or region.name.endswith(" stack")
            end = region.va + region.size
            inside = (
                range(region.va & -PAGE, end, PAGE)
                if whole
                else (va for va in touched if region.va & -PAGE <= va < end)
            )
            for va in inside:
                wanted[va] = region
                if len(wanted) > MAX_PAGES:
                    raise ImageError(f"more than {MAX_PAGES} pages are needed; is this a kernel?")
        pages = [self._page(va, region) for va, region in sorted(wanted.items())]
        both = PageFlag.KERNEL_ROOT | PageFlag.USER_ROOT
        pages.append(Page(USER_PAGE, bytes(PAGE), both | PageFlag.USER_PAGE | PageFlag.WRITABLE))
        return tuple(pages)

    def _page(self, va: int, region: LinuxRegion) -> Page:
        flags = PageFlag.KERNEL_ROOT
        flags |= PageFlag.USER_ROOT if region.user else PageFlag(0)
        flags |= PageFlag.WRITABLE if region.write else PageFlag(0)
        flags |= PageFlag.EXECUTABLE if region.execute else PageFlag(0)
        thread = self._layout.thread_stack
        if self._atomic and not thread.bottom <= va < thread.top:
            flags |= linux_atomic.page_flags(region.name)
        return Page(va, self._contents(region.backing + va - region.va), flags)

    def _contents(self, backing: int) -> bytes:
        layout = self._layout
        base, size = layout.percpu_base, layout.percpu_size
        data = bytearray(PAGE)
        percpu = base <= backing < base + size
        for offset in range(0, PAGE, 256):
            source = backing + offset
            try:
                chunk = self._kernel.read(source - base, 256) if percpu else layout.text.read(source, 256)
            except ImageError:
                continue
            data[offset : offset + 256] = chunk
        words = [(word.va, word.size, word.value) for word in layout.words]
        if layout.features & _SRSO:
            text = self._kernel.symbol("__entry_text_start") + KERNEL_TEXT_OFFSET
            words += [(va, 8, to) for va, to in safe_ret.returns(layout.thread_stack.top, text).items()]
        for va, length, value in words:
            if backing <= va < backing + PAGE:
                data[va - backing : va - backing + length] = value.to_bytes(length, "little")
        return bytes(data)
