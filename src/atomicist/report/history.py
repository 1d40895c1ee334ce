# SPDX-License-Identifier: GPL-2.0-only
"""What happened in a replay, put in order: who interrupted whom, who wrote what, and
whose frame was lost.

A replay is a flat list of steps; here every step gets its owner, the delivered event
under way, and every delivery its story.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from atomicist.report.text import name
from atomicist.search.replay import Replay, Write

WORD: Final = 8
FRAME: Final = ("RIP", "CS", "RFLAGS", "RSP", "SS")
"""What hardware pushes, upwards from the frame's address; an error code below RIP."""

PT_REGS: Final = (
    "R15", "R14", "R13", "R12", "RBP", "RBX", "R11", "R10", "R9", "R8", "RAX", "RCX", "RDX", "RSI", "RDI",
    "orig_ax", *FRAME,
)  # fmt: skip
"""struct pt_regs, upwards (Linux arch/x86/include/asm/ptrace.h)."""

_ORDINALS: Final = ("", "first ", "second ", "third ", "fourth ", "fifth ")


@dataclass(slots=True)
class Delivery:
    """One delivered event.  ``who``: its name, unmistakable in this replay.  Steps are
    indices into the replay's; -1 for what did not happen.  ``inside``: the delivery whose
    way it interrupted; ``early``: before that one had committed, or called its handler."""

    number: int
    vector: str
    who: str
    step: int
    rip: int
    frame: int
    size: int
    inside: int
    early: bool
    handled: int = -1
    ended: int = -1

    def slots(self) -> dict[int, str]:
        """Address -> name of the words that hardware pushed."""
        names = (("error code",) if self.size > len(FRAME) * WORD else ()) + FRAME
        return {self.frame + WORD * i: slot for i, slot in enumerate(names)}


@dataclass(frozen=True, slots=True)
class Damage:
    """A word of a frame that was in use, and the ``write`` that destroyed it."""

    address: int
    slot: str
    write: Write


class History:
    """A replay in order."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.start = dict(zip(replay.registers, replay.context.registers, strict=False))
        self.deliveries: list[Delivery] = []
        self.open: list[Delivery] = []
        self.commits: list[int] = []
        self._owner: list[int] = []
        totals = Counter(vector for vector, _, _ in replay.frames)
        self._told: Counter[str] = Counter()
        for step in replay.steps:
            for gone in self.open[step.depth :]:
                gone.ended = step.index if gone.ended < 0 else gone.ended
            del self.open[step.depth :]
            now = next((d for d in reversed(self.open) if d.ended < 0), None)
            self._owner.append(now.number if now else -1)
            if step.kind == "deliver" and len(self.deliveries) < len(replay.frames):
                self._deliver(step.index, step.rip, totals)
            elif step.kind == "commit":
                self.commits.append(step.index)
            elif step.kind == "handler":
                self._handled(step.index, step.rip)
            elif step.text.startswith("iret") and now is not None and now.handled >= 0:
                now.ended = step.index

    @property
    def user(self) -> bool:
        """Whether user mode was interrupted first."""
        return bool(self.start.get("CS", 0) & 3)

    def _deliver(self, step: int, rip: int, totals: Counter[str]) -> None:
        vector, frame, size = self.replay.frames[len(self.deliveries)]
        event = name(vector if vector == "NMI" else f"#{vector}")
        self._told[vector] += 1
        nth = self._told[vector]
        ordinal = _ORDINALS[nth] if nth < len(_ORDINALS) else f"{nth}th "
        who = f"the {ordinal}{event}" if totals[vector] > 1 else f"the {event}"
        parent = next((d for d in reversed(self.open) if d.ended < 0), None)
        early = parent is not None and parent.handled < 0 and not any(c > parent.step for c in self.commits)
        delivery = Delivery(
            len(self.deliveries), vector, who, step, rip, frame, size, parent.number if parent else -1, early
        )
        self.deliveries.append(delivery)
        self.open.append(delivery)
        self._owner[step] = delivery.number

    def _handled(self, step: int, rip: int) -> None:
        vector = self.replay.target.handlers.get(rip)
        last = step == len(self.replay.steps) - 1 and self.replay.verdict.property
        waiting = [d for d in self.open if d.vector == vector and d.handled < 0]
        if waiting and not last:
            waiting[-1].handled = step

    def committed_at(self, step: int) -> list[Delivery]:
        """The deliveries that the commit at ``step`` was the first for."""
        before = max((c for c in self.commits if c < step), default=-1)
        return [d for d in self.deliveries if before < d.step < step and not 0 <= d.ended < step]

    def owner(self, write: Write) -> Delivery | None:
        """The delivery in whose course ``write`` happened."""
        return self.owner_of_step(write.step)

    def owner_of_step(self, step: int) -> Delivery | None:
        """The delivery in whose course ``step`` happened."""
        number = self._owner[step] if 0 <= step < len(self._owner) else -1
        return self.deliveries[number] if number >= 0 else None

    def last_write(self, address: int, step: int) -> Write | None:
        """The last write to the word at ``address`` up to ``step``."""
        writes = [w for w in self.replay.writes.get(address, ()) if w.step <= step]
        return writes[-1] if writes else None

    def value(self, address: int, step: int) -> int | None:
        """The word at ``address`` after ``step``; None if nobody ever wrote it."""
        write = self.last_write(address, step)
        if write is not None:
            return write.value
        later = self.replay.writes.get(address)
        return later[0].old if later else None

    def damage(self, delivery: Delivery) -> list[Damage]:
        """The words of the delivery's frame that were overwritten while it was in use:
        after its delivery, before it had ended."""
        end = delivery.ended if delivery.ended >= 0 else len(self.replay.steps)
        result = []
        for address, slot in delivery.slots().items():
            for write in self.replay.writes.get(address, ()):
                if delivery.step < write.step < end and write.by != "freed" and write.value != write.old:
                    result.append(Damage(address, slot, write))
                    break
        return result

    def affected(self) -> Delivery | None:
        """The delivered event whose context or handling was lost, as far as it is known."""
        verdict, open_now = self.replay.verdict, self.open
        if verdict.property in ("IST001", "IST020", "IST011", "IST012"):
            vector = self.replay.target.handlers.get(verdict.rip)
            return next((d for d in reversed(open_now) if d.vector == vector and d.handled < 0), None)
        if verdict.property == "IST003":
            return next((d for d in self.deliveries if d.vector == verdict.subject and d.handled < 0), None)
        if verdict.property == "IST002":
            now = self.replay.registers
            for delivery, instance in reversed(list(zip(open_now, self.replay.instances, strict=False))):
                if all(instance.context.get(r) == now.get(r) for r in ("RIP", "RSP", "CS")):
                    return delivery
            return None
        damaged = [d for d in open_now if self.damage(d)]
        return damaged[0] if damaged else None

    def shown_pt_regs(self) -> int | None:
        """Address of the pt_regs that the offended handler was given."""
        if self.replay.verdict.property not in ("IST001", "IST020"):
            return None
        if self.replay.target.handlers.get(self.replay.verdict.rip) is None:
            return None
        address = self.replay.registers.get("RDI", 0)
        region = self.replay.target.region(address)
        whole = region is not None and address % WORD == 0 and address + WORD * len(PT_REGS) <= region.top
        return address if whole else None

    def returned_frame(self) -> int | None:
        """Address of the frame that the last return went through, if it led astray."""
        if self.replay.verdict.property not in ("IST002", "IST005"):
            return None
        now = self.replay.registers
        wanted = [now.get(r) for r in ("RIP", "CS", "RSP")]
        for address in sorted(self.replay.writes, reverse=True):
            if [self.replay.memory.get(address + WORD * i) for i in (0, 1, 3)] == wanted:
                return address
        return None

    def last_iret(self, after: int, before: int) -> int:
        """The last IRET between two steps, -1 if there is none: it unblocks NMIs."""
        found = -1
        for step in self.replay.steps[after + 1 : before]:
            if step.kind == "insn" and step.text.startswith("iret"):
                found = step.index
        return found
