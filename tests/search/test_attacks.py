# SPDX-License-Identifier: GPL-2.0-only
"""Defects that a reviewer planted to get past the certificates; each must be caught.

They need no wrong register at once: they rest on memory that a later event overwrites,
on a place that the search had left out, on values that all start contexts happened to
share.  A defect is a replacement in kernel/; what must be said of it stands beside it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.search.certificate import certify

ASM, C = "atomic_ist_vector.S", "atomic_ist.c"
POPS = "\taddq\t$8, %rsp\n\tUNWIND_HINT_REGS\n\tpopq\t%r15\n"
CALL = "\tcall\tV(ATOMIC_IST_KERNEL_HANDLER)\n"
IRET = "\taddq\t$8, %rsp\n\tUNWIND_HINT_IRET_REGS\n\tiretq\n"
RESTORE = "\tATOMIC_IST_RESTORE_GSBASE save=%rbx save32=%ebx\n"
LOWEST = "\tlowest += ATOMIC_IST_SLOT_SIZE - ATOMIC_IST_PTREGS_SIZE;\n"
OURS = "within_text(outermost->ip, __atomic_ist_text_start, __atomic_ist_text_end)"
NO_CODE = "\tcld\n#if !HAS_ERROR_CODE\n"
BREAK = "\t\t\tbreak;\n\t\t}\n\n\t\t/*\n\t\t * A frame"


@dataclass(frozen=True)
class Attack:
    """``old`` in ``file`` becomes ``new``; a finding of ``finds``, or not closed for ``because``."""

    file: str
    old: str
    new: str
    finds: int = 0
    because: str = ""


QUICK = {
    "kept-on-an-ist-stack": Attack(
        ASM, CALL,
        "\tmovabsq\t$nmi_stack_bottom, %rcx\n\tmovq\t%rbx, 8(%rcx)\n" + CALL
        + "\tmovabsq\t$nmi_stack_bottom, %rcx\n\tmovq\t8(%rcx), %rbx\n", finds=14,
    ),
    "kept-below-rsp": Attack(
        ASM, CALL, CALL + "\tmovq\t%rbx, -0x40(%rsp)\n\tmovq\t-0x40(%rsp), %rbx\n", finds=14
    ),
    "returns-before-commit": Attack(
        ASM, NO_CODE,
        NO_CODE + "\tcmpq\t$__atomic_ist_nmi_text, (%rsp)\n\tjb\t8f\n"
        "\tcmpq\t$atomic_ist_committed_nmi, (%rsp)\n\tjae\t8f\n\tiretq\n8:\n", finds=19,
    ),
}  # fmt: skip

SLOW = {
    "below-the-reserve": Attack(
        C, LOWEST, f"\tif ({OURS})\n\t\tWRITE_ONCE(*(unsigned long *)(lowest - 600), 0);\n" + LOWEST, finds=21
    ),
    "refuses-an-empty-stack": Attack(
        C, BREAK,
        "\t\t\tif (sp == main_top)\n\t\t\t\tDOUBLE_FAULT(vector, contradiction, regs);\n" + BREAK, finds=15,
    ),
    "odd-gsbase": Attack(ASM, RESTORE, "\ttestb\t$1, %bl\n\tjnz\t7f\n" + RESTORE + "7:\n", finds=2),
    "clears-spec-ctrl": Attack(
        ASM, POPS, "\tmovl\t$0x48, %ecx\n\txorl\t%eax, %eax\n\txorl\t%edx, %edx\n\twrmsr\n" + POPS, finds=2
    ),
    "clears-ac": Attack(
        ASM, IRET, "\taddq\t$8, %rsp\n\tandq\t$~0x40000, 16(%rsp)\n\tiretq\n", because="depends on AC"
    ),
    "writes-dr7": Attack(
        ASM, POPS, "\tmovl\t$0x400, %eax\n\tmovq\t%rax, %dr7\n" + POPS, because="depends on DR7"
    ),
}  # fmt: skip


def check(tmp_path: Path, attack: Attack) -> None:
    tree = tmp_path / "kernel"
    shutil.copytree(kernel_source(), tree)
    text = (tree / attack.file).read_text()
    assert text.count(attack.old) == 1
    (tree / attack.file).write_text(text.replace(attack.old, attack.new))
    # the build's own check would refuse some of them before the model sees them
    (tree / "bare" / "check.sh").write_text("exit 0\n")
    target = load(build(tree, BareConfig(), tmp_path / "cache"), BareConfig())
    result, raw = certify(target)
    assert not result.closed
    assert attack.because in result.open_because
    if attack.finds:
        assert attack.finds in {r.finding.property for r in raw}


@pytest.mark.parametrize("name", sorted(QUICK))
def test_caught_at_once(tmp_path: Path, name: str) -> None:
    check(tmp_path, QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_caught_in_the_end(tmp_path: Path, name: str) -> None:
    check(tmp_path, SLOW[name])
