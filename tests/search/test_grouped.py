# SPDX-License-Identifier: GPL-2.0-only
"""Many mutants in one image: who is found is found alone; who is not found does the same, or is said
not to; a certificate serves for another one only if it holds for as much."""

import itertools
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace

import pytest

from atomicist.image.mutate import Change, Mutant
from atomicist.machine.target import Target
from atomicist.native.engine import NativeResult
from atomicist.search.alike import GRADES, OTHER_ENDS, SAME, SAME_ENDS, alone, compare
from atomicist.search.grouped import Group, Member, ask_all, finds
from atomicist.search.mutation import (
    FEW,
    IMAGES,
    Held,
    Outcome,
    Part,
    Quick,
    batches,
    by_name,
    held,
    look,
)
from atomicist.spec.contexts import contexts
from atomicist.spec.events import EVENTS


def parts(quick: Quick, entry: Target) -> list[Part]:
    """A certificate from kernel mode for each event, and what it executes."""
    context = next(c for c in contexts(entry) if c.name == "kernel-task")
    found = []
    for v in range(len(EVENTS)):
        quick.engine.ran()
        assert not look(quick.engine, Part(context, v, closed=True)).findings
        found.append(Part(context, v, closed=True, ran=quick.engine.ran()))
    return found


def test_who_of_many_is_found(quick: Quick, entry: Target, mutants: dict[str, Mutant]) -> None:
    commuting = [m for m in mutants.values() if re.fullmatch(r"xor e(si|cx), e\w+; .*", m.was)]
    bad = [mutants["delete@asm_exc_nmi+0x6"], mutants["delete@atomic_ist_commit_nmi+0x18"]]
    some = [*commuting[:2], bad[0], *commuting[2:5], bad[1], *commuting[5:8]]
    assert batches(quick.mutator, some, 50) == [tuple(some)]
    outcomes = by_name(ask_all(quick, some, parts(quick, entry), finds(entry)))
    assert {n for n, o in outcomes.items() if o.status == "killed"} == {m.name for m in bad}
    for m in bad:
        (alone,) = ask_all(quick, [m], parts(quick, entry), finds(entry))
        assert (alone.status, alone.property) == ("killed", outcomes[m.name].property)


def test_a_mutant_is_not_asked_where_it_is_not_executed(
    quick: Quick, entry: Target, mutants: dict[str, Mutant]
) -> None:
    bad = mutants["delete@asm_exc_nmi+0x6"]
    nothing = [replace(p, ran=bytes(len(p.ran))) for p in parts(quick, entry)]
    assert ask_all(quick, [bad], nothing, finds(entry))[0].status == "passed"


def test_what_is_found_only_together_is_put_apart(quick: Quick, entry: Target) -> None:
    """Two that undo each other when both are there would be missed; two that are bad only
    together are not blamed."""
    group = Group(quick, [], finds(entry))
    pair = [Member(m, Change({}, {}), ()) for m in quick.mutator.mutants()[:2]]
    group.left = list(pair)
    shows = {2: Outcome(pair[0].mutant.name, "killed", "certificate"), 1: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "_shows", lambda self, some, part: shows[len(some)])
        assert group.ask(Part(contexts(entry)[0], 0, closed=True))
    assert (group.left, group.apart, group.found) == (pair[:1], pair[1:], [])


# --- what does the same ---


@pytest.fixture(scope="module")
def compared(quick: Quick, entry: Target) -> tuple[Part, ...]:
    """What `parts` has, with what is held and left behind."""
    found = []
    for part in parts(quick, entry):
        result = look(quick.engine, part)
        found.append(replace(part, held=held(result), ends=result.ends))
    return tuple(found)


ALIKE = {
    # of a function that never returns, what it pushes is read by nobody
    ("delete", "atomic_ist_walk_nmi", "push r14"): SAME,
    # RFLAGS of a committed entry: bit 0 is CF, of which it knows nothing
    ("immediate", "atomic_ist_walk_nmi", r"mov qword ptr \[r\w+ \+ 0x90\], 2"): OTHER_ENDS,
    # every context takes the general way, which ends the same
    ("delete", "atomic_ist_copy_nmi", "jae .*"): SAME_ENDS,
}


def test_what_leaves_the_same_behind_is_told_from_what_does_not(
    quick: Quick, entry: Target, mutants: dict[str, Mutant], compared: tuple[Part, ...]
) -> None:
    known: dict[str, str] = {}
    for (kind, place, was), by in ALIKE.items():
        named = (m for m in mutants.values() if m.kind == kind and f"@{place}+" in m.name)
        known[next(m.name for m in named if re.fullmatch(was, m.was))] = by
    for name, by in known.items():
        assert alone(quick, entry, mutants[name], compared).by == by
    for grade, worse in itertools.pairwise(GRADES):
        reached = {n: grade if GRADES.index(by) <= GRADES.index(grade) else worse for n, by in known.items()}
        outcomes = compare(quick, entry, [mutants[n] for n in known], compared, grade)
        assert {o.name: o.by for o in outcomes} == reached


def test_two_that_undo_each_other_are_told_from_the_original_alone(
    quick: Quick, entry: Target, mutants: dict[str, Mutant], compared: tuple[Part, ...]
) -> None:
    """`compare` sees only what both do together, so `alone` has to come first."""
    mutant = mutants["delete@asm_exc_nmi+0x6"]
    with pytest.MonkeyPatch.context() as patch:
        # as if another mutant had undone it
        patch.setattr(quick, "patched", lambda changes: nullcontext())
        assert [o.by for o in compare(quick, entry, [mutant], compared, SAME)] == [SAME]
    assert alone(quick, entry, mutant, compared).status == "killed"


def test_suspicion_only_makes_the_search_shorter(
    quick: Quick, entry: Target, mutants: dict[str, Mutant], compared: tuple[Part, ...]
) -> None:
    """Halves find the same, in more certificates."""
    some = [m for m in mutants.values() if m.kind == "delete"][:40]
    looks: list[int] = []
    look_at = quick.look

    def counted(changes: Iterable[Change], part: Part) -> tuple[NativeResult, bytes]:
        looks[-1] += 1
        return look_at(changes, part)

    found = []
    for divided in (
        Group._divided,
        lambda self, some, part: (some[: len(some) // 2], some[len(some) // 2 :]),
    ):
        looks.append(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quick, "look", counted)
            patch.setattr(Group, "_divided", divided)
            found.append({o.name: o.status for o in ask_all(quick, some, compared, finds(entry))})
    assert found[0] == found[1]
    assert "killed" in found[0].values()
    assert looks[0] < looks[1]


def test_a_certificate_serves_if_it_holds_for_as_much_and_meets_no_more(compared: tuple[Part, ...]) -> None:
    one = compared[0].held
    assert one is not None
    assert one.serves_for(one)
    less_rips = replace(one, covers=_without_one(one.covers))
    less_rsps = replace(one, covers_rsp=_without_one(one.covers_rsp))
    more_values = replace(one, covers_key=tuple(v | {7} for v in one.covers_key))
    more_met = replace(one, shapes=one.shapes | {b"another"})
    fewer_met = replace(one, shapes=frozenset(sorted(one.shapes)[1:]))
    asked, less_held = replace(one, holds=(True, True)), replace(one, holds=(True, False))
    other_cells = replace(one, cells=(((0, True), (1, False)),))
    _serves_one_way(one, less_rips)
    _serves_one_way(one, less_rsps)
    _serves_one_way(more_values, one)
    _serves_one_way(one, more_met)
    _serves_one_way(fewer_met, one)
    _serves_one_way(asked, less_held)
    assert not one.serves_for(asked)
    assert not one.serves_for(other_cells)
    assert not other_cells.serves_for(one)


def _without_one(flags: bytes) -> bytes:
    at = flags.index(1)
    return flags[:at] + b"\0" + flags[at + 1 :]


def _serves_one_way(better: Held, worse: Held) -> None:
    assert better.serves_for(worse)
    assert not worse.serves_for(better)


def test_neighbours_are_dealt_to_different_images(quick: Quick, mutants: dict[str, Mutant]) -> None:
    deleted = sorted((m for m in mutants.values() if m.kind == "delete"), key=lambda m: m.va)[: IMAGES * FEW]
    dealt = batches(quick.mutator, deleted, len(deleted))
    image = {m.name: number for number, some in enumerate(dealt) for m in some}
    assert len(dealt) >= IMAGES
    assert max(len(some) for some in dealt) <= 2 * FEW
    near = sum(image[one.name] == image[next_.name] for one, next_ in itertools.pairwise(deleted))
    assert near < len(deleted) // FEW
