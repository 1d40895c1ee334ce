# SPDX-License-Identifier: GPL-2.0-only
"""Targets that the tests of the search share."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.image.mutate import Mutant
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.search.mutation import Quick

EVERYTHING_RAN = bytes([7])


@pytest.fixture(scope="session")
def entry() -> Target:
    """Our entry as gcc builds it, with page-table isolation, PCID and FSGSBASE."""
    config = BareConfig()
    return load(build(kernel_source(), config, cache_dir()), config)


@pytest.fixture(scope="session")
def entry_path() -> Path:
    """The file of the same image."""
    return build(kernel_source(), BareConfig(), cache_dir())


@pytest.fixture(scope="module")
def quick(entry: Target) -> Quick:
    """What decides most mutants of `entry`, as if closing it had executed everything."""
    return Quick(entry, EVERYTHING_RAN * len(entry.insns))


@pytest.fixture(scope="module")
def mutants(quick: Quick) -> dict[str, Mutant]:
    """All mutants of `entry`, by name."""
    return {m.name: m for m in quick.mutator.mutants()}
