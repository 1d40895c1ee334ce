# SPDX-License-Identifier: GPL-2.0-only
"""A whole search as plain data for the page: findings by property, what came where by
boundary and event, source lines that were reached, and pictures of chosen schedules.

All counts are `search.result.Boundary`'s.  A source line is reached where an event came
to the boundary before one of its instructions; the instruction itself was executed if a
run went on from there, which the first event at it always does.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from atomicist.report.places import Source
from atomicist.report.run_data import SourceText
from atomicist.report.summary import facts, verdict
from atomicist.report.text import clean, name
from atomicist.search.result import Boundary, Finding, Result
from atomicist.spec.events import EVENTS
from atomicist.spec.properties import PROPERTIES

LISTED: Final = 100
"""Findings of one property that the page lists; --json has all."""

SAMPLES: Final = 4
"""Schedules of one cell that the page lists."""

Hits = Mapping[tuple[int, int], Sequence[int]]
"""As `search.injected.hits` gives."""


def severity(number: str) -> tuple[bool, str]:
    """Sorts properties: the worst first; a run without end is the least telling."""
    known = PROPERTIES.get(number)
    return known is not None and known.key == "ENDLESS", number


def whole_data(
    result: Result,
    hits: Hits,
    *,
    source: Source,
    text: SourceText,
    pictures: Mapping[str, Mapping[str, Any]],
    command: str,
) -> dict[str, Any]:
    """``result`` as data; ``pictures``: schedule -> `run_data.run_data`."""
    said = verdict(result)
    lines = {b.rip: name(source(b.rip)) for b in result.boundaries}
    return {
        "page": "verify",
        "image": name(result.image),
        "facts": facts(result),
        "passed": not result.findings and result.closed,
        "verdict": said.text,
        "command": clean(command),
        "events": [event if event == "NMI" else f"#{event}" for event in EVENTS],
        "properties": _properties(result.findings),
        "functions": _functions(result, hits, lines),
        "files": _files(result.boundaries, lines, text),
        "pictures": {
            clean(schedule): {"gz": packed(data), "property": data["verdict"]["property"]}
            for schedule, data in pictures.items()
        },
    }


def packed(data: Mapping[str, Any]) -> str:
    """``data`` as base64 of gzipped JSON: a browser unpacks it by itself."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 9, mtime=0)).decode(
        "ascii"
    )


def _properties(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    counts = Counter(f.property for f in findings)
    listed = []
    for number in sorted(counts, key=severity):
        known = PROPERTIES.get(number)
        some = [f for f in findings if f.property == number][:LISTED]
        listed.append({
            "number": clean(number), "count": counts[number],
            "title": known.title if known else "", "means": known.means if known else "",
            "do": known.do if known else "",
            "findings": [
                [clean(f.schedule), clean(f.subject), _hex(f.expected), _hex(f.found), clean(f.where)]
                for f in some
            ],
        })  # fmt: skip
    return listed


def _functions(result: Result, hits: Hits, lines: Mapping[int, str]) -> list[dict[str, Any]]:
    by_name: dict[str, list[Boundary]] = {}
    for boundary in result.boundaries:
        by_name.setdefault(boundary.function, []).append(boundary)
    made = []
    for function, boundaries in by_name.items():
        rows = [
            [f"+{b.offset:#x}", clean(b.text), lines[b.rip],
             [_cell(result, b, e, hits.get((b.rip, e), ())) for e in range(len(EVENTS))], f"{b.rip:#x}"]
            for b in boundaries
        ]  # fmt: skip
        reached = sum(b.reached for b in boundaries)
        made.append({"name": name(function), "rows": rows, "reached": reached})
    return made


def _cell(result: Result, b: Boundary, event: int, found: Sequence[int]) -> list[Any] | int:
    """One by one, by class, contexts, findings, the worst property, schedules; 0: nothing."""
    if not (b.delivered[event] or b.covered[event] or b.contexts[event] or found):
        return 0
    findings = sorted((result.findings[i] for i in found), key=lambda f: severity(f.property))
    worst = findings[0].property if findings else ""
    samples = list(dict.fromkeys(clean(f.schedule) for f in findings))[:SAMPLES]
    return [b.delivered[event], b.covered[event], b.contexts[event], len(found), worst, samples]


def _files(
    boundaries: Sequence[Boundary], lines: Mapping[int, str], text: SourceText
) -> list[dict[str, Any]]:
    """By source file: [line, its text, instructions reached, instructions in all]."""
    files: dict[str, dict[int, list[int]]] = {}
    for b in boundaries:
        file, _, number = lines[b.rip].rpartition(":")
        if file and number.isdecimal():
            counts = files.setdefault(file, {}).setdefault(int(number), [0, 0])
            counts[0] += b.reached
            counts[1] += 1
    return [
        {
            "name": file,
            "lines": [[n, clean(text(f"{file}:{n}")), *counts] for n, counts in sorted(known.items())],
        }
        for file, known in sorted(files.items())
    ]


def _hex(value: int | None) -> str:
    return "" if value is None else f"{value:#x}"
