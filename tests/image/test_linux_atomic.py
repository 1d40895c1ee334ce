# SPDX-License-Identifier: GPL-2.0-only
"""What the reader of Linux images makes of the names of the atomic entry."""

from atomicist.image import linux_atomic
from atomicist.image.elf import ElfImage
from atomicist.image.kernel import Kernel
from atomicist.image.layout import Vector
from atomicist.machine.memory import PageFlag
from atomicist.machine.target import Place

NMI = Vector("nmi", 2, 2, 0x100, "asm_exc_nmi", "NMI", False, 0x200, 0x200)
DF = Vector("df", 8, 1, 0x110, "asm_exc_double_fault", "DF", True, 0x210, 0x210)


def kernel(**names: int) -> Kernel:
    """A kernel with these symbols and nothing else."""
    starts = tuple(sorted(names.values()))
    labels = tuple(sorted(names, key=lambda name: names[name]))
    elf = ElfImage.__new__(ElfImage)
    return Kernel(elf, {name: (at,) for name, at in names.items()}, starts, labels)


ATOMIC = kernel(
    asm_exc_nmi_atomic=0x1000, atomic_ist_double_fault_twice_nmi=0x1010,
    atomic_ist_double_fault_overflow_nmi=0x1020, atomic_ist_commit_nmi=0x1030,
    atomic_ist_committed_nmi=0x1040, atomic_ist_kernel_nmi=0x2000, atomic_ist_user_nmi=0x2010,
)  # fmt: skip


def test_a_vector_with_an_atomic_entry_gets_its_gate_pad_and_handlers() -> None:
    nmi, df = linux_atomic.vectors(ATOMIC, (NMI, DF))
    assert (nmi.entry, nmi.symbol, nmi.stack) == (0x1000, "asm_exc_nmi_atomic", "NMI_pad")
    assert (nmi.kernel_handler, nmi.user_handler) == (0x2000, 0x2010)
    assert (nmi.number, nmi.ist) == (NMI.number, NMI.ist)
    assert df is DF


def test_a_kernel_without_is_as_it_was() -> None:
    legacy = kernel(asm_exc_nmi=0x100)
    assert not linux_atomic.is_atomic(legacy)
    assert linux_atomic.vectors(legacy, (NMI, DF)) == (NMI, DF)
    assert linux_atomic.places(legacy, [0x100]) == {}


def test_labels_mark_the_commit_and_deliberate_double_faults() -> None:
    assert linux_atomic.is_atomic(ATOMIC)
    assert linux_atomic.places(ATOMIC, range(0x1000, 0x1044, 4)) == {
        **dict.fromkeys(range(0x1010, 0x1020, 4), Place.DELIBERATE),
        **dict.fromkeys(range(0x1020, 0x1030, 4), Place.DELIBERATE | Place.NO_ROOM),
        0x1040: Place.COMMITTED,
    }


def test_only_stacks_of_the_entry_are_scratch() -> None:
    assert linux_atomic.page_flags("NMI_pad stack") == PageFlag.SCRATCH
    assert linux_atomic.page_flags("main stack") == PageFlag.SCRATCH
    assert linux_atomic.page_flags("thread stack") == PageFlag(0)
    assert linux_atomic.page_flags("per-CPU area") == PageFlag.CONSTANT
