# SPDX-License-Identifier: GPL-2.0-only
"""Contexts within a safe-RET: resumed behind it, in our environment's answer and in Debian's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from atomicist.image import bare, specimens, vmlinux
from atomicist.image.bare import BareConfig
from atomicist.image.errors import ImageError
from atomicist.image.safe_ret import places
from atomicist.isa.lift import Lifter
from atomicist.isa.registers import REGISTERS
from atomicist.machine.target import Place, Target
from atomicist.native.build import cache_dir
from atomicist.search.certificate import certify
from atomicist.search.replay import Timed, find_context, replay_timed
from atomicist.search.verify import EXPLORED, explored
from atomicist.search.workers import new_engine
from atomicist.spec.contexts import contexts
from atomicist.spec.events import EVENTS
from tests.debian_kernel import fetched

CONFIG = BareConfig(mitigation="srso")
INSIDE = ("kernel-task-srso_safe_ret", "kernel-task-srso_safe_ret+0x5")
DEBIANS = {
    "SRSO": ("kernel-task-srso_safe_ret", "kernel-task-srso_safe_ret+0x5"),
    "SRSO_ALIAS": ("kernel-task-srso_alias_safe_ret", "kernel-task-srso_alias_safe_ret+0x5"),
}


@pytest.fixture(scope="module")
def safe() -> Target:
    return bare.load(bare.build(bare.kernel_source(), CONFIG, cache_dir()), CONFIG)


def debian(feature: str) -> Target:
    return vmlinux.load(fetched(), vmlinux.DEFAULT_FEATURES | {feature, "UNRET", "RETHUNK"})


def judged(target: Target, name: str, vector: str) -> tuple[str, int]:
    """What both engines say of one event: the property, "" if the context is resumed; and RIP at the end."""
    start = find_context(target, name)
    verdict = replay_timed(target, start, [Timed(vector, 0)], traced=False).verdict
    with new_engine(target) as engine:
        native = engine.follow(start.registers, [(EVENTS.index(vector), 0)])
    assert native == (int(verdict.property[3:]) if verdict.property else 0)
    return verdict.property, verdict.rip


@pytest.mark.parametrize("name", INSIDE)
def test_a_certificate_within_a_safe_ret(safe: Target, name: str) -> None:
    """Nothing found, nothing left open; it holds for itself alone, and no other for it."""
    start = {c.name: c for c in contexts(safe)}
    order = sorted(safe.insns)
    rip = REGISTERS["RIP"].slot
    with new_engine(safe) as engine:
        found = engine.certify(
            start[name].registers, EVENTS.index("NMI"), expect_df=False, no_stack=False,
            others=[start["kernel-task"].registers],
        )  # fmt: skip
        assert (found.findings, found.dependence, found.holds) == ((), None, (False,))
        assert [va for va, flag in zip(order, found.covers, strict=True) if flag] == [
            start[name].registers[rip]
        ]
        task = safe.named_region("task_stack")
        assert sum(found.covers_rsp[: (task.top - task.bottom) // 8]) == 1
        other = engine.certify(
            start["kernel-task"].registers, EVENTS.index("NMI"), expect_df=False, no_stack=False,
            others=[start[name].registers],
        )  # fmt: skip
        assert other.holds == (False,)
        assert not any(other.covers[order.index(start[n].registers[rip])] for n in INSIDE)


def test_it_goes_on_behind_the_sequence(safe: Target) -> None:
    """Each at the return address that is on the stack there: the LEA skips the first."""
    for vector in EVENTS:
        ends = [judged(safe, name, vector) for name in INSIDE]
        assert [rip & 0xFFFF for _, rip in ends] == [0x1341, 0x1230]
        assert {violated for violated, _ in ends} == {""}


@pytest.mark.parametrize(
    ("line", "missing_at"),
    [
        ("\taddq\t$8, %rax\n.Lret_is_left", 0),
        ("\tmovq\t%rax, REGS_AT_COMMIT + RSP(%rsp)\n", 2),
        ("\tmovq\t%rcx, REGS_AT_COMMIT + RIP(%rsp)\n", 2),
    ],
)
def test_half_of_the_answer_is_found(tmp_path: Path, line: str, missing_at: int) -> None:
    kernel = shutil.copytree(bare.kernel_source(), tmp_path / "kernel")
    calling = kernel / "bare" / "calling.h"
    text = calling.read_text()
    assert text.count(line) == 1
    calling.write_text(text.replace(line, ".Lret_is_left" if line.endswith(".Lret_is_left") else ""))
    target = bare.load(bare.build(kernel, CONFIG, tmp_path), CONFIG)
    wrong = [bool(judged(target, name, "NMI")[0]) for name in INSIDE]
    assert wrong == ([True, False] if missing_at == 0 else [True, True])


def test_only_where_something_leads_there(entry: Target, safe: Target) -> None:
    """An image without such a sequence has no such contexts, and an enumeration looks at them."""
    assert explored(entry) == EXPLORED
    assert explored(safe) == (*EXPLORED, *INSIDE)


def test_another_safe_ret_is_refused() -> None:
    """Linux's first one was ADD, which changes flags; what is not known is not guessed."""
    lifter = Lifter()
    code = {0x1000: bytes.fromhex("4883c408"), 0x1004: bytes.fromhex("c3")}
    insns = {va: lifter.lift(va, raw) for va, raw in code.items()}
    with pytest.raises(ImageError, match="no such safe-RET is known"):
        places({"srso_safe_ret": 0x1000}, insns)
    assert places({"srso_safe_ret": 0x2000}, insns) == {}


@pytest.mark.parametrize("feature", sorted(DEBIANS))
def test_debian(feature: str) -> None:
    """6.1.192 completes the sequence in the pt_regs that the handler is shown.  Its NMI entry returns by
    another copy of the frame, made before: an NMI goes on within the sequence."""
    target = debian(feature)
    for name in DEBIANS[feature]:
        assert {v: judged(target, name, v)[0] for v in EVENTS} == {
            "NMI": "IST030", "DB": "", "MC": "", "VC": "",
        }  # fmt: skip


def test_debian_without_its_answer() -> None:
    """The call of the helper replaced by a NOP of its length: #MC goes on within the sequence as well."""
    target = debian("SRSO")
    helper = target.symbols["__handle_intr_saferet"]
    calls = [va for va, i in target.insns.items() if i.target == helper]
    assert calls
    nop = {va: Lifter().lift(va, bytes.fromhex("0f1f440000")) for va in calls}
    without = replace(target, insns=MappingProxyType(dict(target.insns) | nop))
    assert judged(target, DEBIANS["SRSO"][0], "MC")[0] == ""
    assert judged(without, DEBIANS["SRSO"][0], "MC")[0] == "IST030"


def test_the_specimen_differs_in_nothing_else(safe: Target) -> None:
    """From elsewhere it does as ours does."""
    resumed = specimens.load(specimens.find("h-safe-ret-resumed"), BareConfig(), cache_dir())
    assert set(resumed.places.values()) == set(safe.places.values())
    assert Place.LEA_LEFT in resumed.places.values()
    assert judged(resumed, "kernel-task", "NMI")[0] == ""
    assert judged(resumed, INSIDE[1], "NMI")[0] == "IST030"


@pytest.mark.slow
def test_an_entry_that_runs_one_itself_is_not_closed(tmp_path: Path) -> None:
    """There the return address is in memory of which a certificate knows nothing."""
    kernel = shutil.copytree(bare.kernel_source(), tmp_path / "kernel")
    untrain, check = kernel / "bare" / "untrain.S", kernel / "bare" / "check.sh"
    text, last = untrain.read_text(), "\tjmp\t__x86_return_thunk\n"
    assert text.count(last) == 1
    untrain.write_text(text.replace(last, "\tcall\tsrso_safe_ret\n\tud2\n"))
    check.write_text("#!/bin/sh\n# SPDX-License-Identifier: GPL-2.0-only\n")
    target = bare.load(bare.build(kernel, CONFIG, tmp_path), CONFIG)
    result, raw = certify(target, vectors=(EVENTS.index("NMI"),))
    assert not raw
    assert not result.closed
    assert result.open_because.endswith("depends on memory that it does not own at srso_safe_ret")
