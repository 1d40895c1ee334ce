# SPDX-License-Identifier: GPL-2.0-only
"""The page of a whole search (``verify --html``): chooses schedules to draw, and runs them
on the reference interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from atomicist.cli import selection
from atomicist.report.page import html_page
from atomicist.report.run_data import no_text, run_data
from atomicist.report.text import name
from atomicist.report.whole_run import severity, whole_data
from atomicist.search.injected import hits
from atomicist.search.recording import record
from atomicist.search.result import Boundary, Finding, Result
from atomicist.search.schedule import ScheduleError, parse
from atomicist.spec.events import EVENTS

PICTURES: Final = 160
"""Schedules that are drawn on the page of a whole search; of others the command is given."""

STEPS: Final = 60_000
"""Steps of all these runs together, for each is run by the reference interpreter."""


def whole_page(result: Result, image: selection.Image, command: str) -> str:
    """The page. Takes some seconds: its pictures are runs of the reference interpreter."""
    found = hits(image.target, result.findings)
    text = image.text or no_text
    data = whole_data(
        result, found, source=image.source, text=text, pictures=_pictures(result, image), command=command
    )
    return html_page(f"{name(result.image)}: {data['verdict']}", data)


def _pictures(result: Result, image: selection.Image) -> dict[str, dict[str, Any]]:
    wanted = _of_findings(result.findings) if result.findings else _of_boundaries(result.boundaries, image)
    made: dict[str, dict[str, Any]] = {}
    steps = 0
    tried: set[str] = set()
    for schedule, must in wanted:
        if len(made) == PICTURES or steps >= STEPS:
            break
        if schedule in tried:
            continue
        tried.add(schedule)
        try:
            recording = record(image.target, parse(schedule, image.target))
        except ScheduleError:
            continue  # the text of a place is not always exact: there is another
        steps += len(recording.moments)
        # a picture has to show what it is there for
        if must in ("", recording.replay.verdict.property):
            command = selection.command("view", *image.options, schedule, "-o", "page.html")
            made[schedule] = run_data(
                recording, command=command, source=image.source, text=image.text or no_text
            )
    return made


def _of_findings(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """The one that is explained, one of each property, one of each place of each, then one of
    each place where the last event came, and the second."""
    yield findings[0].schedule, findings[0].property
    # a run without end is long, and its picture says little
    telling = [f for f in findings if not severity(f.property)[0]] or findings[:1]
    ranked = sorted(telling, key=lambda f: severity(f.property))
    keys: tuple[Callable[[Finding], tuple[str, ...]], ...] = (
        lambda f: (f.property,), lambda f: (f.property, f.where), lambda f: (f.schedule.rpartition(",")[2],),
        lambda f: (*f.schedule.split(",")[1:2],),
    )  # fmt: skip
    for key in keys:
        chosen: dict[tuple[str, ...], Finding] = {}
        for finding in ranked:
            chosen.setdefault(key(finding), finding)
        yield from ((f.schedule, f.property) for f in chosen.values())


def _of_boundaries(boundaries: Sequence[Boundary], image: selection.Image) -> Iterator[tuple[str, str]]:
    """Where nothing was found: each event alone, then each inside each part of another's entry."""
    present = [e for e in EVENTS if e in image.target.gates]
    known = {b.rip: b for b in boundaries}
    for first in present:
        yield f"user:{first}", ""
    for number, first in enumerate(present):
        steps = record(image.target, parse(f"user:{first}", image.target)).replay.steps
        functions: set[str] = set()
        for step in steps[1:]:
            boundary = known.get(step.rip)
            if boundary is not None and boundary.function not in functions:
                functions.add(boundary.function)
                other = present[(number + 1 + len(functions)) % len(present)]
                event = other if other != first else present[(present.index(other) + 1) % len(present)]
                place = image.target.symbolize(step.rip)
                yield f"user:{first},{event}@{place}", ""
