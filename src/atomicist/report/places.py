# SPDX-License-Identifier: GPL-2.0-only
"""Says where an instruction is: symbol and offset, its text, its source line."""

from __future__ import annotations

from collections.abc import Callable

from atomicist.report.text import clean, name
