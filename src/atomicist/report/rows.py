# SPDX-License-Identifier: GPL-2.0-only
"""A result as rows for test reports: one a property, and one for the search itself.

A property that no counterexample violates is passed only if the search is closed; else
nothing is known of it, and it is skipped.  So that a search which was cut short never
reads as passed, its own row fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atomicist.report.text import clean, count
from atomicist.search.result import Finding, Result
from atomicist.spec.properties import PROPERTIES

CLOSED: Final = "CLOSED"
"""The name of the row for the search itself."""

SHOWN: Final = 10
"""Findings of one property that are shown in full."""


@dataclass(frozen=True, slots=True)
class Row:
    """``outcome`` is ok, not ok or skip; ``message`` says why in one line, ``details`` in more."""

    number: str
    title: str
    outcome: str
    message: str = ""
    details: tuple[str, ...] = ()


def open_because(result: Result) -> str:
    """Why the search is not closed, in words; empty if it is."""
    if result.closed:
        return ""
    stopped = f"the search ended with {count(len(result.findings), 'finding')}" if result.findings else ""
    return clean(result.open_because) or stopped or "the search was not finished"


def rows(result: Result) -> list[Row]:
    """All rows, in the order of the properties' numbers."""
    table = []
    because = open_because(result)
    for number, known in PROPERTIES.items():
        found = [f for f in result.findings if f.property == number]
        if found:
            details = _all_details(found)
            table.append(
                Row(number, known.title, "not ok", f"{known.means} {clean(found[0].schedule)}", details)
            )
        elif result.closed:
            table.append(Row(number, known.title, "ok"))
        else:
            table.append(Row(number, known.title, "skip", f"not decided: {because}"))
    table += [
        Row(
            clean(f.property), "a property that is not in the table", "not ok", clean(f.schedule), _details(f)
        )
        for f in result.findings
        if f.property not in PROPERTIES
    ]
    table.append(Row(CLOSED, "nothing is left to try", "not ok" if because else "ok", because))
    return table


def _all_details(findings: list[Finding]) -> tuple[str, ...]:
    more = len(findings) - SHOWN
    rest = (f"and {count(more, 'more finding')} (--json has all)",) if more > 0 else ()
    return (*(line for f in findings[:SHOWN] for line in _details(f)), *rest)


def _details(finding: Finding) -> tuple[str, ...]:
    lines = [f"schedule: {clean(finding.schedule)}", f"subject: {clean(finding.subject)}"]
    if finding.expected is not None:
        lines.append(f"expected: {finding.expected:#x}")
    if finding.found is not None:
        lines.append(f"found: {finding.found:#x}")
    return (*lines, f"where: {clean(finding.where)}")
