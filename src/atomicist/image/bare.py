# SPDX-License-Identifier: GPL-2.0-only
"""The bare image: kernel/ built with nothing of Linux around it, as a target.

The image is built by kernel/bare/Makefile; its symbols are the interface (see
kernel/bare/README.md): ``<region>_bottom`` and ``<region>_top`` for memory,
``atomic_ist_*`` for the marks that the checker holds the code to.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from atomicist.image import safe_ret, thunks
from atomicist.image.addresses import KERNEL_PGD, KERNEL_TEXT_OFFSET, USER_PAGE, USER_ROOT_BIT
from atomicist.image.cache import cached
from atomicist.image.code import reachable
from atomicist.image.elf import ElfImage, read_elf
from atomicist.image.errors import ImageError
from atomicist.image.retbleed import guard
from atomicist.image.thunks import boot_patched
from atomicist.isa.delivery import DB, DF, GP, MC, NMI, NP, PF, SS, TSS_IST1, TSS_RSP0, UD, VC, Gate
from atomicist.isa.ir import Code, Flow, Insn
from atomicist.isa.lift import Lifter
from atomicist.isa.predictions import MITIGATIONS
from atomicist.machine.memory import PAGE, WORD, Page, PageFlag, Region, RegionKind
from atomicist.machine.stages import COMMITTED, DOUBLE_FAULT
from atomicist.machine.target import Place, Target

PCID_KERNEL: Final = 1
"""Linux's first kernel PCID (arch/x86/mm/tlb.c); the user's is this | 0x800."""

PCIDS_OF_USERS: Final = (1, 6)
"""Of contexts that have the user's page tables in force: no flush of theirs is requested. Of all others
one is, which is not to be taken for theirs."""

CPU: Final = 5
NODE: Final = 3
"""Of the processor that the image runs on; neither is 0, and the CPU's number is odd."""

CALL_ALIGNMENT: Final = 16
"""As kernel/bare/README.md says of handlers (System V ABI, 3.2.2)."""

STALE: Final = 0x57A1_E000_0000_0000
"""What lies on a stack that was not written yet, with the address below: no address, and not 0."""

_IST: Final = {"df": 1, "nmi": 2, "db": 3, "mc": 4, "vc": 5}
_GATES: Final = (
    (NMI, "asm_exc_nmi", "nmi"), (DB, "asm_exc_debug", "db"), (MC, "asm_exc_machine_check", "mc"),
    (VC, "asm_exc_vmm_communication", "vc"), (DF, "asm_exc_double_fault", "df"),
    (UD, "asm_exc_invalid_op", ""), (NP, "asm_exc_segment_not_present", ""),
    (SS, "asm_exc_stack_segment", ""),
    (GP, "asm_exc_general_protection", ""), (PF, "asm_exc_page_fault", ""),
)  # fmt: skip
_HANDLERS: Final = {
    "exc_nmi": "NMI", "exc_debug": "DB", "exc_machine_check": "MC", "exc_vmm_communication": "VC",
}  # fmt: skip
_BOTH = PageFlag.KERNEL_ROOT | PageFlag.USER_ROOT
_MAIN: Final = "atomic_ist_main"
_REGIONS: Final = {
    "gdt": (RegionKind.OTHER, _BOTH | PageFlag.CONSTANT),
    "cpu_tss": (RegionKind.OTHER, _BOTH | PageFlag.WRITABLE | PageFlag.CONSTANT),
    "entry_stack": (RegionKind.ENTRY_STACK, _BOTH | PageFlag.WRITABLE),
    "df_stack": (RegionKind.OTHER, _BOTH | PageFlag.WRITABLE),
    **{
        f"{v}_stack": (RegionKind.IST_STACK, _BOTH | PageFlag.WRITABLE | PageFlag.SCRATCH)
        for v in ("nmi", "db", "mc", "vc")
    },
    _MAIN: (RegionKind.MAIN_STACK, _BOTH | PageFlag.WRITABLE | PageFlag.SCRATCH),
    "percpu_user": (RegionKind.OTHER, _BOTH | PageFlag.WRITABLE | PageFlag.CONSTANT),
    "percpu_kernel": (RegionKind.OTHER, PageFlag.KERNEL_ROOT | PageFlag.WRITABLE | PageFlag.CONSTANT),
    "per_cpu_offset": (RegionKind.OTHER, PageFlag.KERNEL_ROOT | PageFlag.CONSTANT),
    "task_stack": (RegionKind.TASK_STACK, PageFlag.KERNEL_ROOT | PageFlag.WRITABLE),
    "irq_stack": (RegionKind.IRQ_STACK, PageFlag.KERNEL_ROOT | PageFlag.WRITABLE),
}

_VARIANT_FILES: Final = (".c", ".h", ".S", ".lds", ".sh")


VARIANTS: Final = ("1a", "1b", "1c", "2", "3")
"""The ways to copy before return predictions are safe; see kernel/atomic_ist.h."""
RFC_V1: Final = "rfc-v1"
"""One more way, which is not safe: a specimen."""

SPEC_CTRL_KERNEL: Final = 3
"""With IBRS, SPEC_CTRL of the kernel: IBRS and STIBP. The user's is the same without IBRS."""


SRSO: Final = "srso"
BUILDS: Final = (*MITIGATIONS, SRSO)
"""What ``mitigation`` may be. To the processor "srso" is "unret"; what is interrupted may be a safe-RET."""


@dataclass(frozen=True, slots=True)
class BareConfig:
    """How the bare image is built: compiler, configuration switches, the processor's
    mitigation of RETBLEED and the variant of the entry."""

    cc: str = "gcc"
    pti: bool = True
    pcid: bool = True
    fsgsbase: bool = True
    mitigation: str = "none"
    variant: str = "1c"

    def names(self) -> tuple[str, ...]:
        """The configuration as words, as results carry it."""
        switches = {"pti": self.pti, "pcid": self.pcid, "fsgsbase": self.fsgsbase}
        chosen = (("mitigation", self.mitigation, "none"), ("variant", self.variant, "1c"))
        return (
            f"cc={self.cc}",
            *(name if on else f"no{name}" for name, on in switches.items()),
            *(f"{name}={value}" for name, value, usual in chosen if value != usual),
        )


def kernel_source() -> Path:
    """The directory kernel/, in a checkout or beside an installed package."""
    for place in (Path(__file__).parents[3] / "kernel", Path(__file__).parents[1] / "_data" / "kernel"):
        if (place / "bare" / "Makefile").exists():
            return place
    raise ImageError("kernel/ is not there: run from a checkout, or reinstall the package")


def build(source: Path, config: BareConfig, cache: Path) -> Path:
    """Build ``source`` (a kernel/ directory) and return the image's path.

    Cached by content in ``cache``. Raises `ImageError` with the compiler's words."""
    for tool in (config.cc, "make", "ld", "objdump"):
        if shutil.which(tool) is None:
            raise ImageError(f"{tool} is not installed: apt-get install make gcc clang binutils libc6-dev")
    files = sorted(p for p in source.rglob("*") if p.suffix in _VARIANT_FILES or p.name == "Makefile")
    key = hashlib.sha256(repr(config).encode() + Path(thunks.__file__).read_bytes())
    for file in files:
        key.update(str(file.relative_to(source)).encode() + b"\0" + file.read_bytes() + b"\0")
    place = cache / f"bare-{key.hexdigest()[:32]}.elf"
    if place.exists():
        return place
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            tree, out = Path(work, "kernel"), Path(work, "out")
            shutil.copytree(source, tree)
            _make(tree, out, config)
            (out / "atomic_ist.elf").rename(place)
    except OSError as e:
        raise ImageError(f"cannot build in {cache}: {e.strerror}; set ATOMICIST_CACHE") from e
    return place


def _make(tree: Path, out: Path, config: BareConfig) -> None:
    command = [
        "make", "--no-print-directory", "-C", str(tree / "bare"), f"O={out}", f"CC={config.cc}",
        f"PTI={int(config.pti)}", f"PCID={int(config.pcid)}", f"FSGSBASE={int(config.fsgsbase)}",
        f"MITIGATION={config.mitigation}", f"VARIANT={config.variant}",
        f"THUNKS={sys.executable} -m atomicist thunks",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CC")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        words = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ImageError(f"the bare image does not build: {words[0] if words else 'make failed'}")


class _Memory:
    """Initial contents of the regions, before they become pages."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def page(self, base: int, kind: RegionKind) -> bytes:
        stale = range(base, base + PAGE, WORD) if kind is not RegionKind.OTHER else ()
        data = bytearray(b"".join((STALE | va & 0xFFFFFF).to_bytes(WORD, "little") for va in stale))
        data = data or bytearray(PAGE)
        for address, value in self.words.items():
            if base <= address < base + PAGE:
                data[address - base : address - base + 8] = value.to_bytes(8, "little")
        return bytes(data)


def load(path: Path, config: BareConfig, name: str = "atomic_ist") -> Target:
    """The target in the bare image at ``path``. Raises `ImageError` if a symbol of
    the interface is missing."""
    data = path.read_bytes()
    how = f"bare {name} {config}"
    return cached(path.parent, data, how, lambda: _read(path, data, config, name))


def _read(path: Path, data: bytes, config: BareConfig, name: str) -> Target:
    elf = boot_patched(read_elf(data))
    symbols = {s.name: s.address for s in elf.symbols}
    if not symbols:
        raise ImageError(f"{path.name} has no symbols: build it with kernel/bare/Makefile, unstripped")
    return _Loader(elf, MappingProxyType(symbols), config, name).target()


class _Loader:
    def __init__(self, elf: ElfImage, symbols: Mapping[str, int], config: BareConfig, name: str) -> None:
        self._elf = elf
        self._symbols = symbols
        self._config = config
        self._name = name

    def _symbol(self, name: str) -> int:
        try:
            return self._symbols[name]
        except KeyError:
            raise ImageError(f"the bare image has no symbol {name} (see kernel/bare/README.md)") from None

    def target(self) -> Target:
        config, symbols = self._config, self._symbols
        gates = {
            v.name: Gate(v, self._symbol(entry), _IST[ist] if ist else 0)
            for v, entry, ist in _GATES
            if entry in symbols
        }
        handlers = {self._symbol(name): vector for name, vector in _HANDLERS.items() if name in symbols}
        in_text = [
            a for n, a in symbols.items() if self._has_code(a) and not n.endswith(("_end", "_text_start"))
        ]
        insns = reachable(in_text, self._fetch, handlers, Lifter())
        mitigation = "unret" if config.mitigation == SRSO else config.mitigation
        insns = guard(insns, symbols, mitigation, handlers)
        kernel_cr3 = KERNEL_PGD | (PCID_KERNEL if config.pcid else 0)
        return Target(
            name=self._name,
            build_id=self._elf.build_id,
            config=config.names(),
            insns=MappingProxyType(insns),
            gates=MappingProxyType(gates),
            handlers=MappingProxyType(handlers),
            places=MappingProxyType(self._places(insns)),
            pages=self._pages(),
            regions=self._regions(),
            symbols=MappingProxyType({n: a for n, a in symbols.items() if a > 0xFFFF}),
            user_root_bit=USER_ROOT_BIT if config.pti else 0,
            kernel_cr3=kernel_cr3,
            kernel_gsbase=self._symbol("percpu_bottom"),
            tr_base=self._symbol("cpu_tss"),
            fsgsbase=config.fsgsbase,
            reserve=symbols.get("atomic_ist_reserve", 512),
            slot_bytes=symbols.get("atomic_ist_slot_size", 176),
            exit_bytes=symbols.get("atomic_ist_exit_size", 0),
            mitigation=mitigation,
            kernel_spec_ctrl=SPEC_CTRL_KERNEL if config.mitigation == "ibrs" else 0,
            call_alignment=CALL_ALIGNMENT,
            cpunode=NODE << 12 | CPU,
        )

    def _has_code(self, address: int) -> bool:
        return any(s.va <= address < s.va + len(s.data) for s in self._elf.segments if s.flags & 1)

    def _fetch(self, va: int, size: int) -> bytes:
        for s in self._elf.segments:
            if s.flags & 1 and s.va <= va < s.va + len(s.data):
                return bytes(s.data[va - s.va : va - s.va + size])
        return b""

    def _places(self, insns: Mapping[int, Insn]) -> dict[int, Place]:
        places = {}
        start, end = self._symbol("__entry_text_start"), self._symbol("__entry_text_end")
        starts = sorted(set(self._symbols.values()))
        for va in insns:
            if start <= va < end:
                places[va] = Place.ENTRY
        for name, address in self._symbols.items():
            if re.fullmatch(COMMITTED, name):
                places[address] = places.get(address, Place(0)) | Place.COMMITTED
            elif re.fullmatch(DOUBLE_FAULT, name):
                limit = min((a for a in starts if a > address), default=address + 64)
                mark = Place.DELIBERATE | (Place.NO_ROOM if "_overflow" in name else Place(0))
                for va in _up_to_the_store(insns, address, limit):
                    places[va] = places.get(va, Place(0)) | mark
        for va, mark in safe_ret.places(self._symbols, insns).items():
            places[va] = places.get(va, Place(0)) | mark
        return places

    def _region_names(self) -> list[str]:
        return [n for n in _REGIONS if f"{n}_bottom" in self._symbols]

    def _regions(self) -> tuple[Region, ...]:
        return tuple(
            Region(n, self._symbol(f"{n}_bottom"), self._symbol(f"{n}_top"), _REGIONS[n][0])
            for n in self._region_names()
        )

    def _pages(self) -> tuple[Page, ...]:
        pages = []
        memory = self._contents()
        area = range(self._symbol("cpu_entry_area_bottom"), self._symbol("cpu_entry_area_top"))
        for n in self._region_names():
            span = range(self._symbol(f"{n}_bottom"), self._symbol(f"{n}_top"), PAGE)
            kind, flags = _REGIONS[n]
            if n == _MAIN and span[0] not in area:  # a variant that does not need it there
                flags &= ~PageFlag.USER_ROOT
            pages += [Page(base, memory.page(base, kind), flags) for base in span]
        entry = range(self._symbol("__entry_text_start"), self._symbol("__entry_text_end"))
        for s in self._elf.segments:
            if not s.flags & 1:
                continue
            for base in range(s.va & ~(PAGE - 1), s.va + len(s.data), PAGE):
                lo = max(base, s.va)
                data = bytes(lo - base) + bytes(s.data[lo - s.va : base + PAGE - s.va])
                root = _BOTH if base in entry else PageFlag.KERNEL_ROOT
                pages.append(
                    Page(base, data.ljust(PAGE, b"\0"), root | PageFlag.EXECUTABLE | PageFlag.CONSTANT)
                )
        pages.append(Page(USER_PAGE, bytes(PAGE), _BOTH | PageFlag.USER_PAGE | PageFlag.WRITABLE))
        return tuple(pages)

    def _contents(self) -> _Memory:
        memory = _Memory()
        tss, percpu = self._symbol("cpu_tss"), self._symbol("percpu_bottom")
        entry_top = self._symbol("entry_stack_top")
        memory.words[tss + TSS_RSP0] = entry_top
        for stack, index in _IST.items():
            memory.words[tss + TSS_IST1 + 8 * (index - 1)] = self._symbol(f"{stack}_stack_top")
        memory.words[percpu + self._symbol("cpu_tss_sp0")] = entry_top
        memory.words[percpu + self._symbol("cpu_current_top_of_stack")] = self._symbol("task_stack_top")
        memory.words[self._symbol("__per_cpu_offset") + 8 * CPU] = percpu
        memory.words[percpu + self._symbol("x86_spec_ctrl_current")] = SPEC_CTRL_KERNEL
        if self._config.mitigation == SRSO:
            text = self._symbol("__entry_text_start") + KERNEL_TEXT_OFFSET
            memory.words |= safe_ret.returns(self._symbol("task_stack_top"), text)
        flush = percpu + self._symbol("user_pcid_flush_mask")
        memory.words[flush] = ~sum(1 << pcid for pcid in PCIDS_OF_USERS) & (1 << 64) - 1
        # a bit of what lies behind, cleared by mistake, shows as well
        memory.words |= dict.fromkeys(range(flush + 2 * WORD, flush + 2048 // 8, WORD), (1 << 64) - 1)
        return memory


def _up_to_the_store(insns: Mapping[int, Insn], start: int, limit: int) -> Iterator[int]:
    """The instructions of a deliberate double fault, which ends with the PUSH that faults."""
    va = start
    while va in insns and va < limit:
        yield va
        if insns[va].flow is not Flow.FALL or any(op.code is Code.STORE for op in insns[va].ops):
            return
        va = insns[va].next
