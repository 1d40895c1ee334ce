# SPDX-License-Identifier: GPL-2.0-only
"""On the real source: all places are found, all of it comes out again, and without it nothing differs."""

from pathlib import Path

import pytest

from atomicist.image.bare import kernel_source
from atomicist.tree.apply import Tables, check_anchors, plan_apply, plan_undo, write
from atomicist.tree.objects import different, objects
from atomicist.tree.prepare import ARCHIVE, unpack
from atomicist.tree.run import make
from atomicist.tree.series import make_series

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not ARCHIVE.exists(), reason=f"{ARCHIVE} is not there: apt-get install linux-source-6.1"
    ),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's kernel source; tests leave it as it is."""
    tree = tmp_path_factory.mktemp("kernel") / "linux"
    unpack(ARCHIVE, tree)
    return tree


def test_every_place_is_there_and_all_of_it_comes_out_again(source: Path) -> None:
    tables = Tables(kernel_source())
    assert check_anchors(source, tables) == ()
    before = {name: (source / name).read_bytes() for name in tables.touched()}
    changes = plan_apply(source, tables)
    write(source, changes)
    assert plan_apply(source, tables) == ()
    write(source, plan_undo(source, tables))
    assert {name: (source / name).read_bytes() for name in tables.touched()} == before
    assert not [own.file for own in tables.files if (source / own.file).exists()]


def test_checkpatch_has_no_remarks(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A. Author")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "author@example.org")
    series = make_series(source, Tables(kernel_source()), tmp_path / "out", "Someone:1.0 [tool]")
    assert series.remarks == ()
    assert series.size.removed == 0


COMMON = (
    "SMP",
    "PRINTK",
    "BUG",
    "PCI",
    "X86_MCE",
    "PERF_EVENTS",
    "DEBUG_FS",
    "STACKTRACE",
    "CPU_MITIGATIONS",
)
LESS = ("X86_ATOMIC_IST", "DEBUG_BUGVERBOSE", "DEBUG_INFO")


@pytest.mark.parametrize("more", [("64BIT", "AMD_MEM_ENCRYPT"), ()], ids=["off", "32-bit"])
def test_a_kernel_without_it_is_the_same_object_for_object(
    source: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    trees = (source, tmp_path / "patched")
    unpack(ARCHIVE, trees[1])
    write(trees[1], plan_apply(trees[1], Tables(kernel_source())))
    for tree in trees:
        make(tree, ["tinyconfig"])
        with (tree / ".config").open("a") as config:
            config.writelines(f"CONFIG_{name}=y\n" for name in (*COMMON, *more))
            config.writelines(f"CONFIG_{name}=n\n" for name in LESS)
        make(tree, ["olddefconfig"])
        assert "CONFIG_X86_ATOMIC_IST=y" not in (tree / ".config").read_text()
        make(tree, ["vmlinux"], jobs=2)
    assert len(list(objects(source))) > 300
    assert different(*trees) == ()
    make(source, ["mrproper"])
