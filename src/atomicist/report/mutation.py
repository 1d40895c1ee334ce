# SPDX-License-Identifier: GPL-2.0-only
"""The tables of a mutation run: on the terminal, as JSON, as Markdown for docs/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

HEAD: Final = """\
<!-- SPDX-License-Identifier: GPL-2.0-only -->
<!-- Printed by: make mutants ARGS="--markdown docs/mutation.md". Do not edit. -->
# Mutants of the built entry

One instruction of the linked image is changed at a time, in its bytes, and the checker is run. What is
mutated, and how, is said in `src/atomicist/image/mutate.py`; how mutants are decided, in
`src/atomicist/search/mutation.py`.

- *killed*: the checker has a finding. Properties are those that fired first; *not closed*: there is no
  finding, but the checker says that the outcome rests on what it may not, and does not pass.
- *equivalent*: no interleaving of the closed search executes it; or the IR shows that it does the same; or
  the search with it (and others) in the image is closed without a finding, and either, *compared* with the
  original, it goes the same ways and leaves the same behind on every interleaving
  (`src/atomicist/search/alike.py`), or `src/atomicist/search/exceptions.toml` names the reason.
  Hundreds are in an image at a time: two that undo each other would pass together, unless one of them is told
  from the original by what looks at each alone: the probes, and certificates, at most three.
- *not explained*: closed without a finding, and without a reason.

`build/mutants.json` has each mutant with the schedule that kills it, or the reason.
"""

STATUSES: Final = ("killed", "equivalent", "survived", "passed")


@dataclass(frozen=True, slots=True)
class Row:
    """One mutant, flat: what it is (``name``, ``kind``, ``stage``, ``was``, ``now``), and
    what became of it."""

    name: str
    kind: str
    stage: str
    was: str
    now: str
    status: str
    by: str
    property: str
    schedule: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Tables:
    """The mutants of one image.  ``complete``: the run was not cut short; ``wrong``: what is
    wrong with the list of named exceptions; ``seconds`` of the last start, before which ``resumed``
    mutants were decided."""

    image: str
    build_id: str
    config: tuple[str, ...]
    rows: tuple[Row, ...]
    not_made: tuple[tuple[str, int], ...]
    instructions: int
    complete: bool
    wrong: tuple[str, ...]
    seconds: float
    machine: str
    resumed: int = 0

    def count(self, status: str) -> int:
        """How many mutants have that status."""
        return sum(r.status == status for r in self.rows)

    def table(self, key: Callable[[Row], str]) -> list[tuple[str, Mapping[str, int]]]:
        """For each value of ``key``, how many mutants of each status."""
        found: dict[str, Counter[str]] = {}
        for r in self.rows:
            found.setdefault(key(r), Counter())[r.status] += 1
        return sorted(found.items())


def as_data(tables: Sequence[Tables]) -> dict[str, Any]:
    """Everything, for programs."""
    return {"format": 1, "images": [_data(t) for t in tables]}


def _data(t: Tables) -> dict[str, Any]:
    return {
        "image": t.image, "build_id": t.build_id, "config": list(t.config), "complete": t.complete,
        "machine": t.machine, "seconds": round(t.seconds, 1), "instructions": t.instructions,
        "mutants": len(t.rows), **{s: t.count(s) for s in STATUSES},
        "not_made": dict(t.not_made), "exceptions_wrong": list(t.wrong),
        "rows": [{name: getattr(r, name) for name in Row.__slots__} for r in t.rows],
    }  # fmt: skip


def _grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    return lines + [
        "| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c) for c in row) + " |" for row in rows
    ]


def _by_status(t: Tables, what: str, key: Callable[[Row], str]) -> list[str]:
    rows = [(name, sum(n.values()), *(n[s] for s in STATUSES[:3])) for name, n in t.table(key)]
    return _grid((what, "mutants", *STATUSES[:3]), rows)


def _found(t: Tables, what: str, key: Callable[[Row], str]) -> list[str]:
    spent: dict[str, list[float]] = {}
    for r in t.rows:
        if r.status == "killed":
            spent.setdefault(key(r), []).append(r.seconds)
    rows = [(n, len(s), f"{1000 * median(s):.1f}") for n, s in sorted(spent.items())]
    return _grid((what, "killed", "median ms"), rows)


def _told(t: Tables) -> str:
    left = t.count("survived") + t.count("passed")
    told = (
        f"{t.instructions:,} instructions, {len(t.rows):,} mutants: {t.count('killed'):,} killed, "
        f"{t.count('equivalent'):,} equivalent, {left:,} not explained"
    )
    if not t.complete:
        return told + " (the run was cut short)."
    return told + (
        f"; {t.seconds:,.0f} s." if not t.resumed else f"; {t.resumed:,} of them by an earlier start."
    )


def markdown(tables: Sequence[Tables]) -> str:
    """The tables as docs/mutation.md has them."""
    lines = HEAD.splitlines()
    for t in tables:
        lines += ["", f"## {t.image} ({' '.join(t.config)})", ""]
        lines += [
            f"Build id {t.build_id}; native engine; {t.machine}.", "",
            _told(t), "",
        ]  # fmt: skip
        lines += [
            *_by_status(t, "kind", lambda r: r.kind),
            "",
            *_by_status(t, "stage", lambda r: r.stage),
            "",
        ]
        lines += [
            *_found(t, "first property", lambda r: r.property),
            "",
            *_found(t, "found by", lambda r: r.by),
            "",
        ]
        reasons = Counter((r.reason.partition(":")[0], r.by) for r in t.rows if r.status == "equivalent")
        lines += _grid(
            ("why equivalent", "shown by", "mutants"), [(a, b, n) for (a, b), n in reasons.most_common()]
        )
        if t.not_made:
            lines += ["", *_grid(("not made", "times"), t.not_made)]
    return "\n".join(lines).strip() + "\n"


def summary(t: Tables) -> list[str]:
    """A few lines for the terminal."""
    lines = [f"{t.image} ({' '.join(t.config)}): {len(t.rows):,} mutants of {t.instructions:,} instructions"]
    for what, key in (
        ("kind", lambda r: r.kind),
        ("stage", lambda r: r.stage),
        ("first property", lambda r: r.property),
    ):
        lines.append(f"  {what:34}{'mutants':>9}" + "".join(f"{s:>12}" for s in STATUSES[:3]))
        lines += [
            f"    {name or '-':32}{sum(n.values()):>9,}" + "".join(f"{n[s]:>12,}" for s in STATUSES[:3])
            for name, n in t.table(key)
        ]
    spent: dict[str, list[float]] = {}
    for r in t.rows:
        if r.status == "killed":
            spent.setdefault(r.by, []).append(r.seconds)
    lines.append(f"  {'found by':34}{'killed':>9}{'median ms':>12}")
    lines += [f"    {n:32}{len(s):>9,}{1000 * median(s):>12.1f}" for n, s in sorted(spent.items())]
    return lines
