# SPDX-License-Identifier: GPL-2.0-only
"""Tells how a context was lost: which words were overwritten by whom, where the wrong
value came from, where the right one was, and who should have completed the entry."""

from __future__ import annotations

import re
from typing import Final

from atomicist.report.history import FRAME, PT_REGS, WORD, Damage, Delivery, History
from atomicist.report.places import Places
from atomicist.report.text import join, name, sentence
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
        place = f"{delivery.frame:#x} to {delivery.frame + delivery.size:#x}"
        what = f"what {delivery.who} had interrupted"
        told = [f"Hardware saved {what} in one place only: its frame on {where}, {place}."]
        by_owner: dict[tuple[int, str], list[Damage]] = {}
        for d in damage:
            owner = self._history.owner(d.write)
            by_owner.setdefault((owner.number if owner else -1, d.write.by), []).append(d)
        for (number, by), some in by_owner.items():
            culprit = self._history.deliveries[number] if number >= 0 else None
            told.append(self._culprit(some, culprit, by, where))
            if by == "delivery" and culprit is not None:
                told += self._let_in(delivery, culprit)
        told += self._elsewhere(damage)
        return told

    def _culprit(self, damage: list[Damage], owner: Delivery | None, by: str, where: str) -> str:
        words = join([d.slot for d in reversed(damage)])
        were = "was" if len(damage) == 1 else "were"
        if by == "delivery" and owner is not None:
            at = self._places.full(owner.rip)
            again = f"the stack of its gate starts at the same top of {where} again"
            return f"{words} {were} overwritten by the hardware delivery of {owner.who} at {at}: {again}."
        first = min(damage, key=lambda d: d.write.step)
        who = f"in the course of {owner.who}, " if owner else ""
        return f"{words} {were} overwritten {who}by {self._places.full(first.write.rip)}."

    def _let_in(self, delivery: Delivery, owner: Delivery) -> list[str]:
        if owner.vector != "NMI":
            return []
        iret = self._history.last_iret(delivery.step, owner.step)
        if iret < 0:
            return []
        where = self._places.full(self._history.replay.steps[iret].rip)
        whose = self._history.owner_of_step(iret)
        by = f" of {whose.who}" if whose is not None else ""
        return [
            "NMIs are blocked from an NMI's delivery to the next IRET, of whomever.",
            f"It was the IRET{by} at {where} that let {owner.who} in.",
            f"But {delivery.who} was not done with its frame.",
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
        frame = self._history.returned_frame()
        if regs is not None and verdict.subject in PT_REGS:
            address, what = regs + WORD * PT_REGS.index(verdict.subject), "pt_regs"
        elif frame is not None and verdict.subject in FRAME:
            address, what = frame + WORD * FRAME.index(verdict.subject), "frame that was returned through"
        else:
            return []
        write = self._history.last_write(address, self._end)
        if write is None:
            return []
        where = f"{address:#x}{self._on(address)}"
        told = f"The wrong {verdict.subject} of the {what} ({where}) was written {self._by(write)}."
        return [told, *self._came_from(write)]

    def _came_from(self, write: Write) -> list[str]:
        """Where the wrong value had been before."""
        if write.value < 1 << 16:
            return []
        before = [
            (a, w)
            for a, writes in self._history.replay.writes.items()
            for w in writes
            if w.value == write.value and w.step < write.step and w.by == "insn"
        ]
        before.sort(key=lambda at: at[1].step, reverse=True)
        return [f"Before, that value was put at {a:#x}{self._on(a)} {self._by(w)}." for a, w in before[:3]]

    def _on(self, address: int) -> str:
        region = self._target.region(address)
        return f" on {name(region.name)}" if region else ""

    def _by(self, write: Write) -> str:
        owner = self._history.owner(write)
        course = f" in the course of {owner.who}" if owner else ""
        place = self._places.full(write.rip)
        if write.by == "delivery":
            return f"by hardware, delivering {owner.who if owner else 'an event'} at {place}"
        if write.by == "freed":
            return f"when that memory was free, at {place}"
        return f"by {place}{course}"

    # --- the right value

    def _right_value(self, affected: Delivery | None) -> list[str]:
        expected = self._history.replay.verdict.expected
        if expected is None or not self._values.unmistakable(expected):
            return []
        if affected is not None and any(d.write.old == expected for d in self._history.damage(affected)):
            return []
        holders: list[tuple[int, Write]] = []
        for address, writes in self._history.replay.writes.items():
            saved = next((w for w in writes if w.value == expected and w.by != "freed"), None)
            if saved is not None:
                holders.append((address, saved))
        holders.sort(key=lambda at: at[1].step)
        if not holders:
            return ["The right value was never saved to memory."]
        return [
            f"The right value was saved at {a:#x}{self._on(a)} {self._by(w)}. {self._fate(a, w)}."
            for a, w in holders[:2]
        ]

    def _fate(self, address: int, saved: Write) -> str:
        """What became of a saved value."""
        later = self._history.replay.writes[address]
        after = next((w for w in later if w.step > saved.step and w.value != saved.value), None)
        if after is None:
            return "It is still there"
        if after.by == "freed":
            return f"It was there until {self._places.bare(after.rip)}, where that memory became free"
        return f"It was overwritten {self._by(after)}"

    # --- a refusal, a store

    def _contradiction(self) -> list[str]:
        """Why the entry gave up: what the last frame says."""
        verdict, last = self._history.replay.verdict, self._history.open[-1:]
        if verdict.property not in ("IST015", "IST016") or not last:
            return []
        label = self._places.bare(verdict.rip)
        why = next((text for word, text in _REASONS.items() if f"_{word}_" in label), "")
        slots = {slot: address for address, slot in last[0].slots().items()}
        said = []
        for slot in ("RIP", "RSP"):
            value = self._history.value(slots[slot], last[0].step)
            if value is not None:
                meaning = self._values.long(value, slot)
                said.append(f"{slot} {value:#x}{f' ({meaning})' if meaning else ''}")
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
                own = f"{rsp:#x} up to {region.top:#x} on {name(region.name)}"
                return [
                    f"What {delivery.who} interrupted has its RSP there: {own} is in use.",
                    f"The store goes to {address:#x}.",
                ]
        return []

    # --- who should have done it

    def _duty(self, affected: Delivery) -> list[str]:
        inner = next((d for d in self._history.deliveries if d.inside == affected.number and d.early), None)
        if inner is None:
            return []
        hit = sentence(inner.who)
        if self._target.claims:
            last = [d for d in self._history.deliveries if d.early and d.number >= inner.number][-1]
            rule = "An entry that is interrupted there is not resumed there."
            duty = f"to copy the frame and the original registers of {affected.who} to the main stack"
            return [
                f"{hit} interrupted the entry of {affected.who} before its commit. {rule}",
                f"Whoever comes last before a commit has to complete it: here it was for {last.who} {duty}.",
            ]
        if self._history.damage(affected):
            move = f"{affected.who} had to move its frame off this stack before anything could be let in"
            keep = f"{inner.who} had to keep the stack from being used again until that was done"
            return [
                f"{hit} interrupted {affected.who} before its handler was called.",
                f"Either {move}, or {keep}.",
            ]
        return []
