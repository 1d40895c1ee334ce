# SPDX-License-Identifier: GPL-2.0-only
"""The properties: what must hold of any kernel's exception entry, as a table.

They are said in terms that hardware and handlers can see and do not know the
scheme, so the same ruler measures every entry.  Each has a number that never
changes, a sentence, what a violation means, and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Property:
    """``number`` (IST001 ...), the ``key`` by which engines name it, its ``title``,
    what it ``means`` when it is violated, what to ``do``."""

    number: str
    key: str
    title: str
    means: str
    do: str


_TABLE: Final = (
    Property("IST001", "HANDLER_CONTEXT", "the handler sees exactly the interrupted context",
             "A handler was called with a pt_regs that differs from the context its event interrupted.",
             "Look for the writer of the differing slot: the frame was overwritten, or copied from the wrong place."),
    Property("IST002", "RESUMED_CONTEXT", "the interrupted context is resumed unchanged",
             "A context runs again where it was interrupted, but with a register or MSR changed.",
             "Follow the register from the handler's pt_regs to the return: which step lost it?"),
    Property("IST003", "EVENT_LOST", "every delivered event is handled",
             "The interrupted context runs again and an event that was delivered never reached its handler.",
             "Find the entry that was abandoned: whoever came next had to complete it."),
    Property("IST004", "HANDLED_TWICE", "no event is handled twice",
             "A handler ran for which no delivered event was open.",
             "Look for an entry that was both completed by another and resumed."),
    Property("IST005", "LOST_CONTEXT", "control returns only to a context that was interrupted",
             "A return left for a place where nobody was interrupted: the context that should run is lost.",
             "The frame that was returned through is not the one hardware wrote: find what overwrote it."),
    Property("IST006", "LIVE_OVERWRITTEN", "no stack slot in use is overwritten",
             "The entry wrote to stack that the interrupted context owns.",
             "Check where the copy starts: below the interrupted RSP, aligned down."),
    Property("IST007", "WRITE_OUTSIDE", "before its commit an entry writes only its own stacks",
             "An atomic entry stored to memory that is neither an IST stack nor the main stack.",
             "Whatever it stores has to wait until after the commit, where it happens once."),
    Property("IST008", "USER_MEMORY", "user memory is not touched",
             "The entry read or wrote a user page; SMAP refuses it, and its RSP is not to be trusted.",
             "Test for user mode and for the SYSCALL gap before using the interrupted RSP."),
    Property("IST009", "NOT_IN_USER_TABLES", "under the user's CR3 nothing unmapped is touched",
             "With the user's page tables in force the entry touched a page that they do not map.",
             "Switch CR3 first, or keep what is needed in the CPU entry area."),
    Property("IST010", "FOREIGN_GSBASE", "no GS-relative access with a foreign GSBASE",
             "A %gs: access happened while GSBASE was not the kernel's.",
             "Set GSBASE before the access, from a source that the user does not control."),
    Property("IST011", "ENVIRONMENT", "handlers run in the kernel's environment",
             "A handler was called with the user's GSBASE or CR3, with another context's PCID, with AC or DF set, on an "
             "unaligned stack, or for user mode on the main stack, where it could not change tasks.",
             "Compare the prologue with the property's register."),
    Property("IST012", "NO_ROOM", "a handler on the main stack has the room it may count on",
             "Entries were stacked so deep that the handler's reserve is used up, and nobody noticed.",
             "The overflow test before the copy is missing, late or off."),
    Property("IST013", "ENDLESS", "every run ends within its bound",
             "A run did not reach the interrupted context within the bound on instructions.",
             "Look for a loop whose exit the injected event can spoil."),
    Property("IST014", "FAULT", "no instruction of the entry faults",
             "An instruction of entry code raised an exception, which would run on the stack it found.",
             "The message names the instruction and the vector."),
    Property("IST015", "DOUBLE_FAULT", "no double fault without cause",
             "The entry gave up deliberately although the machine's state was consistent and room was left.",
             "The test that led there is too strict, or tests the wrong thing."),
    Property("IST016", "NO_DOUBLE_FAULT", "a contradiction ends in a double fault",
             "The interrupted context contradicts itself (RSP and RIP, or a vector met twice) and the entry went on.",
             "Cross-check RSP with RIP and bound the walk."),
    Property("IST017", "UNMODELLED", "everything executed is modelled",
             "The run met an instruction, MSR or selector that the model does not know. Nothing is claimed about it.",
             "Add microcode for it with the manual's section, or keep it off the path."),
    Property("IST018", "NO_CODE", "control stays in known code",
             "Control reached an address where the image has no code.",
             "Look for a corrupted return address or a missing symbol."),
    Property("IST019", "CLAIM", "at a commit label RSP is on the main stack",
             "The image claims that the IST stacks are free, but the entry still runs on one or skipped its commit.",
             "Move the label behind the commit, or the commit before the label."),
    Property("IST020", "PLACEHOLDER", "the error-code slot says -1 where there is no system call to restart",
             "A handler found the placeholder error code missing: its first store is not replicated.",
             "Write it again after the commit."),
    Property("IST021", "UNMAPPED", "no access to unmapped memory",
             "The entry touched an address that no page table maps.",
             "Look where the address was computed from."),
    Property("IST022", "NON_CANONICAL", "no access to a non-canonical address",
             "The entry used an address that is not canonical.",
             "Look where the address was computed from."),
    Property("IST023", "READ_ONLY", "no write to read-only memory",
             "The entry wrote to a page that is mapped read-only.",
             "Look where the address was computed from."),
    Property("IST024", "FETCH", "no instruction is fetched from a page that is not mapped there",
             "Control reached a page that the page tables in force do not map executable.",
             "Keep the code in entry text, or switch CR3 first."),
    Property("IST025", "CONSTANT_CHANGED", "what entries rely on keeps its value",
             "The entry changed memory that every later entry takes to be constant: the TSS, per-CPU bases.",
             "Do not edit the TSS or per-CPU constants on the way; a nested entry would find them half changed."),
    Property("IST026", "PREDICTED", "no return or indirect branch before predictions are the kernel's",
             "A RET or indirect branch executed, an atomic entry called, or a handler was called, while user mode decides where it is predicted to go (RETBLEED).",
             "Set IBRS, untrain or flush first; until then nothing may be called that returns."),
    Property("IST027", "NO_FENCE", "a SWAPGS that may be skipped is fenced before GS is used",
             "Code behind a conditional SWAPGS can use %gs speculatively with the wrong base (CVE-2019-1125).",
             "Put an LFENCE, or a write of CR3, on both ways before the first %gs access."),
    Property("IST028", "COMMITTED_STATE", "at a commit label every entry looks the same",
             "The image claims by a label that an entry is complete there, but a register is not as the claim says: "
             "RAX is RSP, the other general registers are 0, IF, TF, NT, AC and DF are clear.",
             "Whoever completes an entry for another must leave what the entry itself leaves: compare the register's "
             "two ways to the label, the commit and the return by IRET."),
    Property("IST029", "DOUBLE_FAULT_REGS", "a deliberate double fault tells its handler where the registers are",
             "The entry gave up with cause, but RDI is not the ongoing entry's pt_regs: what the #DF handler prints is wrong.",
             "Load RDI on every way to the double fault."),
    Property("IST030", "RESUMED_INSIDE", "a sequence that must not be interrupted is not resumed",
             "A return leads into a safe-RET sequence. What ran meanwhile may have trained the return that is left (SRSO).",
             "Leave in pt_regs what the rest of the sequence would: RIP from the stack, RSP behind it."),
)  # fmt: skip

PROPERTIES: Final = MappingProxyType({p.number: p for p in _TABLE})
"""All properties by number."""

BY_KEY: Final = MappingProxyType({p.key: p for p in _TABLE})
"""All properties by the key that engines use."""

CODES: Final = MappingProxyType({p.key: int(p.number[3:]) for p in _TABLE})
"""Engine key -> the number as an integer, for the native runtime."""
