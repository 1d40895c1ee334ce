# SPDX-License-Identifier: GPL-2.0-only
"""The tables of a mutation run, and docs/mutation.md, which is printed by the command."""

import re
from pathlib import Path

from atomicist.report.mutation import HEAD, Row, Tables, as_data, markdown, summary

DOC = Path(__file__).parents[2] / "docs" / "mutation.md"


def row(number: int, status: str, **other: str) -> Row:
    known = {"by": "one event", "property": "IST001" if status == "killed" else "", "reason": ""} | other
    name = f"delete@a+{number:#x}"
    return Row(name, "delete", "commit", "nop", "nop", status, schedule="user:NMI", seconds=0.25, **known)


ROWS = (row(1, "killed"), row(2, "equivalent", reason="never executed"), row(3, "survived"))
TABLES = Tables(
    "image", "abc", ("cc=gcc",), ROWS, (("out of reach", 2),), 3, True, (), 1.0, "a machine"
)  # fmt: skip


def test_counts_add_up() -> None:
    (data,) = as_data([TABLES])["images"]
    assert data["mutants"] == data["killed"] + data["equivalent"] + data["survived"] + data["passed"] == 3
    assert data["rows"][0]["schedule"] == "user:NMI"


def test_tables_say_what_happened() -> None:
    text = markdown([TABLES])
    assert "3 instructions, 3 mutants: 1 killed, 1 equivalent, 1 not explained; 1 s." in text
    assert "| IST001 | 1 | 250.0 |" in text
    assert "| never executed | one event | 1 |" in text
    assert "| out of reach | 2 |" in text
    assert any("commit" in line and "3" in line for line in summary(TABLES))


def test_a_run_cut_short_says_so() -> None:
    cut = Tables("i", "b", (), (), (), 3, False, (), 1.0, "m")
    assert "cut short" in markdown([cut])


def test_the_document_is_the_command_s() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    told = re.findall(r"([\d,]+) mutants: ([\d,]+) killed, ([\d,]+) equivalent, ([\d,]+) not explained", text)
    assert told
    for words in told:
        total, *parts = (int(w.replace(",", "")) for w in words)
        assert total == sum(parts)
        assert f"| {total:,} |" not in text  # the tables are by kind and stage, not of everything
