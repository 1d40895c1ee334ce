# SPDX-License-Identifier: GPL-2.0-only
"""Explains a counterexample in words: what arrived where, what broke, who overwrote
what, who should have completed it, and the stacks before and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from atomicist.report.history import FRAME, PT_REGS, WORD, Delivery, History
from atomicist.report.loss import how
from atomicist.report.places import Places, Source, no_lines
from atomicist.report.stacks import Picture, beside, draw
from atomicist.report.text import Line, clean, count, join, name, sentence, wrap
from atomicist.report.values import Values
from atomicist.search.replay import Replay, Step
from atomicist.spec.properties import PROPERTIES

MAX_EVENTS: Final = 12
"""Deliveries that are told one by one; of more, the first and the last."""


class Explanation:
    """A replay in words, for a page of ``width`` columns; ``source`` gives the
    file:line of an instruction, where it is known."""

    def __init__(
        self, replay: Replay, width: int, *, ascii_only: bool = True, source: Source = no_lines
    ) -> None:
        self._replay = replay
        self._history = History(replay)
        self._values = Values(self._history)
        self._places = Places(replay, source)
        self._width = width
        self._ascii = ascii_only

    def lines(self) -> Iterator[Line]:
        """All of it."""
        schedule = self._replay.schedule.text(self._replay.target)
        # whole in one line, so that it can be copied
        label = "Counterexample" if self._replay.verdict.property else "Replay"
        yield Line(clean(f"{label}: {schedule}"), "bold")
        yield Line()
        yield Line("What happens", "bold")
        yield from self._story()
        if not self._replay.verdict.property:
            yield from self._paragraph(f"Nothing is violated: {self._outcome()}.", style="green")
            return
        yield Line()
        yield from self._wrong()
        yield Line()
        sentences = how(self._history, self._values, self._places)
        if sentences:
            yield Line("How it is lost", "bold")
            for sentence in sentences:
                yield from self._paragraph(sentence)
            yield Line()
        yield from self._pictures()
        known = PROPERTIES.get(self._replay.verdict.property)
        if known is not None:
            yield Line("What to do", "bold")
            yield from self._paragraph(known.do)

    def _outcome(self) -> str:
        outcome = clean(self._replay.verdict.outcome)
        return (
            "the interrupted context runs again, unchanged, and every event was handled"
            if outcome == "resumed"
            else outcome
        )

    def _paragraph(self, text: str, indent: int = 2, hanging: int = 2, style: str = "") -> Iterator[Line]:
        for line in wrap(text, self._width, indent, hanging):
            yield Line(line, style)

    # --- what happens

    def _story(self) -> Iterator[Line]:
        context = self._replay.context
        yield from self._paragraph(f"0. Start: {context.about} (context {context.name}).", 2, 5)
        number = 0
        told = [s for s in self._replay.steps if s.kind != "insn"]
        deliveries = {d.step: d for d in self._history.deliveries}
        for place, step in enumerate(told):
            if MAX_EVENTS <= place < len(told) - MAX_EVENTS:
                if place == MAX_EVENTS:
                    yield from self._paragraph(
                        f"... {count(len(told) - 2 * MAX_EVENTS, 'more event')} ...", 5
                    )
                number += 1
                continue
            number += 1
            yield from self._paragraph(f"{number}. {self._tell(step, deliveries)}", 2, 5)
        last = self._replay.steps[-1] if self._replay.steps else None
        if self._replay.verdict.property and last is not None and last.kind == "insn":
            since = last.index - (told[-1].index if told else -1)
            rip = self._replay.verdict.rip
            after = f"After {count(since, 'more instruction')} it shows, at {self._places.full(rip)}."
            yield from self._paragraph(f"{number + 1}. {after}", 2, 5)

    def _tell(self, step: Step, deliveries: dict[int, Delivery]) -> str:
        if step.kind == "deliver" and step.index in deliveries:
            return self._tell_delivery(deliveries[step.index])
        if step.kind == "commit":
            before = max((d.step for d in self._history.deliveries if d.step < step.index), default=-1)
            whose = join([d.who for d in self._history.committed_at(step.index)])
            after = f"After {count(step.index - before - 1, 'instruction')}, commit"
            says = "the image says that no IST stack is in use from here."
            commits = f" This commits {whose}." if whose else ""
            return f"{after} at {self._places.bare(step.rip)}: {says}{commits}"
        if step.kind == "handler":
            vector = self._replay.target.handlers.get(step.rip, "")
            event = vector if vector == "NMI" else f"#{vector}"
            if step.index == len(self._replay.steps) - 1 and self._replay.verdict.property:
                return f"{name(step.text)}, the handler of {event}, is called. Here it shows."
            return f"{name(step.text)}, the handler of {event}, runs and returns."
        return clean(step.text)

    def _tell_delivery(self, d: Delivery) -> str:
        region = self._replay.target.region(d.frame)
        stack = f"{name(region.name)}, " if region else ""
        pushed = f"Hardware pushes {', '.join(reversed(d.slots().values()))} on {stack}at {d.frame:#x}."
        if d.inside < 0:
            at = "in user mode" if self._history.user else f"in kernel mode, at {self._places.full(d.rip)}"
            return f"{sentence(d.who)} arrives {at}. {pushed}"
        outer = self._history.deliveries[d.inside]
        state = self._state(outer, d)
        last = self._replay.steps[d.step - 1] if d.step else None
        if last is not None and last.text.startswith("iret"):
            state = f"right behind the IRET at {self._places.bare(last.rip)}, {state}"
        return f"{sentence(d.who)} arrives at {self._places.full(d.rip)}: {state}. {pushed}"

    def _state(self, outer: Delivery, d: Delivery) -> str:
        if d.early and self._replay.target.claims:
            return f"{outer.who} has not committed"
        if outer.handled < 0 or outer.handled > d.step:
            return f"{outer.who} is on the way to its handler"
        return f"{outer.who} is on the way back from its handler"

    # --- what is wrong

    def _wrong(self) -> Iterator[Line]:
        verdict = self._replay.verdict
        known = PROPERTIES.get(verdict.property)
        title = f": {known.title}" if known is not None else ""
        for line in wrap(f"What is wrong: {clean(verdict.property)}{title}", self._width, 0, 2):
            yield Line(line, "bold red")
        if known is not None:
            yield from self._paragraph(known.means)
        subject = clean(verdict.subject)
        if verdict.expected is None:
            value = f": {self._meant(verdict.found)}" if verdict.found is not None else ""
            if subject:
                yield from self._paragraph(f"It concerns {subject}{value}.")
            return
        for label, number, style in (
            ("expected", verdict.expected, "green"),
            ("found", verdict.found, "red"),
        ):
            if number is not None:
                yield from self._paragraph(f"{subject} {label}: {self._meant(number, subject)}", 4, 8, style)

    def _meant(self, value: int, slot: str = "") -> str:
        meaning = self._values.long(value, slot)
        return f"{value:#x}, {meaning}" if meaning else f"{value:#x}"

    # --- the stacks

    def _pictures(self) -> Iterator[Line]:
        pictures = list(self._choose())
        if not pictures:
            return
        yield Line("The stacks", "bold")
        drawn = [draw(p, self._history, self._values, self._width, ascii_only=self._ascii) for p in pictures]
        both = beside(drawn[0], drawn[1], self._width) if len(drawn) == 2 else None
        for lines in [both] if both else drawn:
            yield from lines
            yield Line()

    def _choose(self) -> Iterator[Picture]:
        history, replay = self._history, self._replay
        end = len(replay.steps) - 1
        affected = history.affected()
        damage = history.damage(affected) if affected is not None else []
        if affected is not None and damage:
            first = min(d.write.step for d in damage)
            rows = self._rows(affected, first - 1)
            owner = history.owner(damage[0].write)
            marks = {d.address: "LOST" for d in damage}
            yield Picture(f"Before: {affected.who} is in progress", first - 1, rows)
            by = owner.who if owner else "others"
            yield Picture(f"After: overwritten by {by}", max(d.write.step for d in damage), rows, marks)
            return
        if affected is not None and replay.verdict.expected is not None:
            frame = affected.slots()
            freed = [
                w.step
                for a in frame
                for w in replay.writes.get(a, ())
                if w.by == "freed" and w.step > affected.step
            ]
            then = min(freed, default=end + 1) - 1
            rows = self._rows(affected, then)
            right = {a: "the right value" for a in rows if history.value(a, then) == replay.verdict.expected}
            yield Picture(f"Before: {affected.who}, as it was saved", then, rows, {}, right)
        shown = self._shown(end)
        if shown is not None:
            yield shown
        elif affected is None and history.open:
            last = history.open[-1]
            yield Picture(f"The frame of {last.who}, which came last", last.step, last.slots())

    def _shown(self, end: int) -> Picture | None:
        """The pt_regs or the frame in which the wrong value was found."""
        history, verdict = self._history, self._replay.verdict
        names: tuple[str, ...] = PT_REGS
        title, pointer, address = "the pt_regs that the handler is given", "RDI", history.shown_pt_regs()
        if address is None:
            names, title, pointer = FRAME, "the frame that was returned through", ""
            address = history.returned_frame()
        if address is None:
            return None
        slots = {address + WORD * i: slot for i, slot in enumerate(names)}
        wrong = {a: "LOST: wrong" for a, slot in slots.items() if slot == verdict.subject}
        return Picture(f"After: {title}", end, slots, wrong, {address: pointer} if pointer else {})

    def _rows(self, delivery: Delivery, step: int) -> dict[int, str]:
        """What to draw of a delivery's stack: its frame, and what was saved below it by ``step``."""
        slots = delivery.slots()
        region = self._replay.target.region(delivery.frame)
        regs = max(slots) + WORD * (1 - len(PT_REGS))
        if region is None or not self._replay.target.claims or regs < region.bottom:
            return slots
        pushed = {regs + WORD * i: slot for i, slot in enumerate(PT_REGS)}
        used = {
            a for a in pushed for w in self._replay.writes.get(a, ()) if w.by != "freed" and w.step <= step
        }
        return {a: slots.get(a, slot) for a, slot in pushed.items() if a in used or a in slots}


def trace(replay: Replay, *, source: Source = no_lines) -> Iterator[Line]:
    """Every step of ``replay``, indented by how many events are open."""
    places = Places(replay, source)
    for s in replay.steps:
        plain = s.kind == "insn"
        line = places.line(s.rip) if plain else ""
        at = f"{s.index:6} {'  ' * min(s.depth, 20)}{places.bare(s.rip):<32} "
        said = clean(s.text) if plain else f"--- {s.kind}: {clean(s.text)} ---"
        yield Line(f"{at}{said}{f'  [{line}]' if line else ''}", "" if plain else "bold")
