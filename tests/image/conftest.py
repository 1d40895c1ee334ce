# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel, fetched once per checkout and read once per run."""

import subprocess
from pathlib import Path

import pytest

from atomicist.image.bzimage import extract_vmlinux
from atomicist.image.kernel import Kernel, parse_kernel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def vmlinuz() -> bytes:
    """The file as Debian ships it; the test is skipped, with the reason, where it cannot be had."""
    done = subprocess.run([ROOT / "tools" / "kernel-image"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip() or "tools/kernel-image failed")
    return (ROOT / "build" / "kernel-image" / "vmlinuz").read_bytes()


@pytest.fixture(scope="session")
def vmlinux(vmlinuz: bytes) -> bytes:
    return extract_vmlinux(vmlinuz)


@pytest.fixture(scope="session")
def kernel(vmlinux: bytes) -> Kernel:
    return parse_kernel(vmlinux)
