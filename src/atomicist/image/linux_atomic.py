# SPDX-License-Identifier: GPL-2.0-only
"""A Linux kernel that has the atomic entry: what of it a machine needs, besides what every kernel has.

Names are those of kernel/linux/.  Boot is taken to be with ``ist_entry=atomic``, its default: each vector
that can be atomic is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from atomicist.image.btf import Btf
from atomicist.image.errors import ImageError
from atomicist.image.kernel import Kernel
from atomicist.image.layout import Stack, Vector
from atomicist.machine.memory import PageFlag
from atomicist.machine.target import Place

ENTRIES: Final = {
    "db": ("asm_exc_debug_atomic", "DB_pad"),
    "nmi": ("asm_exc_nmi_atomic", "NMI_pad"),
    "mc": ("asm_exc_machine_check_atomic", "MC_pad"),
    "vc": ("asm_exc_vmm_communication_atomic", "VC_pad"),
}
"""Vector -> the target of its gate (asm/atomic_ist_env.h), and its landing pad (asm/atomic_ist.h)."""

HANDLERS: Final = {
    f"atomic_ist_{mode}_{name}": name.upper() for name in ENTRIES for mode in ("kernel", "user")
}
MAIN: Final = "main"
"""The main stack, as a stack's name and as a member of cea_atomic_ist."""
REGIONS: Final = {
    **{f"{pad} stack": f"{name}_stack" for name, (_, pad) in ENTRIES.items()},
    f"{MAIN} stack": "atomic_ist_main",
}
"""Stacks by the names that they have in the bare image too."""
RESERVE: Final = 1024
"""asm/atomic_ist_env.h, ATOMIC_IST_RESERVE."""
SLOT: Final = 176
"""arch/x86/entry/atomic_ist.h, ATOMIC_IST_SLOT_SIZE."""


def is_atomic(kernel: Kernel) -> bool:
    """Whether some vector of ``kernel`` can be atomic."""
    return any(kernel.has(entry) for entry, _ in ENTRIES.values())


def without(kernel: Kernel) -> Kernel:
    """``kernel`` as booted with ``ist_entry=legacy``: its gates are those of every kernel."""
    entries = {entry for entry, _ in ENTRIES.values()}
    return replace(kernel, names={n: a for n, a in kernel.names.items() if n not in entries})


def vectors(kernel: Kernel, legacy: Iterable[Vector]) -> tuple[Vector, ...]:
    """The vectors with their atomic entries where the kernel has them."""
    found = []
    for vector in legacy:
        entry, pad = ENTRIES.get(vector.name, ("", ""))
        if not kernel.has(entry):
            found.append(vector)
            continue
        found.append(
            replace(
                vector,
                entry=kernel.symbol(entry),
                symbol=entry,
                stack=pad,
                kernel_handler=kernel.symbol(f"atomic_ist_kernel_{vector.name}"),
                user_handler=kernel.symbol(f"atomic_ist_user_{vector.name}"),
            )
        )
    return tuple(found)


def stacks(kernel: Kernel, btf: Btf, area: int, percpu: int) -> tuple[Stack, ...]:
    """Pads and main stack of a CPU, by the places of its cpu_entry_area and its per-CPU area."""
    mapped = area + btf.offset("cpu_entry_area", "atomic_ist")
    storage = percpu + kernel.symbol("atomic_ist_stacks")
    cea, own = btf.struct("cea_atomic_ist"), btf.struct("atomic_ist_stacks")
    found = []
    for name in (*(pad for _, pad in ENTRIES.values()), MAIN):
        member, guard, backing = cea[name], cea[f"{name.removesuffix('_pad')}_guard"], own[name]
        if member.size != backing.size:
            raise ImageError(f"cea_atomic_ist and atomic_ist_stacks differ in the size of {name}")
        bottom = mapped + member.offset
        found.append(
            Stack(name, bottom, bottom + member.size, mapped + guard.offset, storage + backing.offset)
        )
    return tuple(found)


def page_flags(region: str) -> PageFlag:
    """What certificates may rely on in a region: stacks of the entry hold nothing of value between entries,
    and what is no stack keeps its contents."""
    if region in REGIONS:
        return PageFlag.SCRATCH
    return PageFlag(0) if region.endswith(" stack") else PageFlag.CONSTANT


def places(kernel: Kernel, code: Iterable[int]) -> dict[int, Place]:
    """What the labels of the entry say of addresses in ``code``."""
    marks: dict[int, Place] = {}
    ordered = sorted(code)
    for name, addresses in kernel.names.items():
        if re.fullmatch(r"atomic_ist_committed_\w+", name):
            marks.update(dict.fromkeys(addresses, Place.COMMITTED))
        elif re.fullmatch(r"atomic_ist_double_fault_\w+", name):
            mark = Place.DELIBERATE | (Place.NO_ROOM if "_overflow" in name else Place(0))
            for start in addresses:
                marks.update({va: mark for va in ordered if start <= va < kernel.end(start)})
    return marks
