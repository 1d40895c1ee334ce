# SPDX-License-Identifier: GPL-2.0-only
"""RETs before the CPU is untrained: found on both engines and on the paths, and only there.

An image that was built for a CPU which needs nothing is run on one that does: the same
code, with another answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from atomicist.image.bare import RFC_V1, BareConfig, build, kernel_source, load
from atomicist.image.retbleed import VECTOR_TEXT, ExposedPath, exposed_paths, guard, untraining_of
from atomicist.isa.ir import Insn
from atomicist.isa.lift import Lifter
from atomicist.isa.predictions import EXPOSED_ALL, MITIGATIONS, own_text
from atomicist.isa.registers import REGISTERS
from atomicist.machine.interpreter import Machine, Predicted
from atomicist.machine.memory import PAGE, Page, PageFlag
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.search.replay import replay
from atomicist.search.schedule import parse
from atomicist.search.verify import verify
from atomicist.search.workers import new_engine
from atomicist.spec.contexts import contexts
from atomicist.spec.events import EVENTS
from tests.isa.engines import target_of

BASE = 0xFFFF_FFFF_8100_0000
STACK = 0xFFFF_C900_0000_0000
CONTEXTS = ("user", "kernel-task", "kernel-entry", "gap-entry_SYSCALL_64", "gap-entry_SYSRETQ_unsafe_stack")


def image(built: str, cpu: str, variant: str = "1c") -> Target:
    """kernel/ built for one CPU, as it is on another."""
    path = build(kernel_source(), BareConfig(mitigation=built, variant=variant), cache_dir())
    return load(path, BareConfig(mitigation=cpu, variant=variant))


def static(target: Target) -> tuple[ExposedPath, ...]:
    entries = [g.offset for g in target.gates.values() if g.offset in target.insns]
    return exposed_paths(target.insns, target.symbols, target.mitigation, entries, target.handlers)


def found(target: Target) -> dict[tuple[str, str], set[int]]:
    """Numbers of the properties that certificates from a few contexts violate."""
    out: dict[tuple[str, str], set[int]] = {}
    with new_engine(target) as engine:
        for c in contexts(target):
            for vector, event in enumerate(EVENTS):
                if c.name in CONTEXTS:
                    r = engine.certify(c.registers, vector, expect_df=c.expect_df, no_stack=c.no_stack)
                    assert not r.overflow
                    out[c.name, event] = {f.property for f in r.findings}
    assert {c for c, _ in out} == set(CONTEXTS)
    return out


@pytest.mark.parametrize(("built", "cpu"), [(m, m) for m in MITIGATIONS])
def test_nothing_where_nothing_is_missing(built: str, cpu: str) -> None:
    target = image(built, cpu)
    assert static(target) == ()
    assert set().union(*found(target).values()) == set()


@pytest.mark.parametrize(
    ("built", "cpu"), [("none", "unret"), ("none", "ibpb"), ("ibrs", "unret"), ("none", "ibrs")]
)
def test_a_call_of_the_handler_too_early(built: str, cpu: str) -> None:
    """And nothing else, wherever the interrupted context may have been user mode's."""
    target = image(built, cpu)
    for (context, event), numbers in found(target).items():
        wanted = set() if context == "kernel-task" else {26}
        if cpu == "ibrs" and built == "none" and numbers == {11}:
            continue  # SPEC_CTRL is not the kernel's either, and is looked at first
        assert numbers == wanted, (context, event)
    paths = static(target)
    assert {p.what for p in paths} == {"call"}
    assert len(paths) == 2 * len(EVENTS), "from user and from kernel mode"
    assert target.symbolize(paths[0].places[0]) in {"asm_exc_nmi", "asm_exc_machine_check", "asm_exc_debug",
                                                    "asm_exc_vmm_communication"}  # fmt: skip


@pytest.mark.parametrize("mitigation", ["ibrs", "unret", "ibpb"])
def test_rfc_v1_is_found_for_its_call_and_its_ret(mitigation: str) -> None:
    """The copy's, of each vector; from the kernel alone nobody has trained it."""
    target = image(mitigation, mitigation, RFC_V1)
    for (context, event), numbers in found(target).items():
        assert numbers == (set() if context == "kernel-task" else {26}), (context, event)
    paths = static(target)
    assert {p.what for p in paths} == {"call", "ret"}
    own = [
        (target.symbols[f"__atomic_ist_{v}_text"], target.symbols[f"atomic_ist_committed_{v}"])
        for v in VECTOR_TEXT
    ]
    assert {sum(start <= p.va for start, _ in own) for p in paths} == {1, 2, 3, 4}, "in each vector's text"
    assert all(any(start <= p.va < end for start, end in own) for p in paths)


@pytest.mark.parametrize("mitigation", [m for m in MITIGATIONS if m != "ibrs"])
def test_rfc_v1_loses_nothing(mitigation: str) -> None:
    """The same code on a CPU whose predictions are nobody's matter; with IBRS the kernel also
    says what SPEC_CTRL is in user mode, and the contexts of another CPU are not told."""
    assert set().union(*found(image(mitigation, "none", RFC_V1)).values()) == set()


@pytest.mark.slow
def test_rfc_v1_loses_nothing_whatever_comes() -> None:
    result, shown = verify(image("unret", "none", RFC_V1))
    assert shown is None
    assert result.findings == ()
    assert result.closed, result.open_because


def test_the_reference_agrees() -> None:
    target = image("none", "unret")
    for event in EVENTS:
        verdict = replay(target, parse(f"user:{event}", target)).verdict
        assert (verdict.property, verdict.found) == ("IST026", EXPOSED_ALL)
        assert replay(target, parse(f"kernel-task:{event}", target)).verdict.property == ""


def test_spec_ctrl_is_the_kernels() -> None:
    """A handler that runs with SPEC_CTRL of the interrupted context under IBRS."""
    shown = replay(image("none", "ibrs"), parse("user:NMI", image("none", "ibrs")))
    assert (shown.verdict.property, shown.verdict.subject) == ("IST011", "SPEC_CTRL")
    target = image("ibrs", "ibrs")
    wrong = replace(target, kernel_spec_ctrl=target.kernel_spec_ctrl | 4)
    assert replay(wrong, parse("user:NMI", wrong)).verdict.property == "IST011"


CALL, RET, WRMSR = b"\xe8", b"\xc3", b"\x0f\x30"
NOP = b"\x90"


def code(*parts: bytes) -> dict[int, Insn]:
    """Instructions one behind the other from `BASE`."""
    insns, at, lifter = {}, BASE, Lifter()
    for part in parts:
        insns[at] = lifter.lift(at, part)
        at += len(part)
    return insns


def mov(register: str, value: int) -> bytes:
    return {"ecx": b"\xb9", "eax": b"\xb8", "edx": b"\xba"}[register] + value.to_bytes(4, "little")


def outcome(insns: Mapping[int, Insn], symbols: Mapping[str, int], mitigation: str) -> str:
    """Run to the end of the code, everything exposed at first."""
    guarded = guard(insns, symbols, mitigation)
    kernel = PageFlag.KERNEL_ROOT
    pages = (
        Page(BASE, bytes(PAGE), kernel | PageFlag.EXECUTABLE),
        Page(STACK, bytes(PAGE), kernel | PageFlag.WRITABLE),
    )
    machine = Machine(target_of(guarded, pages, 0))
    machine["RIP"], machine["RSP"], machine["CS"], machine["EXPOSED"] = BASE, STACK + 0x800, 0x10, EXPOSED_ALL
    try:
        while machine["RIP"] in guarded:
            machine.step()
    except Predicted as e:
        return f"{e} at {machine['RIP'] - BASE}"
    return f"{machine['EXPOSED']:#x}"


MSR = (mov("ecx", 0x48), mov("eax", 1), mov("edx", 0), WRMSR)
"""17 bytes: IBRS."""


def test_what_clears_and_what_does_not() -> None:
    call = CALL + (1).to_bytes(4, "little")  # over one byte
    assert outcome(code(call, NOP, RET), {}, "unret") == "ret at 6"
    assert outcome(code(call, NOP, RET), {}, "none") == "0x1f"
    assert outcome(code(b"\xff\xe0"), {}, "unret") == "indirect jmp at 0"
    assert outcome(code(b"\xff\xd0"), {}, "unret") == "indirect call at 0"
    # untraining: from the instruction at its symbol on
    assert outcome(code(NOP, NOP), {"entry_untrain_ret": BASE + 1}, "unret") == "0x0"
    assert outcome(code(NOP, NOP), {"entry_untrain_ret": BASE + 2}, "unret") == "0x1f"
    assert outcome(code(NOP, NOP), {"entry_untrain_ret": BASE}, "ibpb") == "0x1f"
    # IBRS counts where the CPU needs it, while it is set; IBPB always
    assert outcome(code(*MSR, NOP), {}, "ibrs") == "0x0"
    assert outcome(code(*MSR, NOP), {}, "unret") == "0x1f"
    assert outcome(code(*MSR, mov("eax", 2), WRMSR), {}, "ibrs") == "0x1f"
    barrier = (mov("ecx", 0x49), *MSR[1:])
    for mitigation in ("ibrs", "unret", "ibpb"):
        assert outcome(code(*barrier), {}, mitigation) == "0x0"
    assert outcome(code(mov("ecx", 0x49), mov("eax", 0), *MSR[2:]), {}, "ibpb") == "0x1f"


def test_one_ret_of_its_own() -> None:
    """An early untraining covers the RET in its vector's text, no other and no indirect jump."""
    symbols = {
        "atomic_ist_untrain_ret_db": BASE,
        "__atomic_ist_db_text": BASE,
        "atomic_ist_committed_db": BASE + 0x10,
    }
    assert outcome(code(NOP), symbols, "unret") == f"{EXPOSED_ALL & ~own_text(1):#x}"
    push = b"\x68" + (BASE + 0x20 & 0xFFFF_FFFF).to_bytes(4, "little")
    assert outcome(code(NOP, push, RET), symbols, "unret") == "0x1b"
    assert outcome(code(NOP, b"\xff\xe0"), symbols, "unret") == "indirect jmp at 1"
    outside = symbols | {"atomic_ist_committed_db": BASE + 5}
    assert outcome(code(NOP, push, RET), outside, "unret") == "ret at 6"
    assert untraining_of(symbols, "ibrs").bits == {}


def paths(insns: Mapping[int, Insn], mitigation: str, **symbols: int) -> list[tuple[str, list[int]]]:
    return [
        ("note " * p.note + p.what, [a - BASE for a in p.places])
        for p in exposed_paths(insns, symbols, mitigation, [BASE], {BASE + 0x100})
    ]


def test_paths() -> None:
    call = CALL + (1).to_bytes(4, "little")
    assert paths(code(call, NOP, RET), "unret") == [("note call", [0]), ("ret", [0, 6])]
    assert paths(code(call, NOP, RET), "none") == []
    # into the function, which untrains, and back to a RET
    assert paths(code(call, RET, NOP, RET), "unret", entry_untrain_ret=BASE + 6) == []
    # a branch around it
    skip = b"\x74\x01"
    assert paths(code(skip, NOP, RET), "unret", entry_untrain_ret=BASE + 2) == [("ret", [0, 3])]
    assert paths(code(*MSR, RET), "ibrs") == []
    assert paths(code(*MSR, RET), "unret") == [("ret", [0, 17])]
    assert paths(code(*MSR, mov("eax", 0), WRMSR, RET), "ibrs") == [("ret", [0, 24])]
    handler = CALL + (0xFB).to_bytes(4, "little")
    assert paths(code(handler), "ibpb") == [("call", [0])]


ATOMIC = {"atomic_ist_committed_nmi": BASE + 0x200}
"""A label that makes an image one of atomic entries."""


def test_a_call_in_an_atomic_entry() -> None:
    """A finding on a path and in a run, unless what is called comes to the point."""
    call = CALL + (1).to_bytes(4, "little")
    insns = code(call, NOP, NOP, RET)
    assert paths(insns, "unret", **ATOMIC) == [("call", [0]), ("ret", [0, 7])]
    assert outcome(insns, ATOMIC, "unret") == "call at 0"
    assert outcome(insns, ATOMIC, "none") == "0x1f"
    untrain = ATOMIC | {"entry_untrain_ret": BASE + 6}
    assert paths(insns, "unret", **untrain) == []
    assert outcome(code(call, NOP, NOP, NOP), untrain, "unret") == "0x0"
    # untraining behind a branch does not do: until then it is a function like any other
    late = code(call, NOP, b"\xeb\x01", NOP, NOP)
    assert outcome(late, ATOMIC | {"entry_untrain_ret": BASE + 9}, "unret") == "call at 0"
    barrier = code(call, NOP, mov("ecx", 0x49), mov("eax", 1), mov("edx", 0), WRMSR)
    assert outcome(barrier, ATOMIC, "ibpb") == "0x0"
    # in the text of a vector whose own RET is untrained a call within it may come back by that
    own = {
        "atomic_ist_untrain_ret_db": BASE,
        "__atomic_ist_db_text": BASE,
        "atomic_ist_committed_db": BASE + 8,
    }
    assert outcome(code(NOP, call, NOP, NOP), own, "unret") == f"{EXPOSED_ALL & ~own_text(1):#x}"
    assert (
        outcome(code(NOP, call, NOP, NOP), own | {"atomic_ist_committed_db": BASE + 6}, "unret")
        == "call at 1"
    )


def test_a_nested_entry_inherits(entry: Target) -> None:
    """With no mitigation the register is 0 in every context, so that nothing rests on it."""
    slot = REGISTERS["EXPOSED"].slot
    assert {c.registers[slot] for c in contexts(entry)} == {0}
    exposed = {c.name: c.registers[slot] for c in contexts(replace(entry, mitigation="unret"))}
    assert exposed["user"] == exposed["gap-entry_SYSCALL_64"] == exposed["bad-iret"] == EXPOSED_ALL
    assert exposed["kernel-task"] == exposed["kernel-main-0x8"] == 0
