# SPDX-License-Identifier: GPL-2.0-only
"""Ways to boot a kernel that take different paths through its entries: a table."""

from __future__ import annotations

from typing import Final

from atomicist.guest.linux import Boot

AMD: Final = "EPYC-Rome-v1"

BOOTS: Final = (
    Boot("default"),
    Boot("pti=on", "pti=on"),
    Boot("pti=off", "pti=off"),
    Boot("nofsgsbase", "nofsgsbase"),
    Boot("retbleed=unret", "retbleed=unret"),
    Boot("EPYC", "spec_rstack_overflow=off", AMD),
    Boot("smp2", cpus=2),
)
"""The default CPU is an Intel model with page-table isolation, FSGSBASE and SMAP."""

ENTRIES: Final = ("atomic", "legacy")
"""Values of the boot parameter ist_entry of a kernel that has both."""
