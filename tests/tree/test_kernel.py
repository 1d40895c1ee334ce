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
    "SMP", "PRINTK", "BUG", "PCI", "X86_MCE", "PERF_EVENTS", "DEBUG_FS", "STACKTRACE", "CPU_MITIGATIONS",
)  # fmt: skip
LESS = ("X86_ATOMIC_IST", "DEBUG_BUGVERBOSE", "DEBUG_INFO")
TOUCHED = (
    "arch/x86/kernel/idt.o", "arch/x86/kernel/traps.o", "arch/x86/kernel/cpu/common.o",
    "arch/x86/mm/cpu_entry_area.o", "arch/x86/kernel/nmi.o", "arch/x86/kernel/dumpstack.o",
    "arch/x86/kernel/vmlinux.lds",
)  # fmt: skip
"""Made of files with hooks, or of much that includes them."""
TOUCHED_64 = ("arch/x86/kernel/dumpstack_64.o", "arch/x86/kernel/sev.o", "arch/x86/entry/entry_64.o")


WHOLE = 500
"""Objects of a whole kernel of this configuration, at least: 552 with 64 bits, 538 with 32."""


@pytest.mark.parametrize(
    ("more", "targets", "least"),
    [
        (("64BIT", "AMD_MEM_ENCRYPT"), (*TOUCHED, *TOUCHED_64), len(TOUCHED) - 1 + len(TOUCHED_64)),
        ((), TOUCHED, len(TOUCHED) - 1),
        pytest.param(("64BIT", "AMD_MEM_ENCRYPT"), ("vmlinux",), WHOLE, marks=pytest.mark.slow),
        pytest.param((), ("vmlinux",), WHOLE, marks=pytest.mark.slow),
    ],
    ids=["64-bit, touched", "32-bit, touched", "64-bit, all", "32-bit, all"],
)
def test_a_kernel_without_it_is_the_same_object_for_object(
    source: Path, tmp_path: Path, more: tuple[str, ...], targets: tuple[str, ...], least: int
) -> None:
    trees = (source, tmp_path / "patched")
    unpack(ARCHIVE, trees[1])
    write(trees[1], plan_apply(trees[1], Tables(kernel_source())))
    for tree in trees:
        make(tree, ["mrproper", "tinyconfig"])
        with (tree / ".config").open("a") as file:
            file.writelines(f"CONFIG_{name}=y\n" for name in (*COMMON, *more))
            file.writelines(f"CONFIG_{name}=n\n" for name in LESS)
        make(tree, ["olddefconfig"])
        assert "CONFIG_X86_ATOMIC_IST=y" not in (config := (tree / ".config").read_text())
        assert ("CONFIG_64BIT=y" in config) == ("64BIT" in more)
        make(tree, targets, jobs=2)
    assert {name for name in targets if name.endswith(".o")} <= set(objects(source))
    assert len(set(objects(source))) >= least
    assert different(*trees) == ()
    script = "arch/x86/kernel/vmlinux.lds"
    assert _lines(trees[0] / script) == _lines(trees[1] / script)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]
