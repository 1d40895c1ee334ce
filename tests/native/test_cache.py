# SPDX-License-Identifier: GPL-2.0-only
"""Compiled code is for the processor that it was compiled on."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomicist.native import build

SOURCES = {"one.c": "int one(void) { return 1; }\n"}


def test_another_processor_gets_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache may be on a disk that moves, or be shared."""
    monkeypatch.setenv("ATOMICIST_CACHE", str(tmp_path))
    here = build.shared_object(SOURCES, ("one.c",))
    assert build.shared_object(SOURCES, ("one.c",)) == here
    monkeypatch.setattr(build, "_features", lambda: "flags of another processor")
    there = build.shared_object(SOURCES, ("one.c",))
    assert there != here
    assert there.exists()


def test_features_are_those_of_the_first_processor() -> None:
    assert build._features() == build._features.__wrapped__()
    if Path("/proc/cpuinfo").exists():
        assert build._features()
