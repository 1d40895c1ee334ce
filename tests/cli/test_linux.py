# SPDX-License-Identifier: GPL-2.0-only
"""The verbs of ``linux`` as a user meets them; what they do is tested in tests/tree."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from atomicist.cli import linux_run
from atomicist.cli.main import main
from tests.cli import command


def test_each_verb_has_help() -> None:
    shown = command.run("linux", "--help")
    assert shown.returncode == 0
    for verb in ("prepare", "apply", "series", "build", "run"):
        assert f"\n    {verb}" in shown.stdout
        assert command.run("linux", verb, "--help").returncode == 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("linux",), "required"),
        (("linux", "nonsense"), "invalid choice"),
        (("linux", "apply", "nowhere"), "no such directory"),
        (("linux", "build", "nowhere"), "no such directory"),
        (("linux", "series", "nowhere"), "-o DIR"),
        (("linux", "series", "nowhere", "-o", "out"), "--assisted-by"),
        (("linux", "series", "nowhere", "-o", "out", "--assisted-by", "A:1"), "no such directory"),
        (("linux", "prepare", "new", "--archive", "nothing.tar.xz"), "nothing.tar.xz: not there"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    words: Sequence[str], what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("atomicist.cli.linux_prepare.missing_packages", lambda: ())
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert what in err
    assert list(tmp_path.iterdir()) == []


def test_run_stops_at_the_first_that_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def call(words: Sequence[str]) -> int:
        called.append(words[1])
        return 1 if words[1] == "build" else 0

    assert linux_run.run(argparse.Namespace(tree=tmp_path / "linux"), call) == 1
    assert called == ["prepare", "apply", "build"]
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "Makefile").write_text("")
    called.clear()
    linux_run.run(argparse.Namespace(tree=tmp_path / "linux"), call)
    assert called == ["apply", "build"]
    assert "$ " in capsys.readouterr().out
