# SPDX-License-Identifier: GPL-2.0-only
"""One delivered event, and the context that it interrupted; what freed stack holds.

Some sequences of instructions must not be resumed: a safe-RET is `LEA 8(%rsp), %rsp; RET`, of
which the RET is safe only right behind the CALL that led there (SRSO).  Linux since 6.1.192 and
6.12.117 edits the interrupted context on entry: as if the rest of the sequence had run
(arch/x86/kernel/cpu/bugs.c, handle_interrupted_saferet).  That is the context to be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from atomicist.machine.memory import WORD, Memory

POISON: Final = 0xDEAD_57AC_0000_0000


@lru_cache(maxsize=4096)
def poison(bottom: int, top: int) -> bytes:
    """What is in [``bottom``, ``top``), whole words, when it has been freed."""
    return b"".join((POISON | a & 0xFFFFFF).to_bytes(8, "little") for a in range(bottom, top, 8))


@dataclass(slots=True)
class Instance:
    """One delivered event: its ``vector``, the ``context`` it interrupted, as it is to be resumed."""

    vector: str
    context: dict[str, int]
    in_entry: bool
    handled: bool = False
    abandoned: bool = False
    frame: int = 0
    """Address of the frame that hardware pushed for it."""
    hit: dict[str, int] | None = None
    """RIP and RSP where it hit, if that is not where the context is to be resumed."""

    @property
    def rsp(self) -> int:
        """RSP where it hit."""
        return (self.hit or self.context)["RSP"]

    def finish(self, memory: Memory, *, lea_left: bool) -> bool:
        """It hit a safe-RET: the context is to be resumed as the rest of that would leave it, which
        is a RET, and if ``lea_left`` the LEA before it.  False if there is no memory to return by."""
        self.hit = {name: self.context[name] for name in ("RIP", "RSP")}
        sp = self.context["RSP"] + (WORD if lea_left else 0)
        rip = memory.word(sp)
        if rip is not None:
            self.context |= {"RIP": rip, "RSP": sp + WORD}
        return rip is not None
