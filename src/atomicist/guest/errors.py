# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong with a running guest, in one line each."""

from __future__ import annotations


class GuestError(ValueError):
    """The guest cannot be run or followed; the text says why and what to do."""


class GuestTimeout(GuestError):  # noqa: N818 - said of the guest
    """Something did not happen within its limit."""


class GuestGone(GuestError):  # noqa: N818 - said of the guest
    """QEMU ended, or closed a connection, while it was still needed."""
