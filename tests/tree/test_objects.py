# SPDX-License-Identifier: GPL-2.0-only
"""Two objects are the same if what gets into memory is."""

import subprocess
from pathlib import Path

import pytest

from atomicist.tree.objects import different


def build(tree: Path, text: str, *options: str) -> Path:
    """``tree`` with one object in it."""
    tree.mkdir()
    (tree / "a.c").write_text(text)
    subprocess.run(["gcc", "-O2", "-c", *options, "-o", "a.o", "a.c"], cwd=tree, check=True)
    return tree


BASE = "extern int other; int f(void) { return other + 1; }\n"


def test_debug_information_and_comments_do_not_count(tmp_path: Path) -> None:
    one = build(tmp_path / "one", BASE)
    assert different(one, build(tmp_path / "two", "// more\n" + BASE, "-g")) == ()


@pytest.mark.parametrize(
    "text",
    [
        BASE.replace("1", "2"),
        BASE.replace("other", "another"),
        BASE + "int more[4];\n",
        BASE + "int v = 1;\n",
    ],
    ids=["code", "relocation", "bss", "data"],
)
def test_whatever_gets_into_memory_counts(tmp_path: Path, text: str) -> None:
    one = build(tmp_path / "one", BASE)
    assert different(one, build(tmp_path / "two", text)) == ("a.o: differs",)


def test_an_object_that_only_one_has_counts(tmp_path: Path) -> None:
    one = build(tmp_path / "one", BASE)
    two = build(tmp_path / "two", BASE)
    (two / "a.o").rename(two / "b.o")
    assert different(one, two) == ("a.o: only in one", "b.o: only in one")
