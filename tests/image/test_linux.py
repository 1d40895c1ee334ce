# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel described for CPU 0, and the facts in `linux`'s docstring held against the code."""

import dataclasses
import os
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from atomicist.image import reach
from atomicist.image.alternatives import patch
from atomicist.image.elf import ElfImage
from atomicist.image.errors import ImageError
from atomicist.image.kernel import Kernel, parse_kernel
from atomicist.image.layout import LinuxLayout
from atomicist.image.linux import VECTORS, describe
from atomicist.image.reach import CALL, DATA, PERCPU, STUB, TABLE, walk
from tests.image import builders
from tests.image.builders import BASE

ROOT = Path(__file__).resolve().parents[2]
WITH_PTI = frozenset({"PTI", "PCID", "FSGSBASE", "SMAP"})


@pytest.fixture(scope="module")
def layout(kernel: Kernel) -> LinuxLayout:
    return describe(kernel, WITH_PTI)


@pytest.fixture(scope="module")
def plain(kernel: Kernel) -> LinuxLayout:
    return describe(kernel, frozenset())


def test_vectors(layout: LinuxLayout) -> None:
    assert {v.name: (v.number, v.ist) for v in layout.vectors} == {
        "db": (1, 3), "nmi": (2, 2), "df": (8, 1), "mc": (18, 4), "vc": (29, 5),
    }  # fmt: skip
    with pytest.raises(ImageError, match="no exception 'gp'"):
        layout.vector("gp")


def test_stacks_do_not_touch(layout: LinuxLayout) -> None:
    """The IST stacks lie apart by their guards; each has its storage within the per-CPU area."""
    areas = sorted((s.bottom, s.top) for s in (*layout.stacks, layout.entry_stack))
    assert all(low[1] + 4096 <= high[0] for low, high in pairwise(areas))
    for stack in (*layout.stacks, layout.entry_stack):
        assert stack.guard == stack.bottom - 4096
        assert 0 <= stack.backing - layout.percpu_base < layout.percpu_size
    assert layout.thread_stack.top - layout.thread_stack.bottom == 16 << 10
    # asm_exc_nmi tells a nested NMI by EXCEPTION_STKSZ: the code has to have the size we have.
    nmi = next(stack for stack in layout.stacks if stack.name == "NMI")
    start, end = layout.vector("nmi").entry, layout.text.kernel.symbol("nested_nmi")
    reached = [i.text for i in layout.reach.instructions.values() if start <= i.at < end]
    sizes = [text for text in reached if text.startswith("sub rdx")]
    assert sizes == [f"sub rdx, {nmi.top - nmi.bottom:#x}"]


def test_words_are_what_the_processor_reads(layout: LinuxLayout) -> None:
    words = {word.va: word.value for word in layout.words}
    tss = layout.percpu("cpu_tss_rw")
    for vector in layout.vectors:
        # SDM vol. 3, 64-bit TSS: IST1 at offset 36
        top = next(stack.top for stack in layout.stacks if stack.name == vector.stack)
        assert words[tss + 36 + 8 * (vector.ist - 1)] == top
    assert words[tss + 4] == layout.entry_stack.top
    assert words[layout.text.kernel.symbol("__per_cpu_offset")] == layout.percpu_base
    assert words[layout.percpu("gdt_page") + 0x78] == 0x0040F500_00000000


def test_every_word_lies_in_writable_or_image_memory(layout: LinuxLayout) -> None:
    for word in layout.words:
        assert any(r.va <= word.va and word.va + word.size <= r.va + r.size for r in layout.regions), word


def test_nothing_is_unknown(layout: LinuxLayout, plain: LinuxLayout) -> None:
    for one in (layout, plain):
        assert one.reach.unknown == ()
        assert not any("left as linked" in note or "unknown" in note for note in one.notes)
        kinds = {p.kind for p in one.text.patches if p.va in one.reach.instructions}
        assert kinds <= {"alternative", "nop", "return"}
        handlers = {name for _, _, _, _, _, *both in VECTORS for name in both} | {"do_syscall_64"}
        assert set(one.reach.symbols(STUB)) == handlers | {"__stack_chk_fail"}


HELPERS = {
    "error_entry", "fixup_bad_iret", "get_cpu_entry_area", "get_stack_info_noinstr", "in_task_stack",
    "memcpy", "paranoid_entry", "sync_regs", "vc_switch_off_ist",
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "percpu", "more", "how"),
    [
        (WITH_PTI, {"cpu_tlbstate"}, set(), "lsl"),
        (frozenset(), set(), set(), "gsbase sign"),
        (
            frozenset({"KERNEL_IBRS", "ENTRY_IBPB", "CLEAR_CPU_BUF"}),
            {"x86_spec_ctrl_current"},
            {"entry_ibpb", "x86_pred_cmd", "x86_verw_sel"},
            "gsbase sign",
        ),
        (frozenset({"UNRET", "RETHUNK", "FSGSBASE"}), set(), {"entry_untrain_ret"}, "lsl"),
    ],
)
def test_what_the_paths_touch(
    kernel: Kernel, names: frozenset[str], percpu: set[str], more: set[str], how: str
) -> None:
    """The list in `linux`'s docstring, feature by feature."""
    one = describe(kernel, names)
    always = {
        "cpu_current_top_of_stack", "cpu_tss_rw", "current_task", "cpu_number", "cea_exception_stacks",
        "hardirq_stack_ptr", "fixed_percpu_data", "espfix_waddr", "espfix_stack",
    }  # fmt: skip
    touched = {symbol.split("+")[0] for symbol in one.reach.symbols(PERCPU)}
    assert touched == always | percpu
    assert set(one.helpers) | set(one.reach.symbols(DATA)) == HELPERS | more
    assert one.percpu_from == how
    tables = {symbol.split("+")[0] for symbol in one.reach.symbols(TABLE)}
    assert tables == {"estack_pages"} | ({"__per_cpu_offset"} if how == "lsl" else set())


def test_user_page_tables(layout: LinuxLayout) -> None:
    """Entry text whole; of the per-CPU area one page; the thread stack not."""
    low, high = layout.user_text
    assert all(low <= vector.entry < high for vector in layout.vectors)
    user = [region for region in layout.regions if region.user]
    assert not any(r.va <= layout.thread_stack.bottom < r.va + r.size for r in user)
    shared = [r for r in user if layout.percpu_base <= r.va < layout.percpu_base + layout.percpu_size]
    assert [(r.va, r.size) for r in shared] == [(layout.percpu("cpu_tss_rw"), 4096)]


def test_code_under_pti_has_the_cr3_switch_and_plain_has_not(layout: LinuxLayout, plain: LinuxLayout) -> None:
    def writes(one: LinuxLayout) -> int:
        return sum(i.text.startswith("mov cr3") for i in one.reach.instructions.values())

    assert writes(layout) > 5
    assert writes(plain) == 0


def test_another_kernel_is_refused(kernel: Kernel) -> None:
    names = {**kernel.names, "def_idts": kernel.names["early_idts"]}
    with pytest.raises(ImageError, match="no IST entry"):
        describe(dataclasses.replace(kernel, names=names), WITH_PTI)
    names = {name: at for name, at in kernel.names.items() if name != "__entry_text_end"}
    with pytest.raises(ImageError, match="no symbol __entry_text_end"):
        describe(dataclasses.replace(kernel, names=names), WITH_PTI)
    sections = tuple(s for s in kernel.elf.sections if s.name != ".BTF")
    bare = ElfImage(kernel.elf.segments, sections, kernel.elf.symbols, "")
    assert dataclasses.replace(kernel, elf=bare).btf().struct("tss_struct").size  # by __start_BTF
    names = {name: at for name, at in kernel.names.items() if name != "__start_BTF"}
    with pytest.raises(ImageError, match="has no BTF"):
        describe(dataclasses.replace(kernel, elf=bare, names=names), WITH_PTI)


def code(text: bytes, **symbols: int) -> Kernel:
    marks = {"_text": BASE, "_etext": BASE + 4096, "__alt_instructions": BASE, "__alt_instructions_end": BASE}
    return parse_kernel(builders.elf({BASE: text.ljust(4096, b"\xcc")}, marks | symbols))


def test_walk_follows_both_ways_and_stops_at_stubs() -> None:
    # je +5; call stub; ret | call [rax]; gs load; fs load; ret
    text = b"\x74\x06\xe8" + struct.pack("<i", 0x100 - 7) + b"\xc3"
    text += b"\xff\x10\x65\x48\x8b\x04\x25\x10\0\0\0\x64\x8b\x00\xc3"
    kernel = code(text, handler=BASE + 0x100)
    found = walk(patch(kernel, frozenset()), [BASE], frozenset({BASE + 0x100}))
    assert found.symbols(STUB) == ("handler",)
    assert found.of(CALL) == ()
    assert [r.target for r in found.of(PERCPU)] == [0x10]
    assert BASE + 0x100 not in found.instructions
    assert [line.split(": ")[1] for line in found.unknown] == [
        "mov eax, dword ptr fs:[rax] is relative to FSBASE",
        "call qword ptr [rax] goes where a register says",
    ]


def test_walk_says_where_there_is_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    found = walk(patch(code(b"\xe9" + struct.pack("<i", 1 << 20)), frozenset()), [BASE], frozenset())
    assert [line.split(": ")[1] for line in found.unknown] == ["no instruction there"]
    monkeypatch.setattr(reach, "MAX_INSTRUCTIONS", 10)
    with pytest.raises(ImageError, match="stub more of C"):
        walk(patch(code(b"\x90" * 20), frozenset()), [BASE], frozenset())


def test_the_fetching_tool_says_what_is_missing(tmp_path: Path) -> None:
    """Without apt: one line and exit status 2; with the image there: nothing to do."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname"):
        found = next(d for d in os.environ["PATH"].split(":") if (Path(d) / name).exists())
        (tools / name).symlink_to(Path(found) / name)
    script, target = ROOT / "tools" / "kernel-image", tmp_path / "image"

    def run() -> subprocess.CompletedProcess[str]:
        command = ["bash", str(script), str(target)]
        return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)

    missing = run()
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert "apt-get not found" in missing.stderr
    target.mkdir()
    assert "incomplete" in run().stderr
    for name in ("vmlinuz", "VERSION"):
        (target / name).write_text("x")
    assert run().returncode == 0
