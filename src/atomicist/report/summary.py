# SPDX-License-Identifier: GPL-2.0-only
"""A result as tables for people: what was covered, the verdict, findings by property."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.table import Table
from rich.text import Text

from atomicist.report.rows import open_because
from atomicist.report.terminal import Terminal
from atomicist.report.text import Line, clean, count, duration, name, short, wrap
from atomicist.search.result import Result
from atomicist.spec.properties import PROPERTIES


def verdict(result: Result) -> Line:
    """The outcome in one line, which says by words what the exit status says."""
    if result.findings:
        violated = len({f.property for f in result.findings})
        findings = count(len(result.findings), "finding")
        words = f"FAILED: {count(violated, 'property', 'properties')} violated, {findings}"
        return Line(f"{words}; interrupted" if result.interrupted else words, "bold red")
    if result.interrupted:
        return Line("INTERRUPTED: nothing found in what was covered, and nothing proved", "bold yellow")
    if not result.closed:
        return Line(f"NOT CLOSED: nothing found, but {open_because(result)}", "bold yellow")
    return Line("PASSED: nothing found, and nothing is left to try", "bold green")


def facts(result: Result) -> list[tuple[str, str]]:
    """What was covered: names and values, without those of which there is nothing to say."""
    c = result.coverage
    covered = f", covered by {count(c.certificates, 'certificate')}" if c.certificates else ""
    rate = f", {short(c.interleavings / result.seconds)}/s" if result.seconds > 0.05 else ""
    said = [
        ("image", f"{name(result.image)} ({' '.join(map(clean, result.config))})"),
        ("build id", clean(result.build_id) or "none"),
        ("engine", clean(result.engine)),
        ("contexts", f"{c.contexts:,}{covered}"),
        ("boundaries", f"{c.boundaries:,}"),
        ("interleavings", f"{c.interleavings:,}{rate}"),
        ("executed", f"{c.executed:,} one by one, {c.guest_insns:,} instructions"),
        ("states", f"{c.states:,}"),
        ("way to commit", f"{result.commit_distance:,} instructions at most"),
        ("main stack", f"{result.main_stack:,} bytes at most"),
        ("closed", "yes" if result.closed else f"no: {open_because(result)}"),
        ("time", duration(result.seconds)),
    ]
    unsaid = {"states": c.states, "way to commit": result.commit_distance, "main stack": result.main_stack}
    return [(key, value) for key, value in said if unsaid.get(key, 1)]


def show_summary(terminal: Terminal, result: Result) -> None:
    """Print what was covered, and the verdict."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for key, value in facts(result):
        table.add_row(Text(key), Text(value))
    terminal.print(table)
    terminal.say()
    said = verdict(result)
    terminal.lines(Line(text, said.style) for text in wrap(said.text, terminal.width))


def show_findings(terminal: Terminal, result: Result) -> None:
    """Print the violated properties with how many findings each has."""
    counts = Counter(f.property for f in result.findings)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column(Text("property"), no_wrap=True)
    table.add_column(Text("what must hold"), overflow="fold")
    table.add_column(Text("findings"), justify="right", no_wrap=True)
    for number, times in sorted(counts.items()):
        known = PROPERTIES.get(number)
        table.add_row(Text(clean(number)), Text(known.title if known else ""), Text(f"{times:,}"))
    terminal.say()
    terminal.print(table)
