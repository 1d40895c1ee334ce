# SPDX-License-Identifier: GPL-2.0-only
"""Memory in a recorded run: what each word is called, whose it is, and when it is free.

*Owner* is the event whose interrupted context a word keeps.  Of what hardware pushed that
is the delivered event; on the main stack, up to a commit, it is the entry that the level
belongs to, whoever copies it: the lowest level is the ongoing entry's, the next above
that of the entry which it interrupted, and so on.  Anything else belongs to who wrote it.

*In use* are the words above the stack pointer of whoever runs or will be resumed on a
stack, and a frame from its delivery until its handler is called.  From a commit on, what
lies on IST stacks is free.  This is for the picture only: the verdict is the observer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atomicist.report.history import FRAME, PT_REGS, WORD, Delivery, History
from atomicist.report.text import name as clean_name
from atomicist.search.provenance import Source
from atomicist.search.recording import Recording, Stack
from atomicist.search.replay import Write
from atomicist.spec.events import EVENTS

_NAMES: Final = frozenset(PT_REGS)
_SAVE3: Final = ("saved SPEC_CTRL", "saved GSBASE", "saved CR3")
"""Below a pt_regs, lowest address first (kernel/bare/README.md)."""

_MAX_COPIES: Final = 64
_VECTORS: Final = {event.lower() for event in EVENTS} | {"df", "mce", "irq", "tss"}


@dataclass(frozen=True, slots=True)
class _Level:
    """``names`` of words from ``address`` up, written before ``until`` and after ``since``, of
    ``owner``."""

    address: int
    since: int
    until: int
    owner: int
    names: tuple[str, ...] = PT_REGS


@dataclass(frozen=True, slots=True)
class InUse:
    """A frame of ``size`` bytes that is needed from step ``since`` to step ``until``."""

    address: int
    size: int
    since: int
    until: int


class Ownership:
    """The words of one run."""

    def __init__(self, recording: Recording, history: History) -> None:
        self._recording = recording
        self._history = history
        self._replay = recording.replay
        self._sources = {
            (index, stored.address): stored.source
            for index, moment in enumerate(recording.moments)
            for stored in moment.stored
        }
        self._slot = (*_SAVE3, *PT_REGS) if recording.save3 else PT_REGS
        self._levels = [*self._committed(), *self._shown(), *self._saved()]

    def _committed(self) -> list[_Level]:
        levels = []
        before = -1
        for step in self._history.commits:
            lowest = self._recording.moments[step].rsp
            for j, delivery in enumerate(reversed(self._history.committed_at(step))):
                address = lowest + j * self._recording.slot_bytes
                levels.append(_Level(address, before, step, delivery.number, self._slot))
            before = step
        return levels

    def _shown(self) -> list[_Level]:
        """The pt_regs that handlers were given."""
        levels = []
        for delivery in self._history.deliveries:
            if delivery.handled >= 0:
                address = self.register("RDI", delivery.handled)
                levels.append(_Level(address, delivery.step, delivery.handled, delivery.number))
        address = self._history.shown_pt_regs() or 0
        waiting = self._history.affected()
        if address and waiting is not None:
            levels.append(_Level(address, waiting.step, len(self._replay.steps), waiting.number))
        return levels

    def _saved(self) -> list[_Level]:
        """What an entry with a commit saves at the top of its IST stack."""
        if not self._recording.slot_bytes:
            return []
        end = len(self._replay.steps)
        return [
            _Level(max(d.slots()) + WORD * (1 - len(self._slot)), d.step, end, d.number, self._slot)
            for d in self._history.deliveries
        ]

    def register(self, name: str, step: int) -> int:
        """The value of a register when ``step`` began."""
        value = self._recording.start[name]
        for moment in self._recording.moments[:step]:
            for changed, now in moment.changed:
                if changed == name:
                    value = now
        return value

    def source(self, address: int, write: Write) -> Source | None:
        """Where the value of ``write`` came from, as far as it was followed."""
        return self._sources.get((write.step, address)) if write.by == "insn" else None

    def _delivered(self, address: int, write: Write) -> Delivery | None:
        if write.by != "delivery":
            return None
        return next(
            (d for d in self._history.deliveries if d.step == write.step and address in d.slots()), None
        )

    def _level(self, address: int, write: Write) -> _Level | None:
        if write.by != "insn":
            return None
        return next(
            (
                level
                for level in self._levels
                if level.address <= address < level.address + WORD * len(level.names)
                and level.since < write.step < level.until
            ),
            None,
        )

    def name(self, address: int, write: Write, depth: int = 0) -> str:
        """What the word is called after ``write``; empty if nothing is known."""
        delivered = self._delivered(address, write)
        if delivered is not None:
            return delivered.slots()[address]
        level = self._level(address, write)
        if level is not None:
            return level.names[(address - level.address) // WORD]
        source = self.source(address, write)
        if source is None or depth > _MAX_COPIES:
            return "return address" if self._is_call(write) else ""
        if source.address is None:
            named = source.register
            return named if named in FRAME or named in _NAMES else f"saved {named}"
        before = self._history.last_write(source.address, source.step)
        return self.name(source.address, before, depth + 1) if before is not None else ""

    def _is_call(self, write: Write) -> bool:
        step = self._replay.steps[write.step] if 0 <= write.step < len(self._replay.steps) else None
        return step is not None and write.by == "insn" and step.text.startswith("call")

    def owner(self, address: int, write: Write) -> int:
        """The number of the delivery that owns the word after ``write``; -1: none."""
        level = self._level(address, write)
        if level is not None:
            return level.owner
        owner = self._delivered(address, write) or self._history.owner(write)
        return owner.number if owner is not None else -1

    # --- what is in use

    def frames(self) -> list[InUse]:
        """Frames of hardware, and how long each is needed."""
        end = len(self._replay.steps)
        result = []
        for d in self._history.deliveries:
            ends = [s for s in (d.handled, d.ended) if s >= 0]
            ends += [c for c in self._history.commits if c > d.step][:1]
            result.append(InUse(d.frame, d.size, d.step, min(ends, default=end)))
        return result

    def lows(self) -> dict[str, list[tuple[int, int]]]:
        """For each stack, (step, lowest address in use after it) where that changes; the top
        of the stack if nothing on it is in use."""
        result: dict[str, list[tuple[int, int]]] = {s.name: [] for s in self._recording.stacks}
        interrupted = [self._interrupted(d) for d in self._history.deliveries]
        for index in range(-1, len(self._recording.moments)):
            low = self._low_at(index, interrupted)
            for stack in self._recording.stacks:
                now = low.get(stack.name, stack.top)
                known = result[stack.name]
                if not known or known[-1][1] != now:
                    known.append((index, now))
        return result

    def _interrupted(self, delivery: Delivery) -> tuple[Stack | None, int]:
        """Stack and RSP of the kernel context that a delivery interrupted."""
        at = {slot: address for address, slot in delivery.slots().items()}
        rsp = self._history.value(at["RSP"], delivery.step) or 0
        cs = self._history.value(at["CS"], delivery.step) or 0
        return (None if cs & 3 else self._stack(rsp)), rsp

    def _stack(self, address: int) -> Stack | None:
        return next((s for s in self._recording.stacks if s.bottom <= address < s.top), None)

    def _low_at(self, index: int, interrupted: list[tuple[Stack | None, int]]) -> dict[str, int]:
        moments = self._recording.moments
        if index + 1 < len(moments):
            rsp, user = moments[index + 1].rsp, moments[index + 1].user
        else:
            rsp = self._replay.registers.get("RSP", 0)
            user = bool(self._replay.registers.get("CS", 0) & 3)
        low: dict[str, int] = {}
        here = None if user else self._stack(rsp)
        if here is not None:
            low[here.name] = rsp
        committed = max((c for c in self._history.commits if c <= index), default=-1)
        for d, (stack, below) in zip(self._history.deliveries, interrupted, strict=True):
            open_now = d.step <= index and not 0 <= d.ended <= index
            abandoned = stack is not None and stack.kind == "ist" and d.step < committed
            if stack is not None and open_now and not abandoned:
                low[stack.name] = min(low.get(stack.name, stack.top), below)
        return low


def title(stack: Stack) -> str:
    """A stack's name for people: "NMI stack", "main stack"."""
    if stack.kind == "main":
        return "main stack"
    words = clean_name(stack.name).replace("_", " ").split(" ")
    return " ".join(word.upper() if word in _VECTORS else word for word in words)
