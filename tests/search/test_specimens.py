# SPDX-License-Identifier: GPL-2.0-only
"""The checker is held to the specimens: each builds, is found, and for its own reason.

A specimen is looked for in the start contexts that it names, else in ``user``; kernel/
passes in the same contexts, so that nothing here is true of anything.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from atomicist.cli.main import main
from atomicist.image import bare, specimens
from atomicist.image.bare import BareConfig
from atomicist.image.errors import ImageError
from atomicist.image.specimens import Specimen
from atomicist.isa.registers import REGISTERS
from atomicist.machine.target import Target
from atomicist.native.engine import Engine, NativeFinding
from atomicist.search.certificate import Raw, certify
from atomicist.search.progress import Progress
from atomicist.search.reach import Origin
from atomicist.search.replay import replay, replay_timed
from atomicist.search.schedule import parse
from atomicist.search.verify import timed
from atomicist.search.workers import new_engine
from atomicist.spec.contexts import Context, contexts, find
from atomicist.spec.events import EVENTS
from atomicist.spec.properties import PROPERTIES

ALL = {s.name: s for s in specimens.specimens()}
NAIVE = "naive"

# Met only on the way back from an event: no start context shows it at once.
MET_LATER = {"m04-resumed-at-commit"}

# What another context's certificate must not be taken to hold for: only a whole search can go wrong there.
BY_THE_WHOLE = {
    "x-argument-by-gsbase",
    "x-flags-cut-by-a-shift",
    "x-orig-ax-by-gsbase",
    "x-task-stack-by-its-top",
}

# Not to be seen in a run, but in the code.
WITHOUT_RUNNING = {n for n, s in ALL.items() if PROPERTIES[s.property].key == "NO_FENCE"}

# The certificate assumes an event where stack is free: here with the event in place, and what it does.
WITH_THE_EVENT = {
    "h-return-in-two-steps": ("kernel-task", "IST013"),
    "m14-leaves-before-copying": ("user", "IST001"),
    "m18-handler-changes-stacks": ("kernel-task", "IST001"),
}


# Those whose property nobody else shows, which test_checker_mutants.py is about.
SLOW = {
    "x-address-without-its-sign", "x-code-not-in-user-tables", "x-gdt-written", "x-handler-not-called",
    "x-jump-into-nowhere", "x-resumed-behind", "x-user-stack-read", "x-waits-for-interrupts",
}  # fmt: skip


def some(names: set[str]) -> list[ParameterSet]:
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in sorted(names)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def load(cache: Path, name: str) -> Target:
    return specimens.load(ALL[name], BareConfig(), cache)


def _with(context: Context, name: str, *, expect_df: bool = False, **values: int) -> Context:
    registers = list(context.registers)
    for register, value in values.items():
        registers[REGISTERS[register].slot] = value
    return replace(context, name=name, registers=tuple(registers), expect_df=expect_df)


def context_of(target: Target, name: str) -> Context:
    """A start context, or one of two that some specimens need beside them."""
    start = {c.name: c for c in contexts(target)}
    if name not in start and name == "twice-nmi_stack":
        # An NMI in the NMI's own entry: what an SMM handler can bring about.
        kernel, nmi = start["kernel-task"], target.named_region("nmi_stack")
        start[name] = _with(
            kernel, name, expect_df=True, RSP=nmi.top - 168, RIP=target.symbols["atomic_ist_copy_nmi"]
        )
    if name not in start and name == "user-rsp-main-low":
        main = target.main_stack()
        assert main is not None
        start[name] = _with(start["user"], name, RSP=main.bottom + 0x100)
    found = find(target, name)
    return found if found is not None else start[name]


def findings(engine: Engine, target: Target, specimen: Specimen) -> Iterator[Raw]:
    vectors = [EVENTS.index(v) for v in specimen.vectors] or range(len(EVENTS))
    for name in specimen.contexts or ("user",):
        c = context_of(target, name)
        for v in vectors:
            result = engine.certify(c.registers, v, expect_df=c.expect_df, no_stack=c.no_stack)
            for finding in result.findings:
                yield Raw(Origin(name), c, finding)


def first(target: Target, specimen: Specimen) -> Raw | None:
    with new_engine(target) as engine:
        return next(findings(engine, target, specimen), None)


@functools.cache
def found(cache: Path, name: str) -> tuple[Target, Raw | None]:
    target = load(cache, name)
    return target, first(target, ALL[name])


def property_of(finding: NativeFinding) -> str:
    return f"IST{finding.property:03d}"


AT_ONCE = set(ALL) - MET_LATER - BY_THE_WHOLE - WITHOUT_RUNNING - {NAIVE}
ENDLESS = {n for n in AT_ONCE if PROPERTIES[ALL[n].property].key == "ENDLESS"}
COMPARED = AT_ONCE - set(WITH_THE_EVENT)


def agree(cache: Path, name: str) -> None:
    target, raw = found(cache, name)
    assert raw is not None
    shown = replay_timed(target, raw.context, timed(raw.origin, raw.finding.events))
    assert shown.verdict.property == property_of(raw.finding)


@pytest.mark.parametrize("name", some(AT_ONCE))
def test_found(cache: Path, name: str) -> None:
    target, raw = found(cache, name)
    assert raw is not None, f"{target.name} was not found"
    assert property_of(raw.finding) == ALL[name].property


@pytest.mark.parametrize("name", some(COMPARED - ENDLESS))
def test_reference_agrees(cache: Path, name: str) -> None:
    agree(cache, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_reference_agrees_that_there_is_no_end(cache: Path, name: str) -> None:
    agree(cache, name)


@pytest.mark.parametrize("name", sorted(WITH_THE_EVENT))
def test_found_with_the_event_in_place(cache: Path, name: str) -> None:
    target, (context, wanted) = load(cache, name), WITH_THE_EVENT[name]
    c = context_of(target, context)
    with new_engine(target) as engine:
        result = engine.enumerate(c.registers, budget=2, offered=15, first=15, stop=1)
    assert [property_of(f) for f in result.findings] == [wanted]
    if PROPERTIES[wanted].key != "ENDLESS":  # which takes the reference long to say
        shown = replay_timed(target, c, timed(Origin(c.name), result.findings[0].events))
        assert shown.verdict.property == wanted


@pytest.mark.parametrize("name", sorted(WITHOUT_RUNNING))
def test_found_without_running(
    cache: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATOMICIST_CACHE", str(cache))
    assert main(["paths", "--json", "--specimen", name]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert [n for n in ("IST026", "IST027") if shown[n]] == [ALL[name].property]
    assert {u["skipped"] for u in shown["IST027"]} == {True, False}


def test_naive_loses_the_first_nmi(cache: Path) -> None:
    specimen, target = ALL[NAIVE], load(cache, NAIVE)
    assert not target.claims
    offered = sum(1 << EVENTS.index(v) for v in specimen.vectors)
    nmi, mc = EVENTS.index("NMI"), EVENTS.index("MC")
    for name in ("user", "kernel-task"):
        with new_engine(target) as engine:
            result = engine.enumerate(
                context_of(target, name).registers, budget=3, offered=offered, first=1 << nmi, stop=4096
            )
        assert not result.overflow
        lost = [f for f in result.findings if [e.vector for e in f.events] == [nmi, mc, nmi]]
        assert property_of(lost[0]) == specimen.property
        shown = replay(target, parse(f"{name}:NMI,MC@asm_exc_nmi,NMI@asm_exc_nmi", target))
        assert (shown.verdict.property, shown.verdict.subject) == (specimen.property, "RIP")


def _slow(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name", ["x-argument-by-gsbase", *map(_slow, sorted(MET_LATER | BY_THE_WHOLE - {"x-argument-by-gsbase"}))]
)
def test_found_by_the_whole_search(cache: Path, name: str) -> None:
    def enough(progress: Progress) -> None:
        if progress.findings:
            raise KeyboardInterrupt

    _, raw = certify(load(cache, name), workers=1, listener=enough)
    assert raw
    assert property_of(raw[0].finding) == ALL[name].property


NAMED = sorted({n for s in ALL.values() for n in s.contexts} | {"user"})


@pytest.mark.parametrize("config", [BareConfig(), BareConfig(fsgsbase=False)], ids=["", "nofsgsbase"])
def test_kernel_passes_in_the_same_contexts(cache: Path, config: BareConfig) -> None:
    target = bare.load(bare.build(bare.kernel_source(), config, cache), config)
    specimen = Specimen("kernel", "", "", "", cache)
    with new_engine(target) as engine:
        for name in NAMED:
            if name == "user-gs-negative" and not config.fsgsbase:
                continue
            if "_safe_ret" in name:  # of an image that has such a sequence: test_safe_ret.py
                continue
            vectors = ("NMI",) if name.startswith("twice") else ()
            assert not list(findings(engine, target, replace(specimen, contexts=(name,), vectors=vectors)))


def test_descriptions() -> None:
    assert len(ALL) > 40
    for s in ALL.values():
        assert s.property in PROPERTIES
        assert set(s.vectors) <= set(EVENTS)
    assert {n[:3] for n in ALL if n.startswith("m")} >= {f"m{i:02d}" for i in range(1, 21)}


def test_find() -> None:
    assert specimens.find("m13-no-gap-test") == ALL["m13-no-gap-test"]
    with pytest.raises(ImageError, match="no specimen 'm13-gap': did you mean m13-no-gap-test"):
        specimens.find("m13-gap")
    with pytest.raises(ImageError, match="they are h-cr3-restored-wrongly, "):
        specimens.find("")


def described(place: Path, text: str, patch: str) -> Path:
    directory = place / "a"
    directory.mkdir()
    (directory / "specimen.toml").write_text(text)
    (directory / "change.patch").write_text(patch)
    return directory


GOOD = 'name = "a"\norigin = "o"\nproperty = "IST001"\nabout = "x"\n'


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("name", "specimen.toml cannot be read"),
        ('name = "a"\n', "must say 'origin'"),
        (GOOD.replace('"a"', '"b"'), "its name in specimen.toml is 'b'"),
        (GOOD.replace("IST001", "IST1"), "'IST1' is no property"),
        (GOOD + 'colour = "red"\n', "no key 'colour'"),
        (GOOD + "vectors = [1]\n", "'vectors' must be a list"),
        (GOOD + "[config]\npti = 1\n", "'config' must be a table"),
    ],
)
def test_wrong_description(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(ImageError, match=wrong):
        specimens.read(described(tmp_path, text, ""))


@pytest.mark.parametrize(
    "patch",
    [
        "--- a/atomic_ist.c\n+++ b/atomic_ist.c\n@@ -1,2 +1,2 @@\n not there\n-nor this\n+x\n",
        "--- a/no_such_file.c\n+++ b/no_such_file.c\n@@ -1 +1 @@\n-x\n+y\n",
        "no patch at all\n",
    ],
)
def test_patch_that_does_not_apply(tmp_path: Path, patch: str) -> None:
    specimen = specimens.read(described(tmp_path, GOOD, patch))
    with pytest.raises(ImageError, match="specimen a: change.patch does not fit kernel/"):
        specimens.materialise(specimen, tmp_path)
