# SPDX-License-Identifier: GPL-2.0-only
"""A result as KTAP, version 1 (Linux Documentation/dev-tools/ktap.rst)."""

from __future__ import annotations

from atomicist.report.rows import rows
from atomicist.report.text import clean
from atomicist.search.result import Result


def result_ktap(result: Result) -> str:
    """``result`` as a KTAP document: a plan, and a line a property."""
    table = rows(result)
    lines = ["KTAP version 1", f"# image: {clean(result.image)} {clean(result.build_id)}", f"1..{len(table)}"]
    for number, row in enumerate(table, start=1):
        if row.outcome == "not ok":
            lines += [f"# {line}" for line in ([row.message] if row.message else []) + list(row.details)]
        status = "not ok" if row.outcome == "not ok" else "ok"
        directive = f" # SKIP {_plain(row.message)}" if row.outcome == "skip" else ""
        lines.append(f"{status} {number} {_plain(f'{row.number} {row.title}')}{directive}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A description has no '#': it would begin a directive."""
    return clean(text).replace("#", "")
