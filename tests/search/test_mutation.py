# SPDX-License-Identifier: GPL-2.0-only
"""Mutants are what they say, are found for the right reason, or shown to be equivalent; a
run that was cut short goes on where it was."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import capstone
import pytest

from atomicist.image.mutate import KINDS, Mutant, Mutator
from atomicist.machine.target import Target
from atomicist.search import mutation_run
from atomicist.search.exceptions import Named, exceptions, judge, read
from atomicist.search.mutation import Outcome, Quick, batches
from atomicist.search.mutation_run import Journal
from atomicist.search.progress import silent
from atomicist.search.replay import replay
from atomicist.search.schedule import parse


def decode(mutator: Mutator, mutant: Mutant) -> list[capstone.CsInsn]:
    return [d for d in mutator.decoded(mutant) if mutant.va <= d.address]


def one(mutator: Mutator, entry: Target, mutant: Mutant) -> tuple[capstone.CsInsn, capstone.CsInsn]:
    insn = entry.insns[mutant.va]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    return next(decoder.disasm(insn.raw, insn.va)), decode(mutator, mutant)[0]


def test_names_are_unique_and_all_kinds_are_there(quick: Quick, mutants: dict[str, Mutant]) -> None:
    assert len(mutants) == len(quick.mutator.mutants())
    assert {m.kind for m in mutants.values()} == set(KINDS)


def test_each_instruction_is_deleted(quick: Quick, mutants: dict[str, Mutant]) -> None:
    deleted = {m.va for m in mutants.values() if m.kind == "delete"}
    same = {i.va for i in quick.mutator.insns if i.text.startswith("nop")}
    assert {i.va for i in quick.mutator.insns} - deleted <= same


def test_mutants_decode_to_what_was_meant(entry: Target, quick: Quick, mutants: dict[str, Mutant]) -> None:
    for mutant in mutants.values():
        insn = entry.insns[mutant.va]
        now = decode(quick.mutator, mutant)
        if mutant.kind == "delete":
            assert [(d.mnemonic, d.size) for d in now] == [("nop", insn.size)], mutant.name
        elif mutant.kind == "swap":
            names = [i.text.split()[0] for i in (entry.insns[insn.next], insn)]
            assert [d.mnemonic.split()[0] for d in now[:2]] == names, mutant.name
        else:
            old, new = one(quick.mutator, entry, mutant)
            assert new.size == old.size, mutant.name
            if mutant.kind == "branch":
                assert old.mnemonic == new.mnemonic
            elif mutant.kind == "condition":
                assert old.mnemonic != new.mnemonic
                assert old.op_str == new.op_str, mutant.name
            else:
                assert old.mnemonic == new.mnemonic, mutant.name
                assert old.op_str != new.op_str, mutant.name


def test_off_by_one_is_by_one(entry: Target, quick: Quick, mutants: dict[str, Mutant]) -> None:
    steps = {"displacement": 1, "slot": 8}
    for mutant in mutants.values():
        if mutant.kind in steps:
            old, new = one(quick.mutator, entry, mutant)
            assert abs(old.disp - new.disp) == steps[mutant.kind], mutant.name


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("delete@asm_exc_nmi+0x6", {"IST001", "IST021"}),  # push rdi
        ("swap@asm_exc_nmi+0x6", {"IST001"}),  # rdi and rsi
        ("delete@asm_exc_nmi+0x3", {"IST011", "IST028"}),  # cld
        ("delete@atomic_ist_commit_nmi+0x18", {"IST028"}),  # xor r12d, r12d
        ("delete@native_iret", {"IST024"}),  # what follows is not in the user's page tables
    ],
)
def test_killed_for_the_right_reason(
    quick: Quick, mutants: dict[str, Mutant], name: str, properties: set[str]
) -> None:
    mutant = mutants[name]
    (outcome,) = quick.chunk([mutant])
    assert outcome.status == "killed"
    assert outcome.property in properties
    # the reference interpreter says so too
    mutated = quick.mutator.apply((mutant,))
    assert replay(mutated, parse(outcome.schedule, mutated)).verdict.property == outcome.property


def test_equivalent_is_shown(quick: Quick, mutants: dict[str, Mutant]) -> None:
    swapped = next(m for m in mutants.values() if m.was == "xor r8d, r8d; xor r9d, r9d")
    (outcome,) = quick.chunk([swapped])
    assert (outcome.status, outcome.reason) == ("equivalent", "the instructions commute")


def test_no_argument_for_what_differs(quick: Quick, mutants: dict[str, Mutant]) -> None:
    for name in ("swap@asm_exc_nmi+0x6", "delete@atomic_ist_commit_nmi+0x18"):
        mutant = mutants[name]
        assert not quick.argument(mutant, quick.mutator.lift(mutant.edits))


def argument(quick: Quick, mutants: dict[str, Mutant], was: str) -> str:
    mutant = next(m for m in mutants.values() if m.kind == "swap" and re.fullmatch(was, m.was))
    return quick.argument(mutant, quick.mutator.lift(mutant.edits))


@pytest.mark.parametrize(
    "was", ["rdgsbase rbx; mov eax, .*", "swapgs; lfence", "pop rdi; swapgs", "jne .*; mov r14, cr3"]
)
def test_system_instructions_are_argued_about(quick: Quick, mutants: dict[str, Mutant], was: str) -> None:
    assert argument(quick, mutants, was)


@pytest.mark.parametrize(
    "was",
    [
        "mov cr3, rax; mov rdi, qword ptr gs:.*",  # other page tables
        "mov rax, cr3; and rax, .*",
        "bts rax, 0x3f; mov cr3, rax",
        "lsl eax, eax; and eax, .*",
    ],
)
def test_what_depends_is_not_argued_away(quick: Quick, mutants: dict[str, Mutant], was: str) -> None:
    assert not argument(quick, mutants, was)


def test_unreached(entry: Target, mutants: dict[str, Mutant]) -> None:
    nothing = Quick(entry, bytes(len(entry.insns)))
    (outcome,) = nothing.chunk([mutants["delete@asm_exc_nmi+0x6"]])
    assert (outcome.status, outcome.reason) == ("equivalent", "never executed")


def test_batches_do_not_overlap(quick: Quick, mutants: dict[str, Mutant]) -> None:
    some = list(mutants.values())[:300]
    found = batches(quick.mutator, some, 50)
    assert sorted(m.name for b in found for m in b) == sorted(m.name for m in some)
    for batch in found:
        taken = [va + k for m in batch for va, new in m.edits for k in range(len(new))]
        assert len(taken) == len(set(taken)) <= 50 * 30


def test_a_patched_engine_is_as_before_afterwards(quick: Quick, mutants: dict[str, Mutant]) -> None:
    mutant = mutants["delete@asm_exc_nmi+0x6"]
    assert [o.status for o in quick.chunk([mutant, mutant])] == ["killed", "killed"]
    swapped = next(m for m in mutants.values() if m.was == "xor r8d, r8d; xor r9d, r9d")
    assert quick.chunk([swapped])[0].status == "equivalent"


# --- the journal ---


def outcomes(*names: str) -> list[Outcome]:
    return [Outcome(n, "killed", "one event", "IST001", "user:NMI", "", 0.5) for n in names]


def test_journal_survives_a_kill(tmp_path: Path) -> None:
    place = tmp_path / "journal"
    journal = Journal(place, "x")
    journal.add("a", outcomes("m1"))
    whole = place.read_bytes()
    journal.add("b", outcomes("m2"))
    for cut in range(len(whole) + 1, len(place.read_bytes())):
        (tmp_path / "cut").write_bytes(place.read_bytes()[:cut])
        again = Journal(tmp_path / "cut", "x")
        assert again.portions["a"] == outcomes("m1")
        again.add("c", outcomes("m3"))
        assert Journal(tmp_path / "cut", "x").portions["c"] == outcomes("m3")


def test_journal_of_something_else_is_not_used(tmp_path: Path) -> None:
    Journal(tmp_path / "j", "one image").add("a", outcomes("m1"))
    assert not Journal(tmp_path / "j", "another").portions
    assert json.loads((tmp_path / "j").read_text()) == {"about": "another"}


def test_finished_portions_are_not_done_again(tmp_path: Path) -> None:
    done: list[int] = []

    def work(number: int) -> tuple[str, list[Outcome]]:
        if number == 2 and len(done) < 3:
            done.append(number)
            raise KeyboardInterrupt
        done.append(number)
        return f"p{number}", outcomes(f"m{number}")

    def portions() -> Iterator[list[Outcome]]:
        journal = Journal(tmp_path / "j", "x")
        return mutation_run._portions(journal, ["p0", "p1", "p2", "p3"], work, 1, "", 4, silent)

    with pytest.raises(KeyboardInterrupt):
        list(portions())
    assert [o.name for p in portions() for o in p] == ["m0", "m1", "m2", "m3"]
    assert done == [0, 1, 2, 2, 3]


# --- named exceptions ---


def test_an_exception_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="no reason"):
        read("[[exception]]\nname = 'x'\n")
    with pytest.raises(ValueError, match="unknown kinds"):
        read("[[exception]]\nname = 'x'\nreason = 'y'\nkinds = ['?']\n")


def test_an_exception_without_a_survivor_is_wrong(mutants: dict[str, Mutant]) -> None:
    some = [mutants["delete@asm_exc_nmi+0x6"]]
    named = Named("x", "because", kinds=("delete",))
    killed = {some[0].name: outcomes(some[0].name)[0]}
    assert judge(some, killed, [named])[1] == ["exception 'x' explains no survivor"]
    left = {some[0].name: Outcome(some[0].name, "survived", "closed")}
    judged, wrong = judge(some, left, [named])
    assert not wrong
    assert judged[some[0].name].status == "equivalent"


def test_an_exception_is_about_what_comparing_said(mutants: dict[str, Mutant]) -> None:
    some = [mutants["delete@asm_exc_nmi+0x6"]]
    named = Named("x", "because", kinds=("delete",), compared="same ends")
    for by, status in (("closed, same ends", "equivalent"), ("closed, other ends", "survived")):
        left = {some[0].name: Outcome(some[0].name, "survived", by)}
        assert judge(some, left, [named])[0][some[0].name].status == status
    with pytest.raises(ValueError, match="compared"):
        read("[[exception]]\nname = 'x'\nreason = 'y'\ncompared = '?'\n")


def test_exceptions_are_about_mutants_that_are_there_and_are_not_found(
    quick: Quick, mutants: dict[str, Mutant]
) -> None:
    for named in exceptions():
        matched = [m for m in mutants.values() if named.matches(m)]
        assert matched, named.name
        if named.compared:
            continue  # not about all of them: see test_an_exception_is_about_what_comparing_said
        some = matched[:: max(1, len(matched) - 1)]
        found = [o.name for o in quick.chunk(some) if o.status == "killed"]
        assert not found, named.name


def test_new_boundaries_are_known_to_the_patched_engine(quick: Quick, mutants: dict[str, Mutant]) -> None:
    """A swap of unequal instructions has a boundary where there was none."""
    swapped = mutants["swap@asm_exc_nmi+0x6"]
    first = next(m for m in mutants.values() if m.was.startswith("push rax; push r8"))
    assert {len(i.raw) for i in quick.mutator.lift(first.edits).insns.values() if i} == {1, 2}
    assert [o.status for o in quick.chunk([first, swapped, first])] == ["killed"] * 3
    assert [o.property for o in quick.chunk([first, swapped])] == ["IST001", "IST001"]
