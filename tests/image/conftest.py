# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel, fetched once per checkout and read once per run."""

import pytest

from atomicist.image.bzimage import extract_vmlinux
from atomicist.image.kernel import Kernel, parse_kernel
from tests.debian_kernel import fetched


@pytest.fixture(scope="session")
def vmlinuz() -> bytes:
    """The file as Debian ships it."""
    return fetched().read_bytes()


@pytest.fixture(scope="session")
def vmlinux(vmlinuz: bytes) -> bytes:
    return extract_vmlinux(vmlinuz)


@pytest.fixture(scope="session")
def kernel(vmlinux: bytes) -> Kernel:
    return parse_kernel(vmlinux)
