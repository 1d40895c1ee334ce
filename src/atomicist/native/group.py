# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory accesses in compiled code, checked in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from atomicist.isa.registers import SLOT
from atomicist.native.expressions import literal

KINDS: Final = {1: "u8", 2: "u16u", 4: "u32u", 8: "u64u"}
"""C types of an access by its size; they need no alignment."""

GROUP_SPAN: Final = 1024
"""Bytes between the first and the last access that are checked together."""


@dataclass(slots=True)
class Group:
    """Accesses relative to ``base`` that are checked together; offsets in bytes."""

    number: int
    base: str
    reads: list[tuple[int, int]] = field(default_factory=list)
    writes: list[tuple[int, int]] = field(default_factory=list)
    aligned: int | None = None

    @property
    def low(self) -> int:
        return min(lo for lo, _ in self.reads + self.writes)

    def fits(self, low: int, high: int) -> bool:
        """Whether [``low``, ``high``) may join without making the check too strict."""
        spans = [(low, high), *self.reads, *self.writes]
        return max(hi for _, hi in spans) - min(lo for lo, _ in spans) <= GROUP_SPAN

    def store(self, low: int, size: int, value: str) -> str:
        """The C that writes ``value`` to ``base`` + ``low``, logged by words."""
        n, at = self.number, low - self.low
        if self.aligned is None:
            log = f"LOG_BYTES(w{n}, o{n} % 8 + {at}, {size});"
        else:
            first = (self.low - self.aligned) % SLOT + at
            words = range(first // SLOT, (first + size - 1) // SLOT + 1)
            log = " ".join(f"LOG(w{n} + {word});" for word in words)
        return f"{log} *({KINDS[size]} *)(q{n} + {at}) = ({KINDS[size]}){value};"

    def check(self) -> str:
        """The C that refuses the trace, or defines where the bytes are."""
        n, low = self.number, self.low
        tests, written = [], ""
        if self.reads:
            tests.append(f"o{n} + {max(hi for _, hi in self.reads) - low} > P[i{n}].rlimit[root]")
        if self.writes:
            tests.append(f"o{n} + {max(hi for _, hi in self.writes) - low} > P[i{n}].wlimit[root]")
            tests.append(f"(early && !(P[i{n}].flags & SCRATCH))")
            written = f"\n\tWRITTEN(i{n}, (o{n} + {min(lo for lo, _ in self.writes) - low}) / 8);"
        if self.aligned is not None:
            tests.append(f"((o{n} + {(self.aligned - low) % SLOT}) & 7)")
        return (
            f"const u64 a{n} = {self.base} + {literal(low)};\n"
            f"\tconst u32 o{n} = (u32)a{n} & (PAGE - 1), i{n} = page_at(a{n});\n"
            f"\tREFUSE_IF((a{n} ^ o{n}) != P[i{n}].base || {' || '.join(tests)});\n"
            f"\tu8 *const q{n} = M + i{n} * PAGE + o{n};\n"
            f"\tconst u32 w{n} = NSLOTS + i{n} * WORDS + o{n} / 8;{written}"
        )
