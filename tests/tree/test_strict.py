# SPDX-License-Identifier: GPL-2.0-only
"""The real source, built with all that looks at it: objtool at noinstr code and at returns, W=1, sparse.

Each of them must also say something: of code that does what it forbids.
"""

import shutil
from pathlib import Path

import pytest

from atomicist.image.bare import kernel_source
from atomicist.tree.apply import Tables, plan_apply, write
from atomicist.tree.build import be_strict, build, check_ours
from atomicist.tree.prepare import ARCHIVE, FRAGMENT, configure, unpack
from atomicist.tree.run import LOG

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(
        not ARCHIVE.exists(), reason=f"{ARCHIVE} is not there: apt-get install linux-source-6.1"
    ),
    pytest.mark.skipif(shutil.which("sparse") is None, reason="no sparse: apt-get install sparse"),
]
JOBS = 2


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With our files in it, and built."""
    place = tmp_path_factory.mktemp("strict") / "linux"
    unpack(ARCHIVE, place)
    assert configure(place, kernel_source() / FRAGMENT, lambda what: None) == ()
    write(place, plan_apply(place, Tables(kernel_source())))
    be_strict(place)
    return place


def both(tree: Path) -> tuple[str, ...]:
    """Warnings of the whole build, and of a closer look at ours."""
    built = build(tree, JOBS, lambda steps, what: None)
    assert built.strict
    assert built.atomic
    return (*built.warnings, *check_ours(tree, JOBS))


def test_there_is_nothing_to_say_of_ours(tree: Path) -> None:
    assert both(tree) == ()
    looked_at = (tree / LOG).read_text()
    for own in Tables(kernel_source()).files:
        if own.file.endswith(".c"):
            assert f"CHECK   {own.file}\n" in looked_at
    command = (tree / ".vmlinux.o.cmd").read_text()
    assert "--noinstr" in command
    assert "--unret" in command


PLANTED = (
    (
        "arch/x86/kernel/atomic_ist_handlers.c", "\tthis_cpu_inc(stats.commits[number]);\n",
        '\tprintk("x");\n', ("atomic_ist_kernel_nmi", "call to _printk() leaves .noinstr.text section"),
    ),
    (
        "arch/x86/entry/atomic_ist.c", "\tCOPY(to, saver, r15);\n",
        "\t{ extern void dump_stack(void); dump_stack(); }\n",
        ("call to dump_stack() leaves .noinstr.text section",),
    ),
    (
        "arch/x86/kernel/atomic_ist_stacks.c", "\nunsigned long atomic_ist_main_used",
        "\nint not_declared(void)\n{\n\treturn 1;\n}\n",
        ("no previous prototype for", "not_declared"),
    ),
    (
        "arch/x86/kernel/atomic_ist_gates.c", "\nvoid __init atomic_ist_setup_idt",
        "\nstatic int __used from_user(int __user *p)\n{\n\treturn *p;\n}\n",
        ("dereference of noderef expression",),
    ),
)  # fmt: skip
"""A file, what is put before the first occurrence of what, and what must be said of it in one line."""


def test_what_is_forbidden_is_said(tree: Path) -> None:
    kept = {name: (tree / name).read_text() for name, *_ in PLANTED}
    try:
        for name, before, text, _ in PLANTED:
            assert before in kept[name]
            (tree / name).write_text(kept[name].replace(before, text + before, 1))
        said = both(tree)
    finally:
        for name, original in kept.items():
            (tree / name).write_text(original)
    for name, _, _, words in PLANTED:
        assert any(all(word in line for word in words) for line in said), (name, words, said)
