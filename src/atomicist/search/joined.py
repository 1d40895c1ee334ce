# SPDX-License-Identifier: GPL-2.0-only
"""Several configurations of one text, certified in one run.

Without page-table isolation no entry looks at CR3: with and without PCIDs the text is the same, byte
for byte, and what the native model is given is the same but for the PCID in the kernel's CR3, which is
not part of any judgement (`CR3_COMPARED`).  Only the start contexts differ.  One run over
the start contexts of all of them, and over all that is met from these, covers each: the certificates
say by themselves for which values of CR3 they hold.

If such a run does not close without a finding, it says nothing of one of them: then each has to be run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from atomicist.machine.target import Target
from atomicist.native.tables import CR3_COMPARED
from atomicist.search.certificate import certify
from atomicist.search.progress import Listener, silent
from atomicist.search.result import Result


def same_machine(target: Target, other: Target) -> bool:
    """Whether nothing tells ``other`` from ``target`` but its words, and the PCID of its kernel."""
    return (
        target.claims
        and (target.kernel_cr3 ^ other.kernel_cr3) & CR3_COMPARED == 0
        and replace(other, config=target.config, kernel_cr3=target.kernel_cr3) == target
    )


def verify_joined(
    targets: Sequence[Target], *, vectors: Sequence[int] = (0, 1, 2, 3), workers: int = 0,
    listener: Listener = silent,
) -> tuple[Result, ...] | None:  # fmt: skip
    """The result of each of ``targets``, with the coverage of the one run that covers all of them; None
    if that found something, or was not closed.

    Raises ValueError if they are not `same_machine`."""
    first, *others = targets
    if not all(same_machine(first, other) for other in others):
        raise ValueError("only configurations of one text can be joined")
    result, raw = certify(first, vectors=tuple(vectors), workers=workers, listener=listener, also=others)
    if raw or not result.closed:
        return None
    return tuple(replace(result, config=target.config) for target in targets)
