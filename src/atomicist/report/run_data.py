# SPDX-License-Identifier: GPL-2.0-only
"""One recorded run as plain data, for the page and for programs (``view --json``).

Numbers of machine words are text in hexadecimal: JSON readers keep 53 bits.  Words that
repeat - places, names, meanings - stand once in ``strings``, and are referred to by index.
"Step i" everywhere means: after step i has happened; -1 is the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from atomicist.report.explain import Explanation
from atomicist.report.history import FRAME, PT_REGS, WORD, Delivery, History
from atomicist.report.loss import how
from atomicist.report.ownership import Ownership, title
from atomicist.report.places import Places, Source, no_lines
from atomicist.report.procedure import CONTEXT, Procedure
from atomicist.report.text import clean, name
from atomicist.report.values import Values
from atomicist.search.recording import Recording
from atomicist.search.replay import Write
from atomicist.spec.properties import PROPERTIES

FORMAT: Final = 1
"""Goes up when a key changes its meaning or goes away."""

_WORDS: Final = 92
"""Columns of the explanation in words."""

SourceText = Callable[[str], str]
"""The text of a source line, given as file:line; empty where it is not known."""


def no_text(_: str) -> str:
    """Where there is no source."""
    return ""


class _Strings:
    def __init__(self) -> None:
        self.all: list[str] = [""]
        self._index: dict[str, int] = {"": 0}

    def __call__(self, text: str) -> int:
        if text not in self._index:
            self._index[text] = len(self.all)
            self.all.append(text)
        return self._index[text]


def run_data(
    recording: Recording, *, command: str = "", source: Source = no_lines, text: SourceText = no_text,
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """``recording`` as data; ``command`` shows it again, ``notes`` say what a reader has to
    know about the run."""
    return _Run(recording, source, text).data(command, notes)


class _Run:
    def __init__(self, recording: Recording, source: Source, text: SourceText) -> None:
        self._recording = recording
        self._replay = recording.replay
        self._text = text
        self._source = source
        self._history = History(self._replay)
        self._values = Values(self._history)
        self._places = Places(self._replay, source)
        self._owners = Ownership(recording, self._history)
        self._procedure = Procedure(recording, self._history)
        self._string = _Strings()

    def data(self, command: str, notes: tuple[str, ...]) -> dict[str, Any]:
        """All of it."""
        target, replay = self._replay.target, self._replay
        result: dict[str, Any] = {
            "format": FORMAT,
            "image": name(target.name),
            "build_id": clean(target.build_id),
            "config": [clean(word) for word in target.config],
            "schedule": clean(replay.schedule.text(target)),
            "command": clean(command),
            "notes": [clean(note) for note in notes],
            "context": {"name": clean(replay.context.name), "about": clean(replay.context.about)},
            "verdict": self._verdict(),
            "lost": self._lost(),
            "how": [clean(s) for s in how(self._history, self._values, self._places)]
            if replay.verdict.property
            else [],
            "words": [line.text for line in self._explained()],
            "deliveries": [self._delivery(d) for d in self._history.deliveries],
            "stages": {
                s.key: {"title": s.title, "about": s.about}
                for s in self._recording.stages
                if s.key in {g.stage for g in self._procedure.segments} | {CONTEXT}
            },
            "columns": self._columns(),
            "segments": [[s.delivery, s.stage, s.column, s.first, s.last] for s in self._procedure.segments],
            "arrows": [
                {
                    "kind": a.kind,
                    "step": a.step,
                    "from": a.source,
                    "to": a.goal,
                    "delivery": a.delivery,
                    "by": a.by,
                }
                for a in self._procedure.arrows
            ],
            "start": {r: f"{v:#x}" for r, v in self._recording.start.items()},
            "steps": self._steps(),
            "stacks": self._stacks(),
            "frames": [[f"{f.address:#x}", f.size, f.since, f.until] for f in self._owners.frames()],
        }
        result["strings"] = self._string.all
        return result

    def _explained(self) -> list[Any]:
        return list(Explanation(self._replay, _WORDS, ascii_only=False, source=self._source).lines())

    def _verdict(self) -> dict[str, Any]:
        v = self._replay.verdict
        known = PROPERTIES.get(v.property)
        return {
            "property": clean(v.property),
            "title": known.title if known else "",
            "means": known.means if known else "",
            "do": known.do if known else "",
            "outcome": clean(v.outcome),
            "subject": clean(v.subject),
            "expected": _hex(v.expected),
            "expected_is": self._values.long(v.expected, v.subject),
            "found": _hex(v.found),
            "found_is": self._values.long(v.found, v.subject),
            "where": self._places.full(v.rip),
        }

    def _lost(self) -> dict[str, Any] | None:
        """The slots where the loss shows, and the step at which to look."""
        if not self._replay.verdict.property:
            return None
        affected = self._history.affected()
        damage = self._history.damage(affected) if affected is not None else []
        end = len(self._replay.steps) - 1
        result: dict[str, Any] = {
            "delivery": affected.number if affected is not None else -1, "step": end, "slots": [], "by": -1,
            "kind": "shown",
        }  # fmt: skip
        if affected is not None and damage:
            by = self._history.owner(damage[0].write)
            result["step"] = max(d.write.step for d in damage)
            result["by"] = by.number if by is not None else -1
            result["kind"] = "overwritten"
            result["slots"] = [
                {"address": f"{d.address:#x}", "name": d.slot, "was": f"{d.write.old:#x}",
                 "was_is": self._values.short(d.write.old, d.slot), "now": f"{d.write.value:#x}",
                 "now_is": self._values.short(d.write.value, d.slot), "step": d.write.step}
                for d in sorted(damage, key=lambda d: -d.address)
            ]  # fmt: skip
            return result
        result["slots"] = self._wrong(end)
        return result

    def _wrong(self, end: int) -> list[dict[str, Any]]:
        """The slot that held the wrong value in the end."""
        verdict, history = self._replay.verdict, self._history
        names: tuple[str, ...] = PT_REGS
        address = history.shown_pt_regs()
        if address is None:
            names, address = FRAME, history.returned_frame()
        if address is None or verdict.subject not in names:
            return []
        place = address + WORD * names.index(verdict.subject)
        now = history.value(place, end)
        return [
            {"address": f"{place:#x}", "name": verdict.subject, "was": _hex(verdict.expected),
             "was_is": self._values.short(verdict.expected, verdict.subject), "now": _hex(now),
             "now_is": self._values.short(now, verdict.subject), "step": end}
        ]  # fmt: skip

    def _delivery(self, d: Delivery) -> dict[str, Any]:
        region = self._replay.target.region(d.frame)
        commit = next((c for c in self._history.commits if d in self._history.committed_at(c)), -1)
        by = self._history.owner_of_step(commit) if commit >= 0 else None
        return {
            "vector": d.vector,
            "who": d.who,
            "step": d.step,
            "where": self._places.full(d.rip),
            "inside": d.inside,
            "early": d.early,
            "stack": region.name if region else "",
            "frame": f"{d.frame:#x}",
            "handled": d.handled,
            "ended": d.ended,
            "committed": commit,
            "completed_by": by.number if by is not None else -1,
        }

    def _columns(self) -> list[dict[str, str]]:
        known = {s.name: s for s in self._recording.stacks}
        user = self._history.user
        first = {"key": CONTEXT, "kind": "context", "title": "User mode" if user else "Interrupted context"}
        return [
            first,
            *(
                {"key": key, "kind": known[key].kind, "title": title(known[key])}
                for key in self._procedure.columns()
                if key in known
            ),
        ]

    def _steps(self) -> list[list[Any]]:
        """Of each step: kind, place, text, source line, text of that line, owner, changes."""
        rows = []
        for step, moment in zip(self._replay.steps, self._recording.moments, strict=True):
            line = self._places.line(step.rip) if step.kind == "insn" else ""
            owner = self._history.owner_of_step(step.index)
            said = {
                "deliver": f"{step.text} is delivered",
                "commit": "commit: from here no IST stack is in use",
            }
            text = said.get(step.kind, f"{step.text} runs" if step.kind == "handler" else step.text)
            rows.append([
                ("insn", "deliver", "handler", "commit").index(step.kind),
                self._string(self._places.bare(step.rip)),
                self._string(clean(text)),
                self._string(line),
                self._string(clean(self._text(line)) if line else ""),
                owner.number if owner is not None else -1,
                [[register, f"{value:#x}"] for register, value in moment.changed if register != "RIP"],
                f"{step.rip:#x}",
            ])  # fmt: skip
        return rows

    def _stacks(self) -> list[dict[str, Any]]:
        lows = self._owners.lows()
        result = []
        for stack in self._recording.stacks:
            words = {
                address: kept
                for address in sorted(self._replay.writes, reverse=True)
                if stack.bottom <= address < stack.top and (kept := self._kept(address))
            }
            if words:
                result.append({
                    "key": stack.name,
                    "title": title(stack),
                    "kind": stack.kind,
                    "top": f"{stack.top:#x}",
                    "bottom": f"{stack.bottom:#x}",
                    "low": [[step, f"{low:#x}"] for step, low in lows[stack.name]],
                    "words": [[f"{a:#x}", [self._write(a, w) for w in kept]] for a, kept in words.items()],
                })  # fmt: skip
        return result

    def _kept(self, address: int) -> list[Write]:
        """The writes to a word, without those to what was free before anybody used it, and
        with one where free memory was overwritten again and again."""
        writes = self._replay.writes[address]
        first = next((i for i, w in enumerate(writes) if w.by != "freed"), len(writes))
        kept: list[Write] = []
        for write in writes[first:]:
            if write.by == "freed" and kept and kept[-1].by == "freed":
                continue
            if kept and kept[-1].step == write.step and kept[-1].by == write.by:
                kept.pop()  # one instruction may write a word in two parts
            kept.append(write)
        return kept

    def _write(self, address: int, write: Write) -> list[Any]:
        """step, value, meaning, by, owner, writer, place, name, source address, its step, source."""
        by = ("insn", "delivery", "freed").index(write.by)
        owner = self._owners.owner(address, write)
        writer = self._history.owner(write)
        slot = self._owners.name(address, write) if write.by != "freed" else ""
        source = self._owners.source(address, write)
        copied = source is not None and source.address is not None
        return [
            write.step, f"{write.value:#x}", self._string(self._values.short(write.value, slot)), by, owner,
            writer.number if writer is not None else -1, self._string(self._places.bare(write.rip)),
            self._string(slot), f"{source.address:#x}" if source is not None and copied else "",
            source.step if source is not None and copied else -1,
            self._string(self._came(address, write, slot)),
        ]  # fmt: skip

    def _came(self, address: int, write: Write, slot: str) -> str:
        """Where the value came from, in words."""
        if write.by == "delivery":
            owner = self._history.owner(write)
            interrupted = f"of what {owner.who} interrupted" if owner is not None else "interrupted"
            return f"{slot} {interrupted}"
        source = self._owners.source(address, write)
        if source is None:
            return ""
        if source.address is None:
            known = 0 <= source.of < len(self._history.deliveries)
            inner = f"what {self._history.deliveries[source.of].who} interrupted" if known else ""
            whose = "the first context" if source.of < 0 else inner or "an interrupted context"
            return f"{source.register} of {whose}, unchanged since"
        region = self._replay.target.region(source.address)
        return f"copied from {source.address:#x}{f' on {name(region.name)}' if region else ''}"


def _hex(value: int | None) -> str:
    return "" if value is None else f"{value:#x}"
