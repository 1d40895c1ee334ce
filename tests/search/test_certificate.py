# SPDX-License-Identifier: GPL-2.0-only
"""The reduction is sound: it finds what brute force finds, and covers what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest

from atomicist.image import specimens
from atomicist.image.bare import BareConfig
from atomicist.isa.registers import REGISTERS
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.native.engine import NativeResult
from atomicist.native.tables import KEY_SLOTS
from atomicist.search.certificate import Certifier, certify
from atomicist.search.progress import silent
from atomicist.search.reach import Origin, Reach
from atomicist.search.replay import find_context
from atomicist.search.workers import Workers, new_engine
from atomicist.spec.contexts import Context, contexts, from_key
from atomicist.spec.events import EVENTS
from atomicist.spec.modes import GUEST_TSC_AUX

RSP, RIP = REGISTERS["RSP"].slot, REGISTERS["RIP"].slot


def with_vectors(target: Target, *names: str) -> Target:
    """The same image on a machine that has only some of the events."""
    gates = {n: g for n, g in target.gates.items() if n in names or n not in EVENTS}
    return replace(target, gates=MappingProxyType(gates))


def run(target: Target, context: Context, vector: str, *, brute: bool = False) -> NativeResult:
    with new_engine(target) as engine:
        return engine.certify(
            context.registers,
            EVENTS.index(vector),
            expect_df=context.expect_df,
            no_stack=context.no_stack,
            brute=brute,
        )


@pytest.mark.parametrize(
    "name", ["user", "kernel-task", pytest.param("kernel-main-0x8", marks=pytest.mark.slow)]
)
def test_classes_count_what_brute_force_counts(entry: Target, name: str) -> None:
    """With three vectors all nestings can be walked one by one: the same number of
    interleavings, the same contexts behind, the same commits."""
    some = with_vectors(entry, "NMI", "MC", "DB")
    context = find_context(some, name)
    memo, brute = run(some, context, "NMI"), run(some, context, "NMI", brute=True)
    assert memo.findings == brute.findings == ()
    assert memo.interleavings == brute.interleavings > 10_000
    assert {(c.key, c.rip) for c in memo.emitted} == {(c.key, c.rip) for c in brute.emitted}
    assert memo.worst_commit <= brute.worst_commit
    assert memo.misses < brute.misses / 50


def test_what_a_certificate_covers_behaves_the_same(entry: Target) -> None:
    """Contexts at other RIPs and RSPs that a certificate says it holds for are explored
    themselves: no finding, and exactly as many interleavings."""
    order = sorted(entry.insns)
    main = entry.main_stack()
    assert main is not None
    values = {
        name: find_context(entry, "kernel-main-0x8").registers[REGISTERS[name].slot] for name in KEY_SLOTS
    }
    rip = entry.symbols["atomic_ist_committed_nmi"]

    def at(rsp: int, where: int) -> Context:
        return from_key(entry, "probe", values | {"RSP": rsp}, where)

    first = run(entry, at(main.top - 0x400, rip), "MC")
    rips = [va for va, flag in zip(order, first.covers, strict=True) if flag]
    rsps = [
        main.bottom + 8 * i
        for i, flag in enumerate(first.covers_rsp[: (main.top - main.bottom) // 8])
        if flag
    ]
    assert len(rips) > 20
    assert len(rsps) > 200
    for probe in (at(main.top - 0x400, rips[-1]), at(rsps[0], rip), at(rsps[-1], rips[0])):
        again = run(entry, probe, "MC")
        assert again.findings == ()
        assert again.interleavings == first.interleavings
        assert again.worst_commit == first.worst_commit
    uncovered = [main.bottom + 8 * i for i in range((main.top - main.bottom) // 8) if not first.covers_rsp[i]]
    assert main.bottom in uncovered, "where there is no room the outcome is another one"


def test_one_worker_and_two_give_the_same(entry: Target) -> None:
    """Order decides, not arrival."""
    some = with_vectors(entry, "NMI", "MC")
    one, raw_one = certify(some, workers=1)
    two, raw_two = certify(some, workers=2)
    assert replace(one, seconds=0) == replace(two, seconds=0)
    assert raw_one == raw_two == ()
    assert one.closed, one.open_because
    assert one.coverage.contexts > 100_000


def test_a_dependence_on_an_interrupted_register_is_not_closed(entry: Target) -> None:
    """The reach is only as good as the check that nothing else mattered: an outcome that
    rests on RAX is reported with the register's name."""
    certifier = Certifier(entry, (0,), silent)
    context = find_context(entry, "user")
    result = replace(
        run(with_vectors(entry, "NMI"), context, "NMI"), dependence=(0, entry.symbols["asm_exc_nmi"])
    )
    certifier._judge(context, result)
    assert certifier.open_because == "the outcome from user depends on RAX at asm_exc_nmi"


def test_start_contexts_have_names_of_their_own(entry: Target) -> None:
    names = [c.name for c in contexts(entry)]
    assert len(names) == len(set(names)) > 50
    for part in ("user", "gap-", "kernel-irq", "kernel-entry", "kernel-main", "bad-iret", "contradiction"):
        assert any(part in n for n in names)


def test_reach_gives_every_context_an_origin(entry: Target) -> None:
    """Contexts that are met can be reached by a schedule from a start context."""
    some = with_vectors(entry, "NMI", "MC")
    reach = Reach(some)
    start = find_context(some, "kernel-main-0x8")
    reach.certified(start, [run(some, start, "NMI"), run(some, start, "MC")], sound=True)
    reach.spread()
    left = reach.uncovered()
    assert left
    for context, origin in left:
        assert origin.name == "kernel-main-0x8"
        assert origin.legs
        assert context.registers[RIP] in some.insns


def test_which_other_contexts_a_certificate_holds_for(entry: Target) -> None:
    """Those that differ where the run does not look, and not those that it would treat otherwise."""
    by_name = {c.name: c for c in contexts(entry)}
    asked = {
        "kernel-task": {"kernel-task-aligned": True, "kernel-irq": False, "kernel-entry": False,
                        "entry-user-gs": False, "user": False, "kernel-main-0x8": False},
        "user": {"user-flags": True, "user-gs-odd": True, "user-gs-negative": True, "user-gs-kernel": True,
                 "user-rsp-nmi_stack": False, "bad-iret": False, "kernel-task": False},
        "gap-entry_SYSCALL_64": {"gap-entry_SYSCALL_64+0x3": True, "gap-entry_SYSCALL_64-hostile": False,
                                 "gap-entry_SYSRETQ_unsafe_stack": False},
    }  # fmt: skip
    with new_engine(entry) as engine:
        for name, expected in asked.items():
            context = by_name[name]
            result = engine.certify(
                context.registers, EVENTS.index("MC"), expect_df=context.expect_df, no_stack=context.no_stack,
                others=[by_name[n].registers for n in expected],
            )  # fmt: skip
            assert dict(zip(expected, result.holds, strict=True)) == expected, name


def test_tsc_aux_is_a_guests_in_kernel_mode_alone(entry: Target) -> None:
    """Linux's own in user mode, and on the entry stack, by which the kernel comes and goes."""
    found = {c.name: c.registers[REGISTERS["TSC_AUX"].slot] for c in contexts(entry)}
    own = {name for name, value in found.items() if value == entry.cpunode}
    assert {n for n in found if n.startswith(("user", "gap", "entry", "bad-iret", "kernel-entry"))} <= own
    assert found["kernel-task"] == found["kernel-irq"] == found["kernel-main-0x8"] == GUEST_TSC_AUX
    # the bits by which Linux would look for the CPU
    assert (GUEST_TSC_AUX ^ entry.cpunode) & 0xFFF


def test_a_certificate_rests_on_tsc_aux_if_it_is_read(entry: Target) -> None:
    """Where it is Linux's own, RDPID is as good as LSL: that says nothing of a guest's."""
    config = BareConfig()
    by_rdpid = specimens.load(specimens.find("h-gsbase-by-rdpid"), config, cache_dir())
    for target, expected in ((entry, True), (by_rdpid, False)):
        by_name = {c.name: c for c in contexts(target)}
        others = [by_name["kernel-task"].registers]
        with new_engine(target) as engine:
            result = engine.certify(
                by_name["kernel-task-tsc-aux-own"].registers, EVENTS.index("NMI"), expect_df=False,
                no_stack=False, others=others,
            )  # fmt: skip
        assert (result.findings, result.dependence, result.holds) == ((), None, (expected,)), target.name


@pytest.mark.slow
def test_what_is_met_does_not_depend_on_it(entry: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    some = with_vectors(entry, "MC")
    shared, _ = certify(some, vectors=(EVENTS.index("MC"),), workers=1)
    monkeypatch.setattr(Certifier, "_one", _each_alone)
    alone, _ = certify(some, vectors=(EVENTS.index("MC"),), workers=1)
    assert shared.closed
    assert alone.closed
    assert alone.coverage.contexts == shared.coverage.contexts
    assert alone.coverage.certificates > shared.coverage.certificates


def _each_alone(
    self: Certifier, workers: Workers, context: Context, others: Sequence[Context]
) -> tuple[list[NativeResult], list[bool]]:
    (taken,) = self._round(workers, [(context, Origin(context.name))])
    return taken, [False for _ in others]
