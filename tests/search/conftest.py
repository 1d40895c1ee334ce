# SPDX-License-Identifier: GPL-2.0-only
"""Targets that the tests of the search share."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir


@pytest.fixture(scope="session")
def entry() -> Target:
    """Our entry as gcc builds it, with page-table isolation, PCID and FSGSBASE."""
    config = BareConfig()
    return load(build(kernel_source(), config, cache_dir()), config)


@pytest.fixture(scope="session")
def entry_path() -> Path:
    """The file of the same image."""
    return build(kernel_source(), BareConfig(), cache_dir())
