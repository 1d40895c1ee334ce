# SPDX-License-Identifier: GPL-2.0-only
"""Preparing and building, with a Makefile that only plays a kernel's."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from atomicist.tree import prepare
from atomicist.tree.build import STRICT, be_strict, build
from atomicist.tree.errors import TreeError
from atomicist.tree.run import LOG, make
from tests.tree.conftest import contents


def steps(tree: Path, *lines: str) -> None:
    """Have ``make bzImage`` run these."""
    makefile = tree / "Makefile"
    makefile.write_text(makefile.read_text() + "\nbzImage:\n" + "".join(f"\t@{line}\n" for line in lines))


def test_build_reports_progress_and_warnings(tree: Path) -> None:
    steps(tree, "echo '  CC      a.o'", "echo 'a.c:1: warning: odd' >&2", "echo '  LD      vmlinux'")
    (tree / ".config").write_text("CONFIG_X86_ATOMIC_IST=y\n")
    seen = []
    built = build(tree, 1, lambda number, what: seen.append((number, what)))
    assert seen == [(1, "a.o"), (2, "vmlinux")]
    assert built.warnings == ("a.c:1: warning: odd",)
    assert built.atomic


def test_what_the_kernel_says_without_us_is_told_apart(tree: Path) -> None:
    stock = "vmlinux.o: warning: objtool: __handle_intr_saferet+0x27: RET before UNTRAIN"
    ours = "vmlinux.o: warning: objtool: atomic_ist_copy_nmi+0x0: stack state mismatch"
    steps(tree, f"echo '{stock}'", f"echo '{ours}'")
    (tree / ".config").write_text("")
    built = build(tree, 1, lambda number, what: None)
    assert (built.warnings, built.stock) == ((ours,), (stock,))


OBJTOOL = """#!/bin/sh
echo "$*" >>asked
echo "vmlinux.o: warning: objtool: file already has .return_sites, skipping" >&2
echo "vmlinux.o: warning: objtool: atomic_ist_copy_nmi+0x0: RET before UNTRAIN" >&2
"""


@pytest.mark.parametrize("strict", [False, True])
def test_returns_are_looked_at_even_where_the_kernel_does_not(tree: Path, strict: bool) -> None:
    objtool = tree / "tools" / "objtool" / "objtool"
    objtool.parent.mkdir(parents=True)
    objtool.write_text(OBJTOOL)
    objtool.chmod(0o755)
    steps(tree, "true")
    config = "CONFIG_CPU_UNRET_ENTRY=y\n" + ("CONFIG_NOINSTR_VALIDATION=y\n" if strict else "")
    (tree / ".config").write_text(config)
    built = build(tree, 1, lambda number, what: None)
    assert [line.rpartition(": ")[2] for line in built.warnings] == ([] if strict else ["RET before UNTRAIN"])
    assert (tree / "asked").exists() != strict


def test_strict_is_said_once_and_only_of_a_configured_tree(tree: Path) -> None:
    be_strict(tree)
    assert not (tree / ".config").exists()
    (tree / ".config").write_text("CONFIG_A=y\n# CONFIG_DEBUG_ENTRY is not set\n")
    for _ in range(2):
        be_strict(tree)
    assert (tree / ".config").read_text().endswith(f"not set\n{STRICT}")


def test_a_build_that_fails_says_why_and_where(tree: Path) -> None:
    steps(tree, "echo '  CC      a.o'", "echo 'a.c:1:2: error: no such thing' >&2", "false")
    (tree / ".config").write_text("")
    with pytest.raises(
        TreeError, match=r"a\.c:1:2: error: no such thing \(make bzImage; all of it: .*build\.log\)"
    ):
        build(tree, 1, lambda number, what: None)
    assert "no such thing" in (tree / LOG).read_text()


def test_a_tree_without_configuration_is_refused(tree: Path) -> None:
    before = contents(tree)
    with pytest.raises(TreeError, match="not configured"):
        build(tree, 1, lambda number, what: None)
    assert contents(tree) == before


def test_an_interrupted_build_leaves_no_process(tree: Path) -> None:
    steps(tree, "echo started $$$$", "sleep 600")
    pid = 0

    def interrupt(line: str) -> None:
        nonlocal pid
        if line.startswith("started"):
            pid = int(line.split()[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tree, ["bzImage"], each=interrupt)
    assert pid
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


def pack(tree: Path, archive: Path) -> Path:
    """``tree`` as an archive, as Debian's is."""
    subprocess.run(["tar", "-cf", str(archive), "-C", str(tree.parent), tree.name], check=True)
    return archive


def test_unpack_gives_the_tree_without_its_top_directory(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "a.tar")
    prepare.unpack(archive, tmp_path / "new")
    assert contents(tmp_path / "new") == contents(tree)
    assert prepare.checksum(archive) == hashlib.sha256(archive.read_bytes()).hexdigest()


def test_what_is_there_is_not_overwritten(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "a.tar")
    before = contents(tree)
    with pytest.raises(TreeError, match="is there already"):
        prepare.unpack(archive, tree)
    assert contents(tree) == before


@pytest.mark.parametrize("what", ["garbage", "no kernel", "no archive"])
def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path, what: str) -> None:
    archive = tmp_path / "a.tar"
    if what == "garbage":
        archive.write_bytes(b"\0\1\2" * 1000)
    elif what == "no kernel":
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").write_text("x\n")
        pack(tmp_path / "other", archive)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(TreeError, match=str(archive)):
        prepare.unpack(archive, place / "linux")
    assert list(place.iterdir()) == []


def test_too_little_space_is_seen_before_unpacking(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(TreeError, match="1 MB free"):
        prepare.unpack(pack(tree, tmp_path / "a.tar"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_the_kernel_does_not_take_of_the_fragment_is_said(tree: Path, tmp_path: Path) -> None:
    makefile = tree / "Makefile"
    makefile.write_text(
        makefile.read_text().replace("\t@echo CONFIG_GIVEN=y >> .config\n", "\t@sed -i /LOST/d .config\n")
    )
    (tree / ".config").write_text("")
    fragment = tmp_path / "fragment"
    fragment.write_text("# why\nCONFIG_KEPT=y\nCONFIG_LOST=y\nCONFIG_OFF=n\n")
    assert prepare.configure(tree, fragment, lambda what: None) == ("CONFIG_LOST=y",)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "flex" else f"/bin/{tool}")
    assert "flex" in prepare.missing_packages()
    assert "bison" not in prepare.missing_packages()
