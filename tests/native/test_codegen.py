# SPDX-License-Identifier: GPL-2.0-only
"""Compiled code against the interpreters: the native one in searches, the reference one by instruction."""

import ctypes as c
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import MappingProxyType

import pytest

from atomicist.crosscheck.generate import random_choice
from atomicist.crosscheck.states import ARENA, ARENA_SIZE, Prepared, State, make_state
from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.isa.delivery import deliver
from atomicist.isa.ir import Code, Insn
from atomicist.isa.registers import REGISTERS, SLOTS
from atomicist.machine.interpreter import Fault, ForeignGsBase, Unmodelled
from atomicist.machine.memory import PAGE
from atomicist.machine.target import Target
from atomicist.native import codegen, expressions, layout
from atomicist.native.build import cache_dir, runtime_sources, shared_object
from atomicist.native.engine import Engine, NativeResult
from atomicist.native.flow import FlowGraph, compilable
from atomicist.native.tables import render
from atomicist.spec.contexts import Context, contexts
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES
from tests.isa.engines import PLACES, arena_pages, code_page, reference_machine, target_of
from tests.isa.forms import encodings

MAX_STEPS = 20000
HARNESS = Path(__file__).with_name("compiled_harness.c")
REFUSES = 6
NO_CHECKS = '"compiled.h"\n#undef REFUSE_IF\n#define REFUSE_IF(x) if (0) goto refused'


@functools.cache
def entry() -> Target:
    """Our entry, bare."""
    config = BareConfig()
    return load(build(kernel_source(), config, cache_dir()), config)


@functools.cache
def entry_contexts() -> dict[str, Context]:
    return {context.name: context for context in contexts(entry())}


def compare_searches(
    target: Target, starts: Sequence[Context], *, budget: int, offered: int, first: int
) -> list[NativeResult]:
    """The same searches, interpreted and compiled; they have to be the same in everything."""
    code = codegen.compiled(target, CODES, EVENTS, ERROR_TOKEN)
    results = []
    with Engine(target, CODES, EVENTS, ERROR_TOKEN, MAX_STEPS) as engine:
        for start in starts:
            search = functools.partial(
                engine.enumerate, start.registers, budget=budget, offered=offered, first=first,
                expect_df=start.expect_df, no_stack=start.no_stack,
            )  # fmt: skip
            plain, fast = search(), search(run=code.address)
            assert fast == plain, start.name
            results.append(fast)
    return results


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_two_events_in_many_contexts(every: int) -> None:
    starts = tuple(entry_contexts().values())[::every]
    for result in compare_searches(entry(), starts, budget=2, offered=15, first=15):
        assert not result.overflow
        assert result.executed > 100


def test_three_events() -> None:
    starts = [entry_contexts()[name] for name in ("user", "kernel-task", "kernel-main-0x165")]
    for result in compare_searches(entry(), starts, budget=3, offered=9, first=1):
        assert result.hits > result.misses > 0


@pytest.mark.slow
def test_three_events_of_any_vector() -> None:
    starts = [entry_contexts()[name] for name in ("user", "kernel-task")]
    compare_searches(entry(), starts, budget=3, offered=15, first=15)


def without(target: Target, every: int, start: int) -> Target:
    """The target with one store in ``every`` left out."""
    broken = dict(target.insns)
    stores = [va for va, i in sorted(target.insns.items()) if any(o.code is Code.STORE for o in i.ops)]
    for va in stores[start::every]:
        insn = broken[va]
        broken[va] = replace(insn, ops=tuple(o for o in insn.ops if o.code is not Code.STORE))
    return replace(target, insns=MappingProxyType(broken))


@pytest.mark.parametrize(
    "start", [40, pytest.param(7, marks=pytest.mark.slow), pytest.param(93, marks=pytest.mark.slow)]
)
def test_the_same_findings_in_broken_code(start: int) -> None:
    starts = [entry_contexts()[name] for name in ("user", "kernel-task", "kernel-main-0xb0")]
    results = compare_searches(without(entry(), 97, start), starts, budget=2, offered=15, first=15)
    assert sum(len(r.findings) for r in results) > 10


def test_a_commit_with_a_register_left_is_found_in_both() -> None:
    """Compiled code stops at a commit behind the last event; what is claimed of it is judged there, too."""
    insns = dict(entry().insns)
    for va, insn in entry().insns.items():
        if insn.text == "xor ebx, ebx":
            insns[va] = replace(insn, ops=())
    target = replace(entry(), insns=MappingProxyType(insns))
    (result,) = compare_searches(target, [entry_contexts()["user"]], budget=1, offered=15, first=15)
    assert {finding.property for finding in result.findings} == {CODES["COMMITTED_STATE"]}


def test_endless_code_ends_at_the_same_instruction() -> None:
    """The bound on instructions holds to the instruction in compiled code, too."""
    start = [entry_contexts()["kernel-task"]]
    code = codegen.compiled(entry(), CODES, EVENTS, ERROR_TOKEN)
    for bound in (30, 77, 78, 79):
        with Engine(entry(), CODES, EVENTS, ERROR_TOKEN, bound) as engine:
            search = functools.partial(engine.enumerate, start[0].registers, budget=1, offered=15, first=15)
            plain = search()
            assert search(run=code.address) == plain
            assert plain.findings


def test_all_of_the_entry_is_compiled() -> None:
    """What is not is right, but ten times as slow."""
    graph = FlowGraph(entry())
    left = [i.text for va, i in entry().insns.items() if va not in graph.insns and va not in graph.stops]
    assert {text.split()[0] for text in left} <= {"hlt", "int3"}
    for name in EVENTS:
        assert compilable(deliver(entry().gates[name]), delivery=True)


def test_a_cut_search_says_so() -> None:
    with Engine(entry(), CODES, EVENTS, ERROR_TOKEN, MAX_STEPS) as engine:
        cut = engine.enumerate(entry_contexts()["user"].registers, budget=2, offered=15, first=15, limit=100)
    assert cut.overflow
    assert 100 <= cut.executed < 200


# --- instruction by instruction ---


class Outcome(c.Structure):
    _fields_ = [("status", c.c_uint64), ("insns", c.c_uint64), ("writes", c.c_uint64)]


@dataclass
class Compiled:
    """Single instructions, compiled, each at its own place."""

    library: c.CDLL
    target: Target
    order: dict[int, int]

    def run(self, prepared: Prepared, state: State, *, by_one: bool) -> tuple[int, list[int], bytes]:
        """Status, registers and arena after the instruction."""
        pages = (layout.CPage * len(self.target.pages))()
        for i, page in enumerate(self.target.pages):
            pages[i].base, pages[i].flags = page.base, int(page.flags)
        registers = layout.Registers(*registers_of(prepared, state))
        memory = c.create_string_buffer(state.arena, PAGE * len(pages))
        outcome = Outcome()
        size, gsbase = self.target.insns[prepared.va].size, c.c_uint64(state.registers["GSBASE"])
        sound = self.library.harness(
            pages, len(pages), registers, memory, gsbase, self.order[prepared.va],
            size, int(by_one), c.byref(outcome),
        )  # fmt: skip
        assert sound, f"{prepared.text}: a store is missing in the log"
        refused = outcome.insns == 0
        return REFUSES if refused else int(outcome.status), list(registers), memory.raw[:ARENA_SIZE]


def registers_of(prepared: Prepared, state: State) -> list[int]:
    file = [0] * SLOTS
    values = {"CS": 0x10, "SS": 0x18, "CR4": 1 << 16, "RIP": prepared.va} | state.registers
    for name, value in values.items():
        file[REGISTERS[name].slot] = value
    return file


def compile_forms(insns: Sequence[Insn]) -> Compiled:
    """Compile ``insns``, which do not follow one another."""
    places = sorted({insn.va & -PAGE for insn in insns})
    pages = (*arena_pages(bytes(ARENA_SIZE)), *(code_page(va) for va in places))
    target = target_of({insn.va: insn for insn in insns}, pages, 0)
    sources = {name: text for name, text in runtime_sources().items() if name.endswith(".h")}
    sources |= {
        "tables.h": render(CODES, EVENTS, ERROR_TOKEN), "code.c": codegen.source(target, ()),
        "harness.c": HARNESS.read_text(),
    }  # fmt: skip
    library = c.CDLL(str(shared_object(sources, ("code.c", "harness.c"), codegen.FLAGS)))
    return Compiled(library, target, {va: i for i, va in enumerate(sorted(target.insns))})


def check(forms: Sequence[tuple[Prepared, Insn]], states: int) -> tuple[list[str], int, int]:
    """What differs from the reference; how often compiled code ran, and how often it refused."""
    compiled = compile_forms([insn for _, insn in forms])
    random = Random(7)  # noqa: S311 - the same states each time
    wrong, ran, refused = [], 0, 0
    for prepared, insn in forms:
        for _ in range(states):
            state = make_state(prepared, *random_choice(random))
            machine = reference_machine(state, insn)
            before = list(machine.registers)
            try:
                machine.step()
                fine = True
            except (Fault, Unmodelled, ForeignGsBase):
                fine = False
            arena = b"".join(
                bytes(machine.memory._data[at // PAGE]) for at in range(ARENA, ARENA + ARENA_SIZE, PAGE)
            )
            for by_one in (False, True):
                status, registers, found = compiled.run(prepared, state, by_one=by_one)
                refused += status == REFUSES and fine
                ran += status != REFUSES
                if status == REFUSES:
                    same = registers == before and found == state.arena
                else:
                    same = fine and registers == machine.registers and found == arena
                if not same:
                    wrong.append(f"{prepared.text} {'one' if by_one else 'run'} status {status}")
    return wrong, ran, refused


def forms(per_mnemonic: int | None) -> list[tuple[Prepared, Insn]]:
    raws = [raw for group in encodings().values() for raw in group[:per_mnemonic]]
    return [PLACES.get(raw) for raw in dict.fromkeys(raws)]


def test_forms_agree_with_the_reference() -> None:
    wrong, ran, refused = check(forms(3), 6)
    assert not wrong, wrong[:20]
    assert ran > 4 * refused, "refusing is right, but slow"


@pytest.mark.slow
def test_all_forms_agree_with_the_reference() -> None:
    wrong, ran, refused = check(forms(None), 8)
    assert not wrong, wrong[:20]
    assert ran > 4 * refused


@pytest.mark.parametrize(
    "code", [Code.INT_SUB, Code.INT_XOR, Code.INT_SRIGHT, Code.INT_CARRY, Code.INT_SBORROW]
)
def test_a_miscompiled_operation_is_caught(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    right = expressions._BINARY[code]
    monkeypatch.setitem(expressions._BINARY, code, lambda a, b: f"({right(a, b)}) ^ 1")
    some = [raw for name in ("sub", "xor", "sar", "add", "cmp") for raw in encodings()[name][:4]]
    wrong, _, _ = check([PLACES.get(raw) for raw in some], 4)
    assert wrong


def test_a_forgotten_check_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store to a read-only page: refused, unless the check is left out."""
    found = [PLACES.get(raw) for raw in encodings()["push"][:4]]
    sound = compile_forms([insn for _, insn in found])
    source = codegen.source
    monkeypatch.setattr(codegen, "source", lambda *a: source(*a).replace('"compiled.h"', NO_CHECKS))
    broken = compile_forms([insn for _, insn in found])
    prepared, _ = found[0]
    state = make_state(prepared, (1, 2, 3), 0, 0)
    state.registers["RSP"] = (prepared.va & -PAGE) + 0x100
    assert sound.run(prepared, state, by_one=True)[0] == REFUSES
    assert broken.run(prepared, state, by_one=True)[0] != REFUSES
