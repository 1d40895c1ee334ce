# SPDX-License-Identifier: GPL-2.0-only
"""The patches add up to what `apply` does, step by step, and say what the kernel wants them to say."""

import subprocess
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.tree import series
from atomicist.tree.apply import Tables, plan_apply, write
from atomicist.tree.errors import TreeError
from atomicist.tree.hooks import Step
from atomicist.tree.messages import MESSAGES
from atomicist.tree.series import bisect, make_series
from tests.tree.conftest import contents

TAG = "Someone:1.0 [tool]"


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """An author, whoever runs this."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A. Author")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "author@example.org")


def test_the_patches_add_up_to_what_apply_does(tree: Path, tables: Tables, tmp_path: Path) -> None:
    before = contents(tree)
    made = make_series(tree, tables, tmp_path / "out", TAG)
    assert contents(tree) == before
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    for patch in made.patches[1:]:
        subprocess.run(["git", "apply", str(patch)], cwd=tree, check=True)
    by_patches = contents(tree)
    for name in by_patches:
        (tree / name).unlink()
    for name, data in before.items():
        (tree / name).write_bytes(data)
    write(tree, plan_apply(tree, tables))
    assert contents(tree) == by_patches


def test_a_patched_tree_gives_the_same_series(tree: Path, tables: Tables, tmp_path: Path) -> None:
    plain = make_series(tree, tables, tmp_path / "plain", TAG)
    write(tree, plan_apply(tree, tables))
    patched = make_series(tree, tables, tmp_path / "patched", TAG)

    def diffs(patches: tuple[Path, ...]) -> list[str]:
        return [patch.read_text().split("\n---\n", 1)[-1] for patch in patches[1:]]

    assert diffs(plain.patches) == diffs(patched.patches)
    assert plain.size == patched.size
    assert (plain.size.asm_added, plain.size.removed) == (2, 0)


def test_each_patch_says_who_helped_and_is_signed_by_nobody(
    tree: Path, tables: Tables, tmp_path: Path
) -> None:
    made = make_series(tree, tables, tmp_path / "out", TAG)
    cover, *patches = (patch.read_text() for patch in made.patches)
    assert "***" not in cover
    assert "What could not be tested" in cover
    assert len(patches) == 4  # steps without a change make no patch
    for patch in patches:
        assert f"\nAssisted-by: {TAG}\n" in patch
        assert "Signed-off-by" not in patch
    assert MESSAGES[Step.STACKS].subject in patches[0].replace("\n", "")


def test_no_line_of_a_message_is_a_comment_to_git() -> None:
    text = "\n\n".join(series._wrapped(message.body) for message in MESSAGES.values())
    assert not [line for line in text.splitlines() if line.startswith("#") or len(line) > 75]
    assert "\0" not in text
    assert "#MC" in text


def test_a_directory_with_patches_is_refused(tree: Path, tables: Tables, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0001-mine.patch").write_text("mine\n")
    with pytest.raises(TreeError, match="has patches already"):
        make_series(tree, tables, tmp_path / "out", TAG)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["0001-mine.patch"]


def test_bisect_shows_each_step_its_own_tree(tree: Path, tables: Tables, tmp_path: Path) -> None:
    before = contents(tree)
    seen = {}

    def check(step: Step, work: Path) -> tuple[str, ...]:
        seen[step] = contents(work)
        return ("bad",) if step is Step.GATES else ()

    for _ in range(2):  # the copy is used again, and starts from the first step again
        found = bisect(tree, tables, tmp_path / "work", check)
        assert {step for step, lines in found.items() if lines} == {Step.GATES}
        assert seen[Step.OBJTOOL] == before
        assert b"row vc" not in seen[Step.DB]["lib/a.c"]
        assert b"row vc" in seen[Step.VC]["lib/a.c"]
        assert "arch/x86/entry/b.S" not in seen[Step.GATES]
    assert contents(tree) == before


@pytest.mark.parametrize(
    "tag", [[], ["--assisted-by", "Someone"], ["--assisted-by", "A:1\nSigned-off-by: B"]]
)
def test_without_saying_who_helped_there_is_no_series(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tag: list[str]
) -> None:
    assert main(["linux", "series", str(tree), "-o", str(tmp_path / "out"), *tag]) == 2
    assert "--assisted-by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
