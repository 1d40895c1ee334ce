# SPDX-License-Identifier: GPL-2.0-only
"""A tree that is just enough of a kernel to be patched, and tables for it."""

from pathlib import Path

import pytest

from atomicist.tree.apply import Tables
from atomicist.tree.hooks import Hook, OwnFile, Step, Where

MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 192

tinyconfig olddefconfig:
\t@echo CONFIG_GIVEN=y >> .config
"""

IDT = """\
int before;
\tint place;

void two(void)
{
\treturn;
}
"""

FILES = {
    "Makefile": MAKEFILE,
    "Kconfig": "mainmenu\n",
    "arch/x86/entry/entry_64.S": "entry:\n",
    "arch/x86/kernel/idt.c": IDT,
    "lib/other.c": "one\ntwo\nthree\n",
}

HOOKS = (
    Hook(Step.STACKS, "arch/x86/kernel/idt.c", (r"int place;",), Where.AFTER, "\tint ours;\n"),
    Hook(
        Step.GATES, "arch/x86/kernel/idt.c", (r"return;",), Where.BEFORE, "\tcall();\n", inside=r"void two.*"
    ),
    Hook(Step.GATES, "lib/other.c", (r"one", r"tw."), Where.AFTER, "two and a half\n"),
    Hook(Step.VC, "lib/other.c", (r"one",), Where.BEFORE, "zero\n"),
)
OWN = (
    OwnFile(Step.STACKS, "a.c", "lib/a.c", later=((r"row vc", Step.VC),)),
    OwnFile(Step.ENTRY, "b.S", "arch/x86/entry/b.S"),
)


def contents(tree: Path) -> dict[str, bytes]:
    """Every file of a tree, without git's own."""
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in sorted(tree.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The source of a kernel, for those who do not look closely."""
    place = tmp_path / "linux"
    for name, text in FILES.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """What is to go into it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.c").write_text("rows\nrow vc\nend\n")
    (source / "b.S").write_text("ours:\n\tnop\n")
    return Tables(source, HOOKS, OWN)
