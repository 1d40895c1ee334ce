# SPDX-License-Identifier: GPL-2.0-only
"""A result as JSON: one object, keys in a fixed order, the same for the same result but
for `TIME_LIKE`."""

from __future__ import annotations

import json
from typing import Final

from atomicist.search.result import Finding, Result
from atomicist.spec.properties import PROPERTIES

FORMAT: Final = 1
"""Goes up when a key changes its meaning or goes away."""

TIME_LIKE: Final = ("seconds",)
"""The keys whose values depend on the clock.  All others are the same, byte for byte, for the same input,
on any number of workers."""


def without_times(text: str) -> str:
    """A document of `result_json` without what depends on the clock, to compare two runs."""
    document = json.loads(text)
    return json.dumps({key: document[key] for key in document if key not in TIME_LIKE}, indent=2) + "\n"


def result_json(result: Result) -> str:
    """``result`` as a JSON text with a newline at its end."""
    c = result.coverage
    document = {
        "format": FORMAT,
        "image": result.image,
        "build_id": result.build_id,
        "config": list(result.config),
        "engine": result.engine,
        "boundaries": c.boundaries,
        "interleavings": c.interleavings,
        "executed": c.executed,
        "states": c.states,
        "contexts": c.contexts,
        "certificates": c.certificates,
        "guest_insns": c.guest_insns,
        "closed": result.closed,
        "open_because": result.open_because,
        "interrupted": result.interrupted,
        "commit_distance": result.commit_distance,
        "main_stack": result.main_stack,
        "findings": [_finding(f) for f in result.findings],
        "seconds": round(result.seconds, 3),
    }
    return json.dumps(document, indent=2) + "\n"


def _finding(finding: Finding) -> dict[str, str | None]:
    known = PROPERTIES.get(finding.property)
    return {
        "property": finding.property,
        "title": known.title if known else "",
        "schedule": finding.schedule,
        "subject": finding.subject,
        "expected": _hex(finding.expected),
        "found": _hex(finding.found),
        "where": finding.where,
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
