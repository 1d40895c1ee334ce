# SPDX-License-Identifier: GPL-2.0-only
"""The stages of an entry, and the labels in an image that begin them.

The labels are those of kernel/bare/README.md; ``COMMITTED`` among them is the one that
the checker judges by (`target.Place.COMMITTED`).  What draws a run takes its stages from
this table too, so that a picture cannot show a commit where the checker saw none.

A label of none of them, as those that a return comes back to, changes no stage.  Variants 2
and 3 have stages that the others do not: save 3, kernelize, untrain.

An image without labels has three stages, which any kernel has: the delivery, the way to
the handler, the way back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage by its ``key``; ``title`` and ``about`` are for people; ``label`` is what the
    symbols that begin it are called, a regular expression, or empty."""

    key: str
    title: str
    about: str
    label: str = ""


COMMITTED: Final = r"atomic_ist_committed_\w+"
"""Symbols from which on no IST stack is in use."""

_V: Final = "(?:nmi|db|mc|vc)"

DOUBLE_FAULT: Final = r"atomic_ist_double_fault_\w+"
"""Symbols of a deliberate double fault."""

STAGES: Final = (
    Stage("save1", "Save 1", "hardware pushes SS, RSP, RFLAGS, CS, RIP (and an error code)"),
    Stage("save2", "Save 2", "the entry pushes the general registers", r"asm_exc_\w+"),
    Stage("save3", "Save 3", "CR3, GSBASE and SPEC_CTRL are pushed below the registers",
          rf"atomic_ist_save3_{_V}"),
    Stage("kernelize", "Kernelize", "CR3, GSBASE and SPEC_CTRL are set to the kernel's, as absolute values",
          rf"atomic_ist_kernelized?_{_V}"),
    Stage("untrain", "Untrain", "the one RET that the copy needs is untrained; then the copy is called",
          rf"atomic_ist_untrain_ret_{_V}"),
    Stage("copy", "Locate, copy", "find the outermost context and copy it to the main stack",
          rf"atomic_ist_copy_{_V}"),
    Stage("walk", "Walk, copy", "walk outwards over interrupted entries, copy each",
          r"atomic_ist_walk_\w+"),
    Stage("refuse", "Refuse", "a deliberate double fault, with nothing written", DOUBLE_FAULT),
    Stage("commit", "Commit", "clear the registers; one instruction moves RSP to the main stack",
          r"atomic_ist_commit_\w+"),
    Stage("kernel", "Set up kernel", "page tables, GSBASE and SPEC_CTRL of the kernel", COMMITTED),
    Stage("entry", "Way to handler", "what this kernel does between delivery and handler"),
    Stage("handler", "Handler", "the handler runs, clobbers what it may, and returns"),
    Stage("return", "Return", "registers are restored; the IRET goes back"),
    Stage("context", "Interrupted context", "what the first event interrupted"),
)  # fmt: skip

_BY_LABEL: Final = tuple((re.compile(s.label), s.key) for s in STAGES if s.label)


def labelled(symbol: str) -> str:
    """The key of the stage that ``symbol`` begins; empty if it is no stage's label."""
    return next((key for label, key in _BY_LABEL if label.fullmatch(symbol)), "")
