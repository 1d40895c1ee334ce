# SPDX-License-Identifier: GPL-2.0-only
"""Tells how a context was lost: which words were overwritten by whom, where the wrong
value came from, where the right one was, and who should have completed the entry."""

from __future__ import annotations

import re
from typing import Final

from atomicist.report.history import PT_REGS, WORD, Damage, Delivery, History
from atomicist.report.places import Places
from atomicist.report.text import join, name
from atomicist.report.values import Values
from atomicist.search.replay import Write

_REASONS: Final = {
    "twice": "on its walk outwards it met a vector for the second time",
    "contradiction": "RSP and RIP of an interrupted context name different entries",
    "overflow": "there is no room left on the main stack",
}
"""Words in the labels of a deliberate double fault (kernel/bare/README.md)."""


def how(history: History, values: Values, places: Places) -> list[str]:
    """The story of the loss in sentences; empty where nothing can be said."""
    return _Loss(history, values, places).sentences()


class _Loss:
    def __init__(self, history: History, values: Values, places: Places) -> None:
        self._history = history
        self._values = values
        self._places = places
        self._target = history.replay.target
        self._end = len(history.replay.steps) - 1

    def sentences(self) -> list[str]:
        affected = self._history.affected()
        told: list[str] = []
        if affected is not None:
            told += self._overwritten(affected)
        if not told:
            told += self._wrong_value()
        if not told:
            told += self._contradiction() + self._own_memory()
        told += self._right_value(affected)
        if affected is not None:
            told += self._duty(affected)
        return told

    # --- a frame that was overwritten

    def _overwritten(self, delivery: Delivery) -> list[str]:
        damage = self._history.damage(delivery)
        if not damage:
            return []
        where = self._on(delivery.frame).removeprefix(" on ") or "memory"
        told = [
            f"Hardware saved what {delivery.who} had interrupted in one place only: its frame on {where}, "
            f"{delivery.frame:#x} to {delivery.frame + delivery.size:#x}."
        ]
        by_owner: dict[tuple[int, str], list[Damage]] = {}
        for d in damage:
            owner = self._history.owner(d.write)
            by_owner.setdefault((owner.number if owner else -1, d.write.by), []).append(d)
        for (number, by), some in by_owner.items():
            told.append(self._culprit(some, self._history.deliveries[number] if number >= 0 else None, by, where))
            if by == "delivery" and number >= 0:
                told += self._let_in(delivery, self._history.deliveries[number])
        told += self._elsewhere(damage)
        return told

    def _culprit(self, damage: list[Damage], owner: Delivery | None, by: str, where: str) -> str:
        words = join([d.slot for d in reversed(damage)])
        were = "was" if len(damage) == 1 else "were"
        if by == "delivery" and owner is not None:
            return (
                f"{words} {were} overwritten by the hardware delivery of {owner.who} at {self._places.full(owner.rip)}: "
                f"the stack of its gate starts at the same top of {where} again."
            )
        first = min(damage, key=lambda d: d.write.step)
        who = f"in the course of {owner.who}, " if owner else ""
        return f"{words} {were} overwritten {who}by {self._places.full(first.write.rip)}."

    def _let_in(self, delivery: Delivery, owner: Delivery) -> list[str]:
        if owner.vector != "NMI":
            return []
        iret = self._history.last_iret(delivery.step, owner.step)
        if iret < 0:
            return []
        step = self._history.replay.steps[iret]
        return [
            f"NMIs are blocked from an NMI's delivery to the next IRET, of whomever. It was the IRET at "
            f"{self._places.full(step.rip)} that let {owner.who} in, although {delivery.who} was not done with its frame."
        ]

    def _elsewhere(self, damage: list[Damage]) -> list[str]:
        frame = {d.address for d in damage}
        lost = [
            f"{d.slot} ({d.write.old:#x})"
            for d in damage
            if d.slot in ("RIP", "RSP")
            and not any(self._now(a) == d.write.old for a in self._history.replay.writes if a not in frame)
        ]
        return [f"There is no other copy of {join(lost)}: where to go on is lost."] if lost else []

    def _now(self, address: int) -> int | None:
        return self._history.value(address, self._end)

    # --- a wrong value in a right place

    def _wrong_value(self) -> list[str]:
        verdict = self._history.replay.verdict
        regs = self._history.shown_pt_regs()
        frame = self._history.returned_frame() if verdict.property in ("IST002", "IST005") else None
        if regs is not None and verdict.subject in PT_REGS:
            address, what = regs + WORD * PT_REGS.index(verdict.subject), "of the pt_regs"
        elif frame is not None and verdict.subject in PT_REGS[-5:]:
            address, what = frame + WORD * PT_REGS[-5:].index(verdict.subject), "of the frame that was returned through"
        else:
            return []
        write = self._history.last_write(address, self._end)
        if write is None:
            return []
        told = [f"The wrong {verdict.subject} {what} ({address:#x}{self._on(address)}) was written {self._by(write)}."]
        return told + self._came_from(write)

    def _came_from(self, write: Write) -> list[str]:
        """Where the wrong value had been before."""
        if write.value < 1 << 16:
            return []
        before = sorted(
            (w.step, a, w)
            for a, writes in self._history.replay.writes.items()
            for w in writes
            if w.value == write.value and w.step < write.step and w.by == "insn"
        )
        return [f"Before, that value was put at {a:#x}{self._on(a)} {self._by(w)}." for _, a, w in reversed(before[-3:])]

    def _on(self, address: int) -> str:
        region = self._target.region(address)
        return f" on {name(region.name)}" if region else ""

    def _by(self, write: Write) -> str:
        owner = self._history.owner(write)
        course = f" in the course of {owner.who}" if owner else ""
        if write.by == "delivery":
            return f"by hardware, delivering {owner.who if owner else 'an event'} at {self._places.full(write.rip)}"
        if write.by == "freed":
            return f"when that memory was free, at {self._places.full(write.rip)}"
        return f"by {self._places.full(write.rip)}{course}"

    # --- the right value

    def _right_value(self, affected: Delivery | None) -> list[str]:
        expected = self._history.replay.verdict.expected
        if expected is None or not self._values.unmistakable(expected):
            return []
        if affected is not None and any(d.write.old == expected for d in self._history.damage(affected)):
            return []
        told = []
        holders = []
        for address, writes in self._history.replay.writes.items():
            saved = next((w for w in writes if w.value == expected and w.by != "freed"), None)
            if saved is not None:
                holders.append((saved.step, address, saved))
        for _, address, saved in sorted(holders)[:2]:
            after = next((w for w in self._history.replay.writes[address] if w.step > saved.step and w.value != expected), None)
            fate = "It is still there" if after is None else (
                f"It was there until {self._places.bare(after.rip)}, where the image says that this memory is free"
                if after.by == "freed" else f"It was overwritten {self._by(after)}"
            )  # fmt: skip
            told.append(f"The right value was saved at {address:#x}{self._on(address)} {self._by(saved)}. {fate}.")
        if not told:
            told.append("The right value was never saved to memory.")
        return told

    # --- a refusal, a store

    def _contradiction(self) -> list[str]:
        """Why the entry gave up: what the last frame says."""
        verdict, last = self._history.replay.verdict, self._history.open[-1:]
        if verdict.property not in ("IST015", "IST016") or not last:
            return []
        why = next((text for word, text in _REASONS.items() if f"_{word}_" in self._places.bare(verdict.rip)), "")
        slots = {slot: address for address, slot in last[0].slots().items()}
        said = []
        for slot in ("RIP", "RSP"):
            value = self._history.value(slots[slot], last[0].step)
            if value is not None:
                said.append(f"{slot} {value:#x} ({self._values.long(value, slot) or 'nothing that is known here'})")
        who = last[0].who
        told = [f"The entry of {who} refused: {why}."] if why else []
        return [*told, f"The frame of {who} says that it interrupted {join(said)}."]

    def _own_memory(self) -> list[str]:
        """Whose memory a store went to."""
        match = re.search(r"0x[0-9a-f]+", self._history.replay.verdict.subject)
        if self._history.replay.verdict.property != "IST006" or match is None:
            return []
        address = int(match.group(), 16)
        region = self._target.region(address)
        for delivery, instance in zip(self._history.open, self._history.replay.instances, strict=False):
            rsp = instance.context["RSP"]
            if region is not None and region.bottom <= rsp <= address:
                whose = f"what {delivery.who} interrupted"
                return [
                    f"RSP of {whose} is {rsp:#x}: on {name(region.name)}, all from there up to {region.top:#x} "
                    f"is in use. The store goes to {address:#x}."
                ]
        return []

    # --- who should have done it

    def _duty(self, affected: Delivery) -> list[str]:
        inner = next((d for d in self._history.deliveries if d.inside == affected.number and d.early), None)
        if inner is None:
            return []
        if self._target.claims:
            chain = [d for d in self._history.deliveries if d.early and d.number >= inner.number]
            last = chain[-1]
            return [
                f"{inner.who[0].upper()}{inner.who[1:]} interrupted the entry of {affected.who} before its commit. An entry "
                f"that is interrupted there is not resumed there: whoever comes last before a commit has to complete it, "
                f"here {last.who}, by copying the frame and the original registers of {affected.who} to the main stack."
            ]
        if self._history.damage(affected):
            return [
                f"{inner.who[0].upper()}{inner.who[1:]} interrupted {affected.who} before its handler was called. Either "
                f"{affected.who} had to move its frame off this stack before anything could be let in, or "
                f"{inner.who} had to keep the stack from being used again until it was done."
            ]
        return []
