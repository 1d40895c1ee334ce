# SPDX-License-Identifier: GPL-2.0-only
"""The procedure of a recorded run: which entry was in which stage, on which stack, from
which step to which; and what led from one to the other.

Stages are those of `machine.stages`, as the recording brings them along: where the image
has labels, they decide; between the last of them and the handler the entry is where it
was; behind the handler it is on its way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atomicist.report.history import Delivery, History
from atomicist.search.recording import Recording

CONTEXT: Final = "context"
"""Key of the column, and of the stage, of what the first event interrupted."""


@dataclass(frozen=True, slots=True)
class Segment:
    """``delivery`` (-1: the interrupted context) was in ``stage`` on ``column`` during the
    steps ``first`` to ``last``."""

    delivery: int
    stage: str
    column: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Arrow:
    """Something led at ``step`` from ``source`` to ``goal`` (columns): ``kind`` is deliver,
    commit, copy or return; ``delivery`` is whom it concerns, ``by`` who did it."""

    kind: str
    step: int
    source: str
    goal: str
    delivery: int
    by: int


class Procedure:
    """The procedure view of one run."""

    def __init__(self, recording: Recording, history: History) -> None:
        self._recording = recording
        self._history = history
        self._steps = recording.replay.steps
        self._stage: dict[int, str] = {}
        self._column_of: list[str] = []
        self.segments = self._segments()
        self.arrows = self._arrows()

    def columns(self) -> list[str]:
        """The columns that occur, in the order of their first use, the context first."""
        return list(dict.fromkeys([CONTEXT, *self._column_of]))

    def column_at(self, step: int) -> str:
        """The column of ``step``."""
        return self._column_of[step]

    def _segments(self) -> list[Segment]:
        made: list[Segment] = []
        for step in self._steps:
            owner = self._history.owner_of_step(step.index)
            number = owner.number if owner is not None else -1
            stage = self._stage_of(step.index, owner)
            column = self._column(step.index, owner)
            self._column_of.append(column)
            last = made[-1] if made else None
            if last is not None and (last.delivery, last.stage, last.column) == (number, stage, column):
                made[-1] = Segment(number, stage, column, last.first, step.index)
            else:
                made.append(Segment(number, stage, column, step.index, step.index))
        return made

    def _stage_of(self, index: int, owner: Delivery | None) -> str:
        kind = self._steps[index].kind
        if owner is None:
            return CONTEXT
        if kind == "handler":
            # a handler may also serve an event that came before its own
            return "handler"
        if index == owner.step:
            now = "save1"
        elif 0 <= owner.handled < index:
            now = "return"
        else:
            first = "save2" if self._recording.slot_bytes else "entry"
            before = self._stage.get(owner.number, first)
            now = self._recording.moments[index].label or (first if before == "save1" else before)
        self._stage[owner.number] = now
        return now

    def _column(self, index: int, owner: Delivery | None) -> str:
        if owner is None:
            return CONTEXT
        if index == owner.step:
            region = self._recording.replay.target.region(owner.frame)
            return region.name if region else CONTEXT
        moment = self._recording.moments[index]
        before = self._column_of[-1] if self._column_of else CONTEXT
        return CONTEXT if moment.user else moment.stack or before

    def _arrows(self) -> list[Arrow]:
        made = []
        last = len(self._steps) - 1
        for step in self._steps:
            here = self._column_of[step.index]
            owner = self._history.owner_of_step(step.index)
            number = owner.number if owner is not None else -1
            if step.kind == "deliver":
                moment = self._recording.moments[step.index]
                before = CONTEXT if moment.user or not step.index else moment.stack or here
                made.append(Arrow("deliver", step.index, before, here, number, number))
            elif step.kind == "commit":
                made += self._commit(step.index, here, number)
            elif step.kind == "insn" and step.text.startswith(("iret", "sysret")):
                resumed = step.index == last and self._recording.replay.verdict.outcome == "resumed"
                goal = CONTEXT if resumed else self._column_of[min(step.index + 1, last)]
                if step.index < last or resumed:
                    made.append(Arrow("return", step.index, here, goal, number, number))
        return made

    def _commit(self, step: int, here: str, by: int) -> list[Arrow]:
        made = []
        for delivery in self._history.committed_at(step):
            region = self._recording.replay.target.region(delivery.frame)
            source = region.name if region else CONTEXT
            kind = "commit" if delivery.number == by else "copy"
            made.append(Arrow(kind, step, source, here, delivery.number, by))
        return made
