# SPDX-License-Identifier: GPL-2.0-only
"""A recorded run is the replay, step by step: registers, stores and where they came from."""

from __future__ import annotations

import pytest

from atomicist.machine.stages import COMMITTED, STAGES, labelled
from atomicist.machine.target import Place, Target
from atomicist.search.provenance import START
from atomicist.search.recording import Recording, follow, record
from atomicist.search.replay import replay
from atomicist.search.schedule import Injection, ScheduleError, parse

NESTED = "user:NMI,MC@asm_exc_nmi+0x4"


@pytest.fixture(scope="module")
def nested(entry: Target) -> Recording:
    return record(entry, parse(NESTED, entry))


def test_it_is_the_replay(entry: Target, nested: Recording) -> None:
    plain = replay(entry, parse(NESTED, entry))
    assert nested.replay.steps == plain.steps
    assert nested.replay.verdict == plain.verdict
    assert nested.replay.writes == plain.writes
    assert len(nested.moments) == len(plain.steps)


def test_changes_lead_to_the_last_registers(nested: Recording) -> None:
    now = dict(nested.start)
    for moment in nested.moments:
        for register, value in moment.changed:
            assert now[register] != value
            now[register] = value
    for register in ("RAX", "RSP", "RIP", "CR3", "GSBASE"):
        assert now[register] == nested.replay.registers[register] == nested.start[register]


def test_every_write_is_in_its_moment(nested: Recording) -> None:
    stored = {(i, s.address) for i, moment in enumerate(nested.moments) for s in moment.stored}
    written = {(w.step, a) for a, writes in nested.replay.writes.items() for w in writes if w.by != "freed"}
    assert stored == written


def test_a_source_holds_what_was_stored(nested: Recording) -> None:
    """Each source is checked by its value: the word, or the register of the first context."""
    checked = {"word": 0, "register": 0}
    for index, moment in enumerate(nested.moments):
        for stored in moment.stored:
            value = [w for w in nested.replay.writes[stored.address] if w.step == index][-1].value
            if stored.source is None:
                continue
            if stored.source.address is None:
                if stored.source.of == START and stored.source.register in nested.start:
                    assert nested.start[stored.source.register] == value
                    checked["register"] += 1
                continue
            before = [
                w for w in nested.replay.writes.get(stored.source.address, ()) if w.step <= stored.source.step
            ]
            if before:
                assert before[-1].value == value
                checked["word"] += 1
    assert checked["word"] > 50
    assert checked["register"] > 15


def test_stages_are_the_checkers_labels(entry: Target, nested: Recording) -> None:
    for name, address in entry.symbols.items():
        if labelled(name) == "kernel":
            assert entry.places[address] & Place.COMMITTED
    marked = [a for a, p in entry.places.items() if p & Place.COMMITTED]
    assert marked
    assert all(labelled(entry.symbolize(a)) == "kernel" for a in marked)
    assert [s.key for s in STAGES if s.label == COMMITTED] == ["kernel"]
    seen = [m.label for m in nested.moments]
    order = [key for i, key in enumerate(seen) if key and (not i or seen[i - 1] != key)]
    assert order[:5] == ["save2", "copy", "walk", "commit", "kernel"]


def test_an_event_that_does_not_meet_its_place_comes_behind_the_iret(entry: Target) -> None:
    schedule = parse("user:NMI,MC@asm_exc_nmi+0x4,NMI@asm_exc_nmi+0x4", entry)
    with pytest.raises(ScheduleError, match="never arrives"):
        record(entry, schedule)
    recording, moved = follow(entry, schedule)
    place = entry.symbols["atomic_ist_committed_nmi"]
    assert moved == ((2, Injection("NMI", place)),)
    assert recording.replay.verdict.outcome == "resumed"
    step = next(s for s in recording.replay.steps if s.kind == "deliver" and s.rip == place)
    assert recording.replay.steps[step.index - 1].text.startswith("iret")


def test_an_event_that_cannot_come_at_all_is_said(entry: Target) -> None:
    with pytest.raises(ScheduleError, match="nowhere behind an IRET either"):
        follow(entry, parse("user:NMI,NMI@asm_exc_nmi", entry))
