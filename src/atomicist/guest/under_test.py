# SPDX-License-Identifier: GPL-2.0-only
"""The kernel under test, seen twice: as it runs in the guest, and as the model that predicts it.

Which CPU features the kernel found is read out of its own memory (boot_cpu_data), so that the model is
patched for the same; and every instruction of the model is compared with the guest's memory.  A prediction
for other code than runs would be worth nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from atomicist.guest.errors import GuestError
from atomicist.guest.rsp import Rsp
from atomicist.guest.walk import Places
from atomicist.image import vmlinux
from atomicist.image.errors import ImageError
from atomicist.image.features import ALWAYS, NUMBERS
from atomicist.image.kernel import Kernel, load_kernel
from atomicist.image.linux import CEA_RO_IDT, PERCPU_BASE
from atomicist.isa.delivery import NMI
from atomicist.isa.ir import Flow
from atomicist.isa.lift import Lifter
from atomicist.isa.registers import BY_SLOT, FLAG_BITS, REGISTERS
from atomicist.machine.memory import PAGE, Page, PageFlag, Region
from atomicist.machine.target import Place, Target
from atomicist.spec.contexts import Context

WORD: Final = 32
"""Features in one word of x86_capability."""

ENTRIES: Final = {"asm_exc_nmi": "NMI", "asm_exc_debug": "DB", "asm_exc_machine_check": "MC"}
HANDLERS: Final = {
    "exc_nmi": "NMI", "exc_debug": "DB", "noist_exc_debug": "DB", "exc_machine_check": "MC",
    "noist_exc_machine_check": "MC",
}  # fmt: skip
ATOMIC: Final = "_atomic"
"""Suffix of a gate's symbol where the kernel has both entries."""

DEADLY: Final = ("panic", "oops_enter", "asm_exc_double_fault")
"""Reaching one of these, the kernel has given up."""

READS_DR6: Final = re.compile(r"^(noist_)?exc_debug|native_get_debugreg$")
_DR6: Final = re.compile(r"^mov (\w+), dr6$")

ITS: Final = "BUG_ITS"

SPIN: Final = "spin_here"
SYSTEM_CALL: Final = "__x64_sys_newuname"
"""A place in the kernel that ``hello`` brings init to, on the stack of its task."""


@dataclass(frozen=True, slots=True)
class UnderTest:
    """``kernel`` as read from its file, ``target`` the model of it with ``features``, ``places`` to stop at;
    ``compared`` instructions of the model are the guest's, byte by byte."""

    kernel: Kernel
    target: Target
    features: tuple[str, ...]
    places: Places
    compared: int


def read_kernel(path: Path) -> Kernel:
    """The kernel image at ``path``. Raises `GuestError` if it is none that we can read."""
    try:
        return load_kernel(path)
    except ImageError as e:
        raise GuestError(f"cannot read {path}: {e}") from e


def symbol(kernel: Kernel, name: str) -> int:
    """The address of ``name``. Raises `GuestError` if the kernel has no such symbol."""
    try:
        return kernel.symbol(name)
    except ImageError as e:
        raise GuestError(f"this kernel has no symbol {name}, which is needed to stop there: {e}") from e


def features(kernel: Kernel, rsp: Rsp) -> frozenset[str]:
    """The CPU features that the running ``kernel`` found, of those that its code is patched for."""
    try:
        at = kernel.btf().member("cpuinfo_x86", "x86_capability")
    except ImageError as e:
        raise GuestError(f"cannot find the CPU's features in this kernel: {e}") from e
    raw = rsp.read(symbol(kernel, "boot_cpu_data") + at.offset, at.size)
    words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]
    found = {
        name
        for name, number in NUMBERS.items()
        if number // WORD < len(words) and words[number // WORD] >> number % WORD & 1
    }
    return frozenset(found - {ITS} | ({ITS} if _its(kernel, rsp) else set()))


def is_legacy(kernel: Kernel, rsp: Rsp) -> bool:
    """Whether the IDT that is in force has the legacy entry of NMI."""
    low, high = rsp.words(CEA_RO_IDT + 16 * NMI.number, 2)
    gate = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
    return gate == symbol(kernel, "asm_exc_nmi")


def _its(kernel: Kernel, rsp: Rsp) -> bool:
    """Whether returns go through the aligned thunk of indirect target selection: no feature says
    so where retpolines are used for the rest (image/features.py)."""
    if not kernel.has("x86_return_thunk") or not kernel.has("its_return_thunk"):
        return False
    return rsp.words(kernel.symbol("x86_return_thunk"), 1)[0] == kernel.symbol("its_return_thunk")


def meet(path: Path, rsp: Rsp) -> UnderTest:
    """The kernel in ``path``, which runs behind ``rsp``, with kernel page tables in force.

    Raises `GuestError` if it cannot be modelled, or the model's code is not what runs."""
    kernel = read_kernel(path)
    found = features(kernel, rsp)
    try:
        target = vmlinux.load(path, found - ALWAYS, legacy=is_legacy(kernel, rsp))
    except ImageError as e:
        raise GuestError(f"cannot model {path.name}: {e}") from e
    compared = _compare(target, rsp)
    return UnderTest(
        kernel, _live(kernel, target, rsp), tuple(sorted(found)), places(kernel, target), compared
    )


def _live(kernel: Kernel, target: Target, rsp: Rsp) -> Target:
    """``target`` with the guest's memory: the per-CPU area and the stack of the current task where the
    guest has them, and all contents as they are now."""
    gsbase, size = rsp["GSBASE"], symbol(kernel, "__per_cpu_end")
    task = target.named_region("task stack")
    # Per-CPU symbols are offsets from GSBASE.
    top = rsp.words(gsbase + symbol(kernel, "cpu_current_top_of_stack"), 1)[0]

    def moved(address: int) -> int:
        if PERCPU_BASE <= address < PERCPU_BASE + size:
            return address - PERCPU_BASE + gsbase
        if task.bottom & -PAGE <= address < task.top:
            return address - task.top + top
        return address

    pages = []
    for page in target.pages:
        base = moved(page.base)
        try:
            data = page.data if page.flags & PageFlag.USER_PAGE else rsp.read(base, PAGE)
        except GuestError:
            continue  # as the stacks of #VC outside of an encrypted guest: not there, for the model neither
        flags = page.flags
        if top - (task.top - task.bottom) <= base < top:
            flags &= ~PageFlag.CONSTANT  # a stack, whatever of the image it lay in
        pages.append(Page(base, data, flags))
    stack = Region(task.name, task.bottom - task.top + top, top, task.kind)
    return replace(
        target,
        pages=tuple(pages),
        regions=tuple(stack if r is task else r for r in target.regions),
        kernel_gsbase=gsbase,
        kernel_cr3=rsp["CR3"],
    )


def context(target: Target, registers: Mapping[str, int], name: str) -> Context:
    """The guest's ``registers`` as a context of the model; the few that the gdbstub does not show
    are as after a reset."""
    values = dict.fromkeys(REGISTERS, 0) | {"DR6": 0xFFFF_0FF0, "DR7": 0x400, "TR_BASE": target.tr_base}
    values |= {n: v for n, v in registers.items() if n in REGISTERS}
    for flag, (bit, width) in FLAG_BITS.items():
        values[flag] = registers["RFLAGS"] >> bit & ((1 << width) - 1)
    return Context(name, "stopped in the guest", tuple(values[n] for n in BY_SLOT))


def _compare(target: Target, rsp: Rsp) -> int:
    """Compare the code of ``target`` with the guest's memory; how many instructions were compared."""
    known: dict[int, bytes] = {}
    for address, insn in target.insns.items():
        got = b""
        for at in range(address, address + len(insn.raw)):
            page = at & -4096
            if page not in known:
                known[page] = rsp.read(page, 4096)
            got += known[page][at - page : at - page + 1]
        if got != insn.raw and address not in target.handlers:
            raise GuestError(
                f"the model's code is not the guest's at {target.symbolize(address)}: {insn.raw.hex()}"
                f" ({insn.text}) in the model, {got.hex()} in the guest"
            )
    return len(target.insns)


def places(kernel: Kernel, target: Target) -> Places:
    """Where a walk through ``kernel``'s entries has to look up."""
    entries = {}
    for name, vector in ENTRIES.items():
        for full in (name, name + ATOMIC):
            if kernel.has(full):
                entries[kernel.symbol(full)] = vector
    handlers = {kernel.symbol(n): v for n, v in HANDLERS.items() if kernel.has(n)} | dict(target.handlers)
    deadly = {kernel.symbol(n): n for n in DEADLY if kernel.has(n)}
    irets = frozenset(at for at, insn in target.insns.items() if insn.flow is Flow.IRET)
    entry = frozenset(at for at, place in target.places.items() if place & Place.ENTRY)
    committed = frozenset(at for at, place in target.places.items() if place & Place.COMMITTED)
    return Places(entries, handlers, deadly, _reads_of_dr6(kernel), irets, entry, committed)


def _reads_of_dr6(kernel: Kernel) -> dict[int, str]:
    """The address behind each MOV from DR6 on the way of #DB's handlers, and the register it loads."""
    lifter, found = Lifter(), {}
    for name, addresses in kernel.names.items():
        if not READS_DR6.search(name):
            continue
        for start in addresses:
            at, end = start, kernel.end(start)
            while at < end:
                try:
                    insn = lifter.lift(at, kernel.read(at, min(15, end - at)))
                except (ImageError, ValueError):
                    break
                match = _DR6.match(insn.text)
                if match:
                    found[insn.next] = match[1].upper()
                at = insn.next
    return found


def init_symbol(init: Path, name: str) -> int:
    """The address of ``name`` in our ``init``. Raises `GuestError`."""
    with init.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        found = table.get_symbol_by_name(name) if isinstance(table, SymbolTableSection) else None
    if not found:
        raise GuestError(f"the guest's init has no symbol {name}")
    return int(found[0]["st_value"])
