# SPDX-License-Identifier: GPL-2.0-only
"""Into a tree and out of it, and what is refused; each refusal leaves the tree as it was."""

import errno
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.image.bare import kernel_source
from atomicist.tree import apply
from atomicist.tree.apply import Tables, check_anchors, plan_apply, plan_undo, write
from atomicist.tree.errors import TreeError
from atomicist.tree.hooks import ENTRY_FILES, HOOKS, OWN_FILES, Hook, Step, Where
from tests.tree.conftest import FILES, contents


def test_lines_go_beside_their_anchors_and_files_in_their_places(tree: Path, tables: Tables) -> None:
    write(tree, plan_apply(tree, tables))
    assert (tree / "arch/x86/kernel/idt.c").read_text() == (
        "int before;\n\tint place;\n\tint ours;\n\nvoid two(void)\n{\n\tcall();\n\treturn;\n}\n"
    )
    assert (tree / "lib/other.c").read_text() == "zero\none\ntwo\ntwo and a half\nthree\n"
    assert (tree / "lib/a.c").read_text() == "rows\nrow vc\nend\n"
    assert (tree / "arch/x86/entry/b.S").read_text() == "ours:\n\tnop\n"


def test_applying_twice_changes_nothing(tree: Path, tables: Tables) -> None:
    write(tree, plan_apply(tree, tables))
    before = contents(tree)
    assert plan_apply(tree, tables) == ()
    assert contents(tree) == before


def test_undo_gives_back_every_byte(tree: Path, tables: Tables) -> None:
    before = contents(tree)
    write(tree, plan_apply(tree, tables))
    assert contents(tree) != before
    write(tree, plan_undo(tree, tables))
    assert contents(tree) == before
    assert plan_undo(tree, tables) == ()


def test_a_line_of_a_later_step_waits(tree: Path, tables: Tables) -> None:
    early = {c.file: c.new for c in plan_apply(tree, tables, Step.GATES)}
    assert early["lib/a.c"] == "rows\nend\n"
    assert "arch/x86/entry/b.S" not in early
    assert early["lib/other.c"] == "one\ntwo\ntwo and a half\nthree\n"


def refused(tree: Path, tables: Tables, words: str) -> None:
    """`apply` and `undo` both fail with these words, and nothing changes."""
    before = contents(tree)
    for plan in (plan_apply, plan_undo):
        with pytest.raises(TreeError, match=words):
            plan(tree, tables)
    assert contents(tree) == before


def test_an_anchor_that_is_gone_is_named(tree: Path, tables: Tables) -> None:
    (tree / "lib/other.c").write_text("one\n2\nthree\n")
    before = contents(tree)
    with pytest.raises(TreeError, match=r"lib/other.c: the place 'one / tw\.' is there 0 times .*6\.1\.192"):
        plan_apply(tree, tables)
    assert contents(tree) == before
    assert [line for line in check_anchors(tree, tables) if "one / tw." in line]


def test_an_anchor_that_is_there_twice_is_named(tree: Path, tables: Tables) -> None:
    (tree / "arch/x86/kernel/idt.c").write_text(FILES["arch/x86/kernel/idt.c"] + "int place;\n")
    with pytest.raises(TreeError, match=r"idt.c: the place 'int place;' is there 2 times"):
        plan_apply(tree, tables)


def test_where_to_start_looking_must_be_there(tree: Path, tables: Tables) -> None:
    path = tree / "arch/x86/kernel/idt.c"
    path.write_text(path.read_text().replace("void two", "void too"))
    with pytest.raises(TreeError, match=r"no line 'void two\.\*'"):
        plan_apply(tree, tables)


def test_half_a_patch_is_refused(tree: Path, tables: Tables) -> None:
    write(tree, plan_apply(tree, tables))
    (tree / "lib/a.c").unlink()
    refused(tree, tables, "is patched, but lib/a.c is not")


def test_lines_of_ours_that_someone_changed_are_refused(tree: Path, tables: Tables) -> None:
    write(tree, plan_apply(tree, tables))
    path = tree / "lib/other.c"
    path.write_text(path.read_text().replace("two and a half", "two and a third"))
    refused(tree, tables, "is patched, but lib/other.c is not")


def test_a_file_of_ours_that_someone_changed_is_refused(tree: Path, tables: Tables) -> None:
    write(tree, plan_apply(tree, tables))
    (tree / "lib/a.c").write_text("rows\nrow vc\nmine\nend\n")
    refused(tree, tables, "lib/a.c: differs from a.c")


def test_a_file_missing_from_the_kernel_is_named(tree: Path, tables: Tables) -> None:
    (tree / "lib/other.c").unlink()
    with pytest.raises(TreeError, match="lib/other.c: not there"):
        plan_apply(tree, tables)


def test_work_in_progress_is_not_touched(tree: Path, tables: Tables) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example"]
        subprocess.run(["git", "-C", str(tree), *identity, *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "base")
    (tree / "lib/other.c").write_text("one\ntwo\nthree\nfour\n")
    before = contents(tree)
    with pytest.raises(TreeError, match="lib/other.c has changes"):
        plan_apply(tree, tables)
    assert contents(tree) == before
    git("commit", "-qam", "four")
    assert plan_apply(tree, tables)


def test_a_disk_that_fills_up_leaves_the_tree_as_it_was(
    tree: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tree)
    changes = plan_apply(tree, tables)
    put, calls = apply._put, []

    def full(path: Path, text: str | None) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(path, text)

    monkeypatch.setattr(apply, "_put", full)
    with pytest.raises(TreeError, match="No space left on device; the tree is as it was"):
        write(tree, changes)
    assert len(calls) == 5  # two were written, the third failed, two were put back
    assert contents(tree) == before


def test_too_little_space_is_seen_before_anything_is_written(
    tree: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tree)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    before = contents(tree)
    with pytest.raises(TreeError, match="no space"):
        write(tree, plan_apply(tree, tables))
    assert contents(tree) == before


def test_the_same_lines_elsewhere_are_not_taken_for_ours(tree: Path, tables: Tables) -> None:
    hook = Hook(Step.VC, "lib/other.c", (r"three",), Where.AFTER, "one\n")
    more = replace(tables, hooks=(hook,), files=())
    write(tree, plan_apply(tree, more))
    assert (tree / "lib/other.c").read_text() == "one\ntwo\nthree\none\n"
    write(tree, plan_undo(tree, more))
    assert (tree / "lib/other.c").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "no such directory"),
        (lambda tree: (tree / "arch/x86/entry/entry_64.S").unlink(), "not the source of an x86 Linux kernel"),
        (lambda tree: (tree / "Makefile").write_text("all:\n"), "no VERSION, PATCHLEVEL and SUBLEVEL"),
        (lambda tree: None, "not a kernel that we know|the place"),
    ],
    ids=["missing", "no kernel", "no version", "another kernel"],
)
def test_bad_trees_end_in_one_line_and_status_2(
    tree: Path, capsys: pytest.CaptureFixture[str], spoil: object, words: str
) -> None:
    assert callable(spoil)
    spoil(tree)
    before = contents(tree)
    for more in ((), ("--undo",)):
        status = main(["linux", "apply", str(tree), *more])
        out, err = capsys.readouterr()
        assert (status, out, err.count("\n")) == (2, "", 1), (out, err)
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(err)
    assert contents(tree) == before


def test_the_tables_name_files_that_are_there() -> None:
    source = kernel_source()
    for own in OWN_FILES:
        assert (source / own.source).is_file(), own
    for name in ENTRY_FILES:
        own = next(own for own in OWN_FILES if own.source == name)
        assert not own.later
        assert Tables(source).own(own, Step.OBJTOOL) == (source / name).read_text()
    for own in OWN_FILES:
        for pattern, when in own.later:
            less, more = Tables(source).own(own, Step(when.value - 1)), Tables(source).own(own, when)
            assert len(more.splitlines()) == len(less.splitlines()) + 1, pattern


def test_hooks_are_whole_lines_of_a_step() -> None:
    for hook in HOOKS:
        assert hook.text.endswith("\n")
        assert hook.anchor
