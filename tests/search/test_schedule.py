# SPDX-License-Identifier: GPL-2.0-only
"""Schedules: what is written can be read, and nothing else is accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomicist.machine.target import Target
from atomicist.search.replay import find_context, replay
from atomicist.search.schedule import Injection, Schedule, ScheduleError, parse
from atomicist.spec.events import EVENTS


def test_round_trip(entry: Target) -> None:
    places = sorted(entry.insns)[::97]
    for i, rip in enumerate(places):
        injections = (Injection("NMI", None), Injection("MC", rip, 1 + i % 3, 8 * (i % 2)))
        schedule = Schedule("kernel-task", injections)
        assert parse(schedule.text(entry), entry) == schedule


def test_an_offset_alone_counts_from_the_event_before(entry: Target) -> None:
    schedule = parse("user:NMI,MC@+0x4", entry)
    assert schedule.injections[1].rip == entry.gates["NMI"].offset + 4


def test_a_decimal_offset_may_begin_with_zero(entry: Target) -> None:
    assert parse("user:NMI,MC@+010", entry) == parse("user:NMI,MC@+10", entry)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a schedule reads"),
        ("user", "a schedule reads"),
        ("User:NMI", "a schedule reads"),
        ("user:", "is no event"),
        ("user:FOO", "'FOO' is no event"),
        ("user:NMI,MC", "names no place"),
        ("user:NMI@", "names no place"),
        ("user:+0x4", "is no event"),
        ("user:NMI@+4", "there is none"),
        ("user:NMI,MC@nowhere", "no symbol 'nowhere'"),
        ("user:NMI,MC@asm_exc_nmi#0", "counted from #1"),
        ("user:NMI,MC@asm_exc_nmi+\u0661", "is no event"),
        ("user:NMI,MC@asm_exc_nmi#\u0663", "is no event"),
        ("user:NMI,MC@asm_exc_nmi+" + "1" * 5000, "is no event"),
        ("user:" + ",".join(["NMI"] * 65), "at most 64 events"),
        ("user:" + "N" * 9000, "at most 8192 characters"),
    ],
)
def test_what_is_wrong_is_said(entry: Target, text: str, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        parse(text, entry)


@given(
    st.text(max_size=60)
    | st.from_regex(r"user:[A-Z]{2,3}(@[+a-z_0-9x#~]{0,20})?(,[A-Z@+#~]{0,9})*", fullmatch=True)
)
def test_any_text_is_read_or_refused(entry: Target, text: str) -> None:
    try:
        schedule = parse(text, entry)
    except ScheduleError as error:
        words = str(error)
        assert words, text
        assert "\n" not in words
    else:
        assert all(i.vector in EVENTS for i in schedule.injections)


def test_unknown_context(entry: Target) -> None:
    with pytest.raises(ScheduleError, match="no start context 'nobody'"):
        find_context(entry, "nobody")


@pytest.mark.parametrize(
    "text",
    [
        "user:NMI",
        "user-flags:VC",
        "kernel-task:NMI,MC@asm_exc_nmi+0x4",
        "user:NMI,MC@asm_exc_nmi,DB@asm_exc_machine_check+0x4,VC@atomic_ist_copy_db",
        "bad-iret:MC",
        "gap-entry_SYSCALL_64-hostile:VC,NMI@+0x3",
        "user:NMI,MC@exc_nmi,NMI@exc_nmi",
        "kernel-entry:DB,NMI@exc_debug~64,MC@exc_nmi~8",
    ],
)
def test_our_entry_resumes(entry: Target, text: str) -> None:
    shown = replay(entry, parse(text, entry))
    assert shown.verdict.property == "", shown.verdict
    assert shown.verdict.outcome == "resumed"


def test_contradiction_and_exhaustion_end_in_a_double_fault(entry: Target) -> None:
    for text in ("contradiction-rsp-nmi_stack:MC", "kernel-main-full-0x1e00:NMI"):
        shown = replay(entry, parse(text, entry))
        assert shown.verdict.outcome == "double fault, with cause", shown.verdict


def test_a_closed_gate_is_an_error_not_a_pass(entry: Target) -> None:
    with pytest.raises(ScheduleError, match="its gate is closed"):
        replay(entry, parse("user:NMI,NMI@asm_exc_nmi", entry))
