# SPDX-License-Identifier: GPL-2.0-only
"""Mutants of the checker: each property switched off, each gate made looser or stricter.

Some specimen must then escape, or our entry be found guilty; else the property or the
gate is not tested.  A property is off when a run that violates it ends there, silently.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from atomicist.image import bare, specimens
from atomicist.image.bare import BareConfig
from atomicist.image.fences import unfenced
from atomicist.machine.target import Target
from atomicist.native import engine as engine_module
from atomicist.native.build import runtime_sources
from atomicist.native.engine import Engine, NativeFinding
from atomicist.native.patch import PatchableEngine
from atomicist.search.workers import MAX_RUN, new_engine
from atomicist.spec.contexts import contexts
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES, PROPERTIES

ALL = {s.name: s for s in specimens.specimens()}
NMI, DB, MC, VC = range(4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def certified(engine: Engine, target: Target, name: str) -> Iterator[NativeFinding]:
    specimen = ALL[name]
    start = {c.name: c for c in contexts(target)}
    for context in specimen.contexts or ("user",):
        c = start[context]
        for v in [EVENTS.index(v) for v in specimen.vectors] or range(len(EVENTS)):
            yield from engine.certify(c.registers, v, expect_df=c.expect_df, no_stack=c.no_stack).findings


# --- properties ---

# A specimen that only this property finds, where it is looked for.
ONLY: Mapping[str, str] = {
    "IST001": "h-push-over-saved-slot",
    "IST002": "h-cr3-restored-wrongly",
    "IST003": "x-handler-not-called",
    "IST004": "x-resumed-as-the-ongoing",
    "IST005": "x-resumed-behind",
    "IST006": "m09-base-from-innermost",
    "IST007": "x-store-before-commit",
    "IST008": "x-user-stack-read",
    "IST009": "h-gs-before-cr3",
    "IST010": "x-no-swapgs-from-user",
    "IST011": "h-gs-decided-by-cs",
    "IST012": "m19-room-test-off-by-one",
    "IST013": "x-waits-for-interrupts",
    "IST014": "h-exit-register-clobbered",
    "IST015": "h-gap-rsp-trusted",
    "IST016": "x-by-rip-alone",
    "IST017": "x-instruction-not-modelled",
    "IST018": "x-jump-into-nowhere",
    "IST019": "x-label-before-commit",
    "IST020": "m15-placeholder-not-rewritten",
    "IST021": "x-room-tested-late",
    "IST022": "x-address-without-its-sign",
    "IST023": "x-gdt-written",
    "IST024": "x-code-not-in-user-tables",
    "IST025": "h-tss-rewritten",
    "IST026": "rfc-v1",
    "IST028": "h-exit-register-not-set",
    "IST029": "x-double-fault-without-registers",
    "IST030": "h-safe-ret-resumed",
}

# What no run shows, for the rule is about paths: `test_no_run_shows_a_missing_fence`.
STATIC = {"IST027"}

SHORT = {"IST002", "IST020", "IST028"}
"""Those in the short run; without a property its specimen is looked at to the end, which takes long."""


@pytest.mark.parametrize(
    ("number", "name"),
    [pytest.param(n, s, marks=[] if n in SHORT else [pytest.mark.slow]) for n, s in ONLY.items()],
)
def test_a_specimen_escapes_without_the_property(cache: Path, number: str, name: str) -> None:
    target = specimens.load(ALL[name], BareConfig(), cache)
    with PatchableEngine(target, CODES, EVENTS, ERROR_TOKEN, MAX_RUN) as engine:
        assert {f"IST{f.property:03d}" for f in certified(engine, target, name)} == {number}
        engine.ignore(1 << int(number[3:]))
        assert not list(certified(engine, target, name))


def test_every_property_is_accounted_for() -> None:
    assert set(ONLY) | STATIC == set(PROPERTIES)
    assert not set(ONLY) & STATIC


@pytest.mark.slow
def test_no_run_shows_a_missing_fence(tmp_path: Path) -> None:
    """IST027 is about what a processor may do ahead of a run: only the look at all paths has it."""
    kernel = shutil.copytree(bare.kernel_source(), tmp_path / "kernel")
    calling = kernel / "bare" / "calling.h"
    calling.write_text(calling.read_text().replace("\tlfence\n", ""))
    config = BareConfig(pti=False)
    target = bare.load(bare.build(kernel, config, tmp_path), config)
    assert unfenced(target.insns, [g.offset for g in target.gates.values()], target.handlers)
    with new_engine(target) as engine:
        for c in contexts(target):
            if c.name in ("user", "user-gs-negative", "kernel-task"):
                found = [engine.certify(c.registers, v, expect_df=False, no_stack=False) for v in range(4)]
                assert not [f for r in found for f in r.findings]


# --- gates ---

# What is changed (file, text, its replacement), and schedules of at most that many events that
# then find our own entry guilty although it is not: from the context, these vectors.
LOOSER = {
    "NMI while blocked": (
        "enumerate.c",
        "if (vector == EVENT_NMI && m->r[REG_NMI_BLOCKED])\n\t\treturn false;",
        "",
        (1 << NMI, 2),
    ),
    "#MC while MCIP is set": (
        "enumerate.c",
        "if (vector == EVENT_MC && (m->r[REG_MCG_STATUS] & MCIP))\n\t\treturn false;",
        "",
        (1 << MC, 2),
    ),
    "#DB in its own entry": ("enumerate.c", "return !(masked >> vector & 1);", "return true;", (1 << DB, 2)),
    "#VC in its own entry": ("enumerate.c", "return !(masked >> vector & 1);", "return true;", (1 << VC, 2)),
    "a vector twice in one entry (certificates)": (
        "certify.c",
        "absent |= 1u << (c % 8 - 1);",
        "absent |= chain >= 8 ? 1u << (c % 8 - 1) : 0;",
        (1 << NMI, 0),
    ),
}

# What is changed, and the specimen that then escapes.
STRICTER = {
    "no event in an entry (certificates)": (
        "certify.c",
        "absent |= m->im->gates[v].present ? 0 : 1u << v;",
        "absent |= 1u << v;",
        "m01-registers-from-ongoing",
    ),
}


def changed(monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str) -> None:
    sources = runtime_sources()
    assert sources[file].count(old) == 1, f"{file} has no such text: this test is out of date"
    sources[file] = sources[file].replace(old, new)
    monkeypatch.setattr(engine_module, "runtime_sources", lambda: sources)


def guilty(target: Target, offered: int, budget: int) -> bool:
    user = next(c for c in contexts(target) if c.name == "user")
    with new_engine(target) as engine:
        if not budget:
            first = offered.bit_length() - 1
            return bool(engine.certify(user.registers, first, expect_df=False, no_stack=False).findings)
        found = engine.enumerate(user.registers, budget=budget, offered=offered, first=offered, stop=1)
        return bool(found.findings)


@pytest.mark.parametrize("gate", LOOSER)
def test_a_looser_gate_accuses_our_entry(monkeypatch: pytest.MonkeyPatch, cache: Path, gate: str) -> None:
    file, old, new, (offered, budget) = LOOSER[gate]
    target = bare.load(bare.build(bare.kernel_source(), BareConfig(), cache), BareConfig())
    assert not guilty(target, offered, budget)
    changed(monkeypatch, file, old, new)
    assert guilty(target, offered, budget)


@pytest.mark.parametrize("gate", STRICTER)
def test_a_stricter_gate_lets_a_specimen_escape(
    monkeypatch: pytest.MonkeyPatch, cache: Path, gate: str
) -> None:
    file, old, new, name = STRICTER[gate]
    target = specimens.load(ALL[name], BareConfig(), cache)
    with new_engine(target) as engine:
        assert list(certified(engine, target, name))
    changed(monkeypatch, file, old, new)
    with new_engine(target) as engine:
        assert not list(certified(engine, target, name))


def test_a_blocked_nmi_stays_blocked_lets_the_naive_entry_escape(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Stricter: no second NMI, also behind an IRET."""
    target = specimens.load(ALL["naive"], BareConfig(), cache)
    user = next(c for c in contexts(target) if c.name == "user")

    def second_nmi_loses() -> bool:
        with new_engine(target) as engine:
            found = engine.enumerate(
                user.registers, budget=3, offered=1 << NMI | 1 << MC, first=1 << NMI, stop=4096
            ).findings
        return any([e.vector for e in f.events] == [NMI, MC, NMI] for f in found)

    assert second_nmi_loses()
    changed(
        monkeypatch, "enumerate.c", "if (vector == EVENT_NMI && m->r[REG_NMI_BLOCKED])",
        "if (vector == EVENT_NMI && (m->r[REG_NMI_BLOCKED] || m->ninst))",
    )  # fmt: skip
    assert not second_nmi_loses()


SHADOW = {
    "certify.c": "absent >> v & 1 || (m->r[REG_SHADOW] && v != EVENT_MC)",
    "enumerate.c": "!m->im->gates[vector].present || (m->r[REG_SHADOW] && vector != EVENT_MC)",
}


@pytest.mark.slow
@pytest.mark.parametrize("file", SHADOW)
def test_behind_mov_ss_only_a_machine_check_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    """MOV SS changes nothing else, so that no entry is right or wrong because of this gate; but what
    was tried behind it tells."""
    kernel = shutil.copytree(bare.kernel_source(), tmp_path / "kernel")
    vector = kernel / "atomic_ist_vector.S"
    text, saved = vector.read_text(), "\tmovq\t%rsp, %rdi\n\tjmp\tV(atomic_ist_copy)\n"
    assert text.count(saved) == 1
    vector.write_text(text.replace(saved, "\tmovl\t$0x18, %eax\n\tmovl\t%eax, %ss\n" + saved))
    (kernel / "bare" / "check.sh").write_text("#!/bin/sh\n")
    target = bare.load(bare.build(kernel, BareConfig(), tmp_path), BareConfig())
    (mov,) = [i for i in target.insns.values() if i.text == "mov ss, eax" and "nmi" in target.symbolize(i.va)]
    user = next(c for c in contexts(target) if c.name == "user")

    def tried() -> set[str]:
        with new_engine(target) as engine:
            if file == "certify.c":
                counts = engine.certify(user.registers, NMI, expect_df=False, no_stack=False).injected[1]
            else:
                counts = engine.enumerate(user.registers, budget=2, offered=15, first=1 << NMI).injected[0]
        at = sorted(target.insns).index(mov.next)
        return {e for v, e in enumerate(EVENTS) if any(counts[8 * (len(EVENTS) * at + v) :][:8])}

    assert tried() == {"MC"}
    changed(monkeypatch, file, SHADOW[file], SHADOW[file].partition(" || ")[0])
    assert tried() == {"DB", "MC", "VC"}
