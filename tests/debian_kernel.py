# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel, for all tests that need it: fetched once per checkout."""

import functools
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.seeds import ROOT, VMLINUZ


@functools.cache
def _why_not() -> str:
    done = subprocess.run([ROOT / "tools" / "kernel-image"], capture_output=True, text=True, check=False)
    return (done.stderr.strip() or "tools/kernel-image failed") if done.returncode else ""


def fetched() -> Path:
    """The file as Debian ships it; the test is skipped, with the reason, where it cannot be had."""
    if _why_not():
        pytest.skip(_why_not())
    return VMLINUZ
