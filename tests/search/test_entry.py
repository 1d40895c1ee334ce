# SPDX-License-Identifier: GPL-2.0-only
"""Our entry: every boundary, every nesting, as each compiler builds it."""

from __future__ import annotations

import pytest

from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.native.build import cache_dir
from atomicist.search.result import Result
from atomicist.search.verify import verify
from atomicist.search.workers import new_engine
from atomicist.spec.contexts import contexts
from atomicist.spec.events import EVENTS

CONFIGS = (
    BareConfig(cc="clang"),
    BareConfig(pti=False, pcid=False, fsgsbase=False),
)
"""What `make verify` (gcc, everything on) leaves out."""

FEW = ("user", "kernel-task", "kernel-main-0xb0", "entry-user-cr3", "bad-iret")
"""Contexts, one of a kind."""

VARIANTS = (
    BareConfig(variant="1a", mitigation="unret"),
    BareConfig(variant="1b", mitigation="ibpb"),
    BareConfig(variant="1c", mitigation="ibrs"),
    BareConfig(variant="2", mitigation="unret"),
    BareConfig(variant="3", mitigation="none"),
)
"""Each variant once, with one mitigation; all of them are `atomicist matrix`."""

BY_HALVES = BareConfig(variant="3", mitigation="none", fsgsbase=False)
"""GSBASE is read and written by RDMSR and WRMSR in C: each value that a user chooses, in two halves."""


def named(config: BareConfig) -> str:
    return "-".join(config.names())


def closed(config: BareConfig) -> Result:
    """The whole search of that build, which finds nothing and leaves nothing."""
    target = load(build(kernel_source(), config, cache_dir()), config)
    result, shown = verify(target)
    assert shown is None
    assert result.findings == ()
    assert result.closed, result.open_because
    return result


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_nothing_is_lost_and_nothing_left_to_try(config: BareConfig) -> None:
    result = closed(config)
    assert result.coverage.contexts > 100_000
    assert result.coverage.interleavings > 1_000_000_000


@pytest.mark.parametrize("config", VARIANTS, ids=named)
def test_a_variant_loses_nothing(config: BareConfig) -> None:
    """From a few contexts, with all nestings of the four vectors."""
    target = load(build(kernel_source(), config, cache_dir()), config)
    start = {c.name: c for c in contexts(target)}
    with new_engine(target) as engine:
        for name in FEW:
            c = start[name if name in start else f"{name}-spec3"]  # with IBRS: and the kernel's SPEC_CTRL
            for vector in range(len(EVENTS)):
                r = engine.certify(c.registers, vector, expect_df=c.expect_df, no_stack=c.no_stack)
                assert r.findings == ()
                assert not r.overflow
                assert r.dependence is None
                assert r.interleavings > 1_000_000
                assert r.worst_commit > 50


@pytest.mark.slow
@pytest.mark.parametrize("config", [*VARIANTS, BY_HALVES], ids=named)
def test_a_variant_closes(config: BareConfig) -> None:
    closed(config)
