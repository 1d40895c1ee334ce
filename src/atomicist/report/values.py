# SPDX-License-Identifier: GPL-2.0-only
"""Says what a number is: a register of the interrupted context, an address on a stack,
a place in the code, freed memory."""

from __future__ import annotations

from typing import Final

from atomicist.report.history import History
from atomicist.report.text import name
from atomicist.spec.events import ERROR_TOKEN
from atomicist.spec.instance import POISON

_FLAGS: Final = (
    ("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10), ("OF", 11),
    ("NT", 14), ("RF", 16), ("AC", 18), ("ID", 21),
)  # fmt: skip
_PLACEHOLDER: Final = (1 << 64) - 1
_CLOBBERED: Final = 0xF0F0F0
_HARD_TO_MISTAKE: Final = 1 << 16


class Values:
    """The meanings of numbers in one replay."""

    def __init__(self, history: History) -> None:
        self._target = history.replay.target
        self._whose = "user" if history.user else "interrupted"
        self._known: dict[int, str] = {}
        for register, value in history.start.items():
            if value >= _HARD_TO_MISTAKE:
                self._known.setdefault(value, register)

    def short(self, value: int | None, slot: str = "") -> str:
        """What ``value`` in ``slot`` is, in a few words; empty if nothing is known."""
        if value is None:
            return ""
        if slot in ("CS", "SS") and value < _HARD_TO_MISTAKE:
            return f"{'user' if value & 3 else 'kernel'} {slot}"
        if slot == "RFLAGS" and value < 1 << 22:
            return " ".join(flag for flag, bit in _FLAGS if value >> bit & 1) or "no flag set"
        if value == _PLACEHOLDER:
            return "placeholder -1"
        if value in self._known:
            return f"{self._whose} {self._known[value]}"
        return self._place(value)

    def _place(self, value: int) -> str:
        if value == ERROR_TOKEN:
            return "#VC's error code"
        if value >> 32 == POISON >> 32:
            return "handler's leftover" if value & 0xFFFFFF == _CLOBBERED else "freed memory"
        region = next((r for r in self._target.regions if r.bottom < value <= r.top), None)
        if region is not None:
            return f"{name(region.name)} top" + (f"-{region.top - value:#x}" if value != region.top else "")
        if value in self._target.insns:
            return name(self._target.symbolize(value))
        return ""

    def unmistakable(self, value: int) -> bool:
        """Whether ``value``, where it is found, comes from one place."""
        return value >= _HARD_TO_MISTAKE and value != _PLACEHOLDER and bool(self.short(value))

    def long(self, value: int | None, slot: str = "") -> str:
        """What ``value`` is, for a sentence."""
        said = self.short(value, slot)
        if not said or value is None:
            return ""
        if value in self._known and said == f"{self._whose} {self._known[value]}":
            what = "user context's" if self._whose == "user" else "interrupted context's"
            return f"the {what} {self._known[value]}"
        region = next((r for r in self._target.regions if r.bottom < value <= r.top), None)
        if region is not None and said.startswith(name(region.name)):
            below = region.top - value
            on = name(region.name)
            return f"an address on {on}, {below} bytes below its top" if below else f"the top of {on}"
        long = {
            "placeholder -1": "the placeholder -1 of an event without error code",
            "handler's leftover": "what a handler left in a register that it may clobber",
            "freed memory": "what memory is overwritten with once it is free",
        }
        return long.get(said, said)
