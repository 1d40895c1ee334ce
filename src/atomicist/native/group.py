# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory accesses in compiled code, checked in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from atomicist.isa.registers import SLOT
from atomicist.native.expressions import literal

KINDS: Final = {1: "u8", 2: "u16u", 4: "u32u", 8: "u64u"}
"""C types of an access by its size; they need no alignment."""

ROW: Final = 4
"""Words that are logged at once (runtime/model.h)."""

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
        """The C that writes ``value`` to ``base`` + ``low``."""
        n, at = self.number, low - self.low
        log = f"LOG_BYTES(w{n}, o{n} % 8 + {at}, {size}); " if self.aligned is None else ""
        return f"{log}*({KINDS[size]} *)(q{n} + {at}) = ({KINDS[size]}){value};"

    @property
    def room(self) -> int:
        """How many words of the log the group takes at most."""
        if self.aligned is None:
            return 4 * len(self.writes)
        return sum(count + 1 for _, count in self._logged())

    def _logged(self) -> list[tuple[int, int]]:
        """What is logged before the first access: words from that of the lowest byte on, as (first,
        how many), single ones and rows."""
        if self.aligned is None:
            return []
        bias = (self.low - self.aligned) % SLOT - self.low
        words = {w for lo, hi in self.writes for w in range((bias + lo) // SLOT, (bias + hi - 1) // SLOT + 1)}
        runs: list[tuple[int, int]] = []
        for word in sorted(words):
            if runs and word < runs[-1][1] + ROW:
                runs[-1] = (runs[-1][0], word + 1)
            else:
                runs.append((word, word + 1))
        # filled up below: what lies above, on a stack, was often just written
        sizes = [(end, end - first) for first, end in runs]
        padded = [(end, size if size == 1 else -(-size // ROW) * ROW) for end, size in sizes]
        return [(end - size, size) for end, size in padded]

    def _log(self) -> str:
        text = ""
        for first, count in self._logged():
            at = f"w{self.number} + {first}"
            if count == 1:
                text += f"\n\tLOG({at});"
                continue
            rows = " ".join(f"LOG_ROW({at}, {i});" for i in range(0, count, ROW))
            text += f"\n\t{rows} LOG_ROWS({at}, {count});"
        return text

    def check(self) -> str:
        """The C that refuses the trace, or defines where the bytes are."""
        n, low = self.number, self.low
        tests, written = [f"o{n} < K[i{n}].floor"], ""
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
            f"\tconst u32 w{n} = NSLOTS + i{n} * WORDS + o{n} / 8;{written}{self._log()}"
        )
