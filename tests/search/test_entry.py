# SPDX-License-Identifier: GPL-2.0-only
"""Our entry: every boundary, every nesting, as each compiler builds it."""

from __future__ import annotations

import pytest

from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.native.build import cache_dir
from atomicist.search.verify import verify

CONFIGS = (
    BareConfig(cc="clang"),
    BareConfig(pti=False, pcid=False, fsgsbase=False),
)
"""What `make verify` (gcc, everything on) leaves out."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(c.names()))
def test_nothing_is_lost_and_nothing_left_to_try(config: BareConfig) -> None:
    target = load(build(kernel_source(), config, cache_dir()), config)
    result, shown = verify(target)
    assert shown is None
    assert result.findings == ()
    assert result.closed, result.open_because
    assert result.coverage.contexts > 100_000
    assert result.coverage.interleavings > 1_000_000_000
