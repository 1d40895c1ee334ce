# SPDX-License-Identifier: GPL-2.0-only
"""What the series says of itself: the cover letter and the message of each patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atomicist.tree.hooks import Step


@dataclass(frozen=True, slots=True)
class Message:
    """A patch's subject and body."""

    subject: str
    body: str


PREFIX: Final = "PATCH RFC"

ASSISTED_BY: Final = r"[\w.-]+:[\w.-]+( [\w.+-]+)*"
"""What may stand behind Assisted-by: AGENT_NAME:MODEL_VERSION [TOOL]... (Linux,
Documentation/process/coding-assistants.rst). Who submits the series knows which; we do not guess. There is no
Signed-off-by: that, too, is for a person."""

COVER: Final = Message(
    "x86/entry: Atomic entry of NMI, #DB, #MC and #VC",
    """\
NMI, #DB, #MC and #VC arrive on IST stacks, and IST rewinds: the same vector
delivered again starts at the same stack top. Any IRET unmasks NMIs. So when a
#MC or #VC hits the first instructions of the NMI entry, its return lets in
another NMI, whose frame overwrites that of the first, and the context that
the first one interrupted is gone. Each vector has an answer of its own to
part of this (the NMI entry's three frames, the TSS rewriting of #VC); none
holds against the others.

This series gives the four vectors one entry, after Lai Jiangshan's RFC of
April 2023 and LPC talk of 2024. The IST stacks become landing pads. An entry
saves its context there, copies it to a main stack that the four share, and
moves RSP to it with one instruction, the commit. An entry that interrupts
another before its commit completes it too, and commits for both.

What differs from the RFC:

 - It is incremental: infrastructure first, then one vector a patch. The
   old entries stay; ist_entry=legacy chooses them at boot, and
   ist_entry=nmi,mc those vectors only, for bisection.
 - No CALL, RET or indirect branch before IBRS_ENTER and UNTRAIN_RET: the C
   part is entered by JMP, and commits itself in its last statement.
 - No exemption from objtool: it checks the new sections as it checks
   .entry.text, and follows the C code to UNTRAIN_RET.
 - Stack traces know the new stacks.
 - debugfs has counters: x86/atomic_ist.

How it was tested:

 - The compiled entry is executed in a model that delivers every event that
   the processor can deliver, at every instruction boundary, in all nestings,
   until none is left to try.
 - In QEMU (TCG): NMI, #DB and #MC are delivered to the running kernel at
   every instruction boundary of the entry of another, and a third one behind
   them, from user and from kernel mode. With ist_entry=legacy the context is
   lost at the first boundaries of the NMI entry, with ist_entry=atomic at
   none. Each outcome is the one that the model has predicted from vmlinux.
 - A user-space test holds registers while all three arrive at random, with
   and without PTI, FSGSBASE, retbleed=unret, on Intel and AMD models, on one
   CPU and two.
 - A WARN inside the handler of an NMI, and perf's call chains there, show all
   that was called, through the main stack.
 - Each patch is built (W=1 and sparse on the new files, objtool --unret on
   all) without a warning, and booted with the self-test: registers held while
   NMIs, #DB and #MC arrive.

The reproducer and all of these tests: atomicist linux inject, stress, traces,
series --bisect.

What could not be tested: real hardware; #VC and SEV-ES (QEMU has no such
guest without the processor); Xen PV (the old entries are kept there); SMM;
shadow stacks; a KVM host.
""",
)

MESSAGES: Final = {
    Step.OBJTOOL: Message(
        "objtool: Check .entry.text.* as .entry.text",
        """\
Entry code whose place in the image matters needs sections of its own, to be
laid out by the linker script. Hold code in .entry.text.* to the same rules
as code in .entry.text: no calls into instrumented code, and unwind hints
that agree with it.
""",
    ),
    Step.STACKS: Message(
        "x86/atomic_ist: Add the stacks of the atomic IST entry",
        """\
NMI, #DB, #MC and #VC are going to share one stack for each CPU, the main
stack, and to have one landing pad each, where the processor pushes its
frame. Map them in the cpu entry area, so that they can be used with the
user's page table, and tell the unwinder about them.

They are besides the exception stacks that there are: either entry of a
vector can then be chosen at boot, and RSP on a pad always is that of an
atomic entry.
""",
    ),
    Step.GATES: Message(
        "x86/atomic_ist: Choose the entries at boot",
        """\
Add ist_entry=, which chooses between the two entries of each vector, and
install the gates and IST entries of those that are atomic. There are none
yet: each comes with a patch of its own.

The gates are installed after cpu_init_exception_handling() has set up the
TSS. The early #DB gate has no IST entry, and keeps the old stub: the atomic
one finds everything from RSP, which would be on the task stack.

Xen PV delivers on the task stack, by way of stubs of its own; there nothing
changes.
""",
    ),
    Step.ENTRY: Message(
        "x86/entry: Add the atomic IST entry",
        """\
The entry code itself, with no gate that leads to it yet.

Between the delivery and the commit an entry may be abandoned at any
instruction: it reads nothing but the frames on the pads, which only the
deliveries and the saves of their own vectors write, and what it writes to
the main stack depends on the outermost interrupted context alone. An entry
that interrupts it walks from frame to frame, writes the same again, and a
frame for each entry in between that makes it go on behind its commit. That
is written up in atomic_ist.c.

The comparisons of RIP and RSP with each other find what must not happen, and
what would overwrite a frame raises a double fault instead, which says why.

The four vectors are four copies of the same code, each in its section, for
RIP has to tell the vector.
""",
    ),
    Step.NMI: Message(
        "x86/nmi: Enter NMI atomically",
        """\
With this an NMI that arrives on a pad is committed by whoever interrupts
it, and a second NMI, let in by the IRET of a #MC, #DB or #VC, does not
overwrite the first one's frame.

The asm variable "NMI executing" and the repeat loop are not needed: a nested
NMI gets a frame of its own on the main stack, and exc_nmi() latches it in
nmi_state as it does for an NMI that arrived in user mode.
""",
    ),
    Step.MC: Message(
        "x86/mce: Enter #MC atomically",
        """\
A #MC may interrupt any instruction, the entry of an NMI included. Commit it
on the main stack, so that it completes the entry that it has interrupted.
""",
    ),
    Step.DB: Message(
        "x86/traps: Enter #DB atomically",
        """\
As NMI and #MC. Breakpoints cannot be set on the cpu entry area, which the
new stacks are a part of, nor on entry text.
""",
    ),
    Step.VC: Message(
        "x86/sev-es: Enter #VC atomically",
        """\
As the others. The IST entry of #VC need not be moved while an NMI is being
handled: a further #VC does not overwrite the frame of one that the NMI has
interrupted. Nor does its handler have to go to the interrupted stack or a
fall-back stack: the main stack is one where #VC can nest.

Not tested in an SEV-ES guest.
""",
    ),
    Step.DOCUMENTATION: Message(
        "Documentation/x86: Describe the atomic IST entry",
        """\
Say what it does, how to choose it, and what its counters mean.
""",
    ),
}
