# SPDX-License-Identifier: GPL-2.0-only
"""Addresses that every image is given, whatever it is: page-table roots and a user page."""

from __future__ import annotations

from typing import Final

KERNEL_PGD: Final = 0x0000_0001_2340_0000
"""Physical address of the kernel's page table; the user's is the page behind it."""

USER_ROOT_BIT: Final = 0x1000
"""The bit of CR3 that tells them apart (Linux PTI_USER_PGTABLE_BIT)."""

KERNEL_TEXT_OFFSET: Final = 0x40_0000
"""Above the entry text: where interrupted kernel code is."""

USER_PAGE: Final = 0x0000_7FFF_1234_5000
"""One page of user memory, so that touching it is refused as user memory."""
