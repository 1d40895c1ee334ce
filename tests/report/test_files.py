# SPDX-License-Identifier: GPL-2.0-only
"""Files appear wholly or not at all."""

import os
from pathlib import Path

import pytest

from atomicist.report.files import OutputError, OutputFile


def test_written_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "out.json"
    file = OutputFile(str(place))
    assert list(tmp_path.iterdir()) == []
    file.write("text \u00fc\n")
    assert place.read_text(encoding="utf-8") == "text \u00fc\n"
    assert list(tmp_path.iterdir()) == [place]


def test_what_was_there_is_replaced_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    OutputFile(str(tmp_path / "link")).write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("name", ["", ".", "missing/x", "file/x", "a\0b", "x" * 300])
def test_refused_before_the_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="cannot write .*; choose another place"):
        OutputFile(name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "out"
    place.write_text("old")
    file = OutputFile(str(place))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        file.write("new")
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_device_is_written_directly() -> None:
    OutputFile(os.devnull).write("text")
