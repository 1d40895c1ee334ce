# SPDX-License-Identifier: GPL-2.0-only
"""Figures of several images side by side: as a table, as Markdown, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from atomicist.report.text import clean
from atomicist.search.measure import Figures

FORMAT: Final = 1
NONE: Final = "-"
"""Where a row does not apply, or nobody has looked."""


def _lost(f: Figures) -> str:
    if f.verified is None or f.lost is None:
        return NONE
    if f.lost:
        return f"no: {', '.join(f.lost)}"
    return "yes" if f.verified.closed else "none found"


def _safe(f: Figures) -> str:
    if f.mitigation == "none":
        return "not needed"
    if f.safe is None or f.verified is None:
        return NONE
    if not f.safe:
        return "no: IST026"
    return "yes" if f.verified.closed else "none found"


def _other(f: Figures) -> str:
    if f.verified is None:
        return NONE
    left = sorted({x.property for x in f.verified.findings} - set(f.lost or ()) - {"IST026"})
    return ", ".join(left) or "none"


def _fast(mode: str) -> Callable[[Figures], str]:
    def cell(f: Figures) -> str:
        path = f.fast[mode]
        return NONE if path is None else f"{path.delivery} + {path.back} = {path.total}"

    return cell


def _mapped(f: Figures) -> str:
    size = sum(n for name, n in f.user_mapped.items() if name != "text")
    return f"{size >> 10} KiB stacks, {f.user_mapped['text'] >> 10} KiB text"


def _of_result(field: str) -> Callable[[Figures], str]:
    def cell(f: Figures) -> str:
        value = 0 if f.verified is None else getattr(f.verified, field)
        return f"{value:,}" if value else NONE

    return cell


ROWS: Final[tuple[tuple[str, Callable[[Figures], str]], ...]] = (
    ("nothing lost", _lost),
    ("RETBLEED-safe, all runs", _safe),
    ("paths to an early call or return", lambda f: NONE if f.mitigation == "none" else str(len(f.exposed))),
    ("other properties violated", _other),
    ("NMI from user mode, instructions", _fast("user")),
    ("NMI from kernel mode, instructions", _fast("kernel")),
    ("way to commit, instructions", _of_result("commit_distance")),
    ("main stack, bytes", _of_result("main_stack")),
    ("lines of assembler", lambda f: str(f.assembler or NONE)),
    ("lines of C", lambda f: str(f.c) if f.assembler else NONE),
    ("text of the four entries, bytes", lambda f: f"{f.text_bytes:,}"),
    ("in the user page tables", _mapped),
    ("trusted", lambda f: "; ".join(f.trusted) or "the assembler"),
)  # fmt: skip
"""A row's name, and its text for one image."""


def cells(figures: Sequence[Figures]) -> list[tuple[str, list[str]]]:
    """The rows: the name, and a text for each of ``figures``; none that says nothing."""
    rows = [(name, [cell(f) for f in figures]) for name, cell in ROWS]
    return [(name, texts) for name, texts in rows if set(texts) != {NONE}]


def table(figures: Sequence[Figures]) -> Table:
    """As a table for a terminal."""
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    out.add_column(Text(""), no_wrap=False)
    for f in figures:
        out.add_column(Text(clean(f.name)), overflow="fold")
    for name, texts in cells(figures):
        out.add_row(Text(name), *(Text(clean(text)) for text in texts))
    return out


def markdown(figures: Sequence[Figures]) -> str:
    """As a table in Markdown."""
    lines = [["", *(clean(f.name) for f in figures)], ["---"] * (len(figures) + 1)]
    lines += [[name, *(clean(text).replace("|", "\\|") for text in texts)] for name, texts in cells(figures)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def compare_json(figures: Sequence[Figures]) -> str:
    """As JSON: one object for each image."""
    return json.dumps({"format": FORMAT, "images": [_object(f) for f in figures]}, indent=2) + "\n"


def _object(f: Figures) -> dict[str, object]:
    verified = f.verified
    return {
        "name": f.name,
        "build_id": f.build_id,
        "config": list(f.config),
        "mitigation": f.mitigation,
        "closed": None if verified is None else verified.closed,
        "violated": None if verified is None else sorted({x.property for x in verified.findings}),
        "retbleed_safe": f.safe,
        "exposed_paths": [{"what": p.what, "places": [f"{a:#x}" for a in p.places]} for p in f.exposed],
        "fast_path": {
            mode: None if p is None else {"delivery": p.delivery, "back": p.back}
            for mode, p in f.fast.items()
        },
        "commit_distance": None if verified is None else verified.commit_distance,
        "main_stack": None if verified is None else verified.main_stack,
        "lines_of_assembler": f.assembler,
        "lines_of_c": f.c,
        "early_c_instructions": f.early_c,
        "text_bytes": f.text_bytes,
        "user_mapped": f.user_mapped,
        "trusted": list(f.trusted),
    }
