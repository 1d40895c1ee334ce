# SPDX-License-Identifier: GPL-2.0-only
"""Bad usage, and the exit statuses."""

from __future__ import annotations

from typing import Final

PASSED: Final = 0
FINDINGS: Final = 1
BAD_INPUT: Final = 2
NOT_CLOSED: Final = 3
INTERRUPTED: Final = 128
"""Plus the number of the signal: 130 for Ctrl-C."""


class UsageError(Exception):
    """The command line asks for what does not exist; one line that says what does."""
