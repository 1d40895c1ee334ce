# SPDX-License-Identifier: GPL-2.0-only
"""A recorded run in the Chrome trace-event format, as Perfetto and chrome://tracing read it.

A track a stack; one step is one microsecond, for there is no other time in the model.  Step 0
is at 1: before it the context runs that is interrupted.
Stages are complete events (``X``), deliveries and commits instants (``i``), and what leads
from one stack to another is a flow (``s``, ``f``).  The format: "Trace Event Format" of the
Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from atomicist.report.history import History
from atomicist.report.ownership import title
from atomicist.report.procedure import CONTEXT, Procedure
from atomicist.report.text import clean, name
from atomicist.search.recording import Recording

_PROCESS = 1


def chrome_trace(recording: Recording) -> str:
    """The trace as JSON text."""
    replay = recording.replay
    history = History(replay)
    procedure = Procedure(recording, history)
    stacks = {s.name: title(s) for s in recording.stacks}
    tracks = {key: number for number, key in enumerate(procedure.columns(), start=1)}
    about = {s.key: s for s in recording.stages}
    events: list[dict[str, Any]] = [
        _named("process_name", 0, f"{name(replay.target.name)} {clean(replay.schedule.text(replay.target))}")
    ]
    for key, number in tracks.items():
        called = stacks.get(key, "user mode" if history.user else "interrupted context")
        events += [_named("thread_name", number, called), _sorted(number)]
    if CONTEXT in tracks:
        events.append(_runs(tracks[CONTEXT], 0, "runs"))
    for s in procedure.segments:
        who = history.deliveries[s.delivery].who if s.delivery >= 0 else "the interrupted context"
        first = replay.steps[s.first]
        events.append({
            "ph": "X", "pid": _PROCESS, "tid": tracks[s.column], "ts": s.first + 1,
            "dur": s.last - s.first + 1, "cat": s.stage,
            "name": f"{who.removeprefix('the ')}: {about[s.stage].title}",
            "args": {"about": about[s.stage].about, "first step": s.first, "last step": s.last,
                     "at": name(replay.target.symbolize(first.rip))},
        })  # fmt: skip
    for step in replay.steps:
        if step.kind in ("deliver", "commit"):
            track = tracks[procedure.column_at(step.index)]
            events.append({
                "ph": "i", "s": "t", "pid": _PROCESS, "tid": track, "ts": step.index + 1, "cat": step.kind,
                "name": clean(step.text), "args": {"at": name(replay.target.symbolize(step.rip))},
            })  # fmt: skip
    if CONTEXT in tracks and replay.verdict.outcome == "resumed":
        events.append(_runs(tracks[CONTEXT], len(replay.steps) + 1, "runs again"))
    bars = [e for e in events if e["ph"] == "X"]
    for number, arrow in enumerate(procedure.arrows):
        flow = {"pid": _PROCESS, "id": number, "cat": arrow.kind, "name": arrow.kind}
        start = _bound(bars, tracks[arrow.source], arrow.step + (arrow.kind == "return"))
        end = _bound(bars, tracks[arrow.goal], arrow.step + 1 + (arrow.kind == "return"))
        if start is not None and end is not None:
            events.append({"ph": "s", "ts": start, "tid": tracks[arrow.source], **flow})
            events.append({"ph": "f", "bp": "e", "ts": end, "tid": tracks[arrow.goal], **flow})
    verdict = replay.verdict
    if verdict.property:
        track = tracks[procedure.column_at(len(replay.steps) - 1)]
        events.append({
            "ph": "i", "s": "g", "pid": _PROCESS, "tid": track, "ts": len(replay.steps), "cat": "finding",
            "name": f"{verdict.property}: {clean(verdict.subject)}", "args": {},
        })  # fmt: skip
    events.sort(key=lambda e: e.get("ts", -1))
    other = {"schedule": clean(replay.schedule.text(replay.target)), "unit": "one microsecond is one step"}
    return json.dumps({"traceEvents": events, "otherData": other}, indent=1) + "\n"


def _runs(track: int, at: int, called: str) -> dict[str, Any]:
    """The interrupted context, which is no step."""
    return {
        "ph": "X", "pid": _PROCESS, "tid": track, "ts": at, "dur": 1, "name": called, "cat": CONTEXT,
        "args": {},
    }  # fmt: skip


def _bound(bars: Sequence[dict[str, Any]], track: int, at: int) -> int | None:
    """The time next to ``at`` within a bar: an arrow belongs to the bar that it is in, and who
    was abandoned had the last of them before."""
    before = [b for b in bars if b["tid"] == track and b["ts"] <= at]
    last = max(before, key=lambda b: int(b["ts"]), default=None)
    return min(at, last["ts"] + last["dur"] - 1) if last is not None else None


def _named(kind: str, track: int, called: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _PROCESS, "tid": track, "name": kind, "args": {"name": called}}


def _sorted(track: int) -> dict[str, Any]:
    return {
        "ph": "M",
        "pid": _PROCESS,
        "tid": track,
        "name": "thread_sort_index",
        "args": {"sort_index": track},
    }
