# SPDX-License-Identifier: GPL-2.0-only
"""What people see: tables, the verdict, progress; wide, narrow, without colour, without a terminal."""

import io
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomicist.report import text as words
from atomicist.report.progress import Display
from atomicist.report.summary import show_findings, show_summary, verdict
from atomicist.report.terminal import Terminal
from atomicist.search.progress import Progress
from atomicist.search.result import Finding, Result
from tests.report.results import FINDING, HOSTILE, result


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(
    made: Result, monkeypatch: pytest.MonkeyPatch, columns: int = 80, stream: io.StringIO | None = None
) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    out = stream if stream is not None else io.StringIO()
    terminal = Terminal(out)
    show_summary(terminal, made)
    if made.findings:
        show_findings(terminal, made)
    return out.getvalue()


def test_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(result(), monkeypatch)
    assert "31,746,014,585, 2.5 G/s" in text
    assert "1,029,381, covered by 142 certificates" in text
    assert "PASSED: nothing found, and nothing is left to try" in text
    assert "\x1b" not in text


def test_findings_are_counted_by_property(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(result(FINDING, Finding("IST005", "user:NMI", "RIP", 1, 2, "x"), FINDING), monkeypatch)
    assert re.search(r"IST001 .* 2\b", text)
    assert re.search(r"IST005 .* 1\b", text)
    assert "FAILED: 2 properties violated, 3 findings" in text


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    made = result(FINDING, because="a table of the search overflowed (line 272) in user")
    assert max(map(len, shown(made, monkeypatch, columns).splitlines())) <= columns


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in shown(result(), monkeypatch, stream=Tty())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", shown(result(), monkeypatch, stream=Tty()))


def test_hostile_names_print_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    made = result(Finding(HOSTILE, HOSTILE, "x", None, None, "y"), because=HOSTILE, image=HOSTILE)
    text = shown(made, monkeypatch, 300)
    assert "[red]\\x1b[31m\\u202e" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("made", "begins"),
    [
        (result(), "PASSED"),
        (result(FINDING), "FAILED: 1 property violated, 1 finding"),
        (result(FINDING, interrupted=True), "FAILED: 1 property violated, 1 finding; interrupted"),
        (result(closed=False, because="schedules are bounded"), "NOT CLOSED: nothing found, but schedules"),
        (result(closed=False, because="interrupted", interrupted=True), "INTERRUPTED"),
    ],
)
def test_verdict(made: Result, begins: str) -> None:
    assert verdict(made).text.startswith(begins)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_five_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    with Display(Terminal(out), clock=clock) as display:
        for second in range(21):
            clock.now = float(second)
            display(Progress("certifying contexts", second, 40, second * 1000, 1))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[1] == (
        "certifying contexts  5/40  1 finding  35 s left  5.0 k interleavings  1.0 k/s  5.0 s spent"
    )


def test_quiet_is_silent() -> None:
    out = io.StringIO()
    with Display(Terminal(out), quiet=True) as display:
        display(Progress("x", 1, 2, 3, 4))
    assert out.getvalue() == ""


@pytest.mark.parametrize("columns", [10, 40, 80, 120])
def test_a_line_of_progress_fits(columns: int) -> None:
    clock = Clock()
    display = Display(Terminal(io.StringIO()), clock=clock)
    display(Progress("certifying contexts", 1, 142, 10**9, 0))
    clock.now = 70
    display(Progress("certifying contexts", 99, 142, 10**11, 12))
    line = display.words(columns)
    assert len(line) <= columns
    assert "99/142" in line


def test_live_display_is_drawn_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    out = Tty()
    with Display(Terminal(out)) as display:
        display(Progress("certifying contexts", 1, 142, 10**9, 0))
        display(Progress("certifying contexts", 2, 142, 10**9, 0))
    assert "certifying" in out.getvalue()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())
    assert all(len(line.strip()) <= 40 for line in re.split(r"[\r\n]", plain))


def test_nobody_reads_any_more() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:  # noqa: PTH123
        terminal = Terminal(stream)
        terminal.say("x" * 100_000)
        terminal.say("y")
        terminal.data("z")


@given(st.text())
def test_clean_is_one_printable_line(text: str) -> None:
    cleaned = words.clean(text)
    assert cleaned.isprintable() or cleaned == ""
    assert words.clean(cleaned) == cleaned


def test_clean_leaves_what_is_harmless() -> None:
    assert words.clean("asm_exc_nmi+0x2b [red] \u00fc") == "asm_exc_nmi+0x2b [red] \u00fc"
    assert words.clean("a\x1b[31mb\rc") == "a\\x1b[31mb\\rc"
    assert len(words.name("x" * 10_000)) == words.MAX_NAME


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (1234, "1.2 k"), (31_746_014_585, "31.7 G"), (999_960, "1.0 M")],
)
def test_short(number: int, said: str) -> None:
    assert words.short(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.81, "0.8 s"), (42.4, "42 s"), (187, "3:07 min"), (7500, "2:05 h")]
)
def test_duration(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@given(st.text(), st.integers(20, 120), st.integers(0, 8))
def test_wrap_keeps_every_word(text: str, width: int, indent: int) -> None:
    lines = words.wrap(text, width, indent)
    assert " ".join(lines).split() == words.clean(text).split()
    assert all(len(line) <= width for line in lines if len(line.split()) > 1)
