# SPDX-License-Identifier: GPL-2.0-only
"""Whole runs: schedules end the same on the reference interpreter, in the native model and in Unicorn."""

import ctypes as c
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from atomicist.crosscheck import by_hand, walked_memory, walks
from atomicist.crosscheck import walker as walking
from atomicist.crosscheck.walks import Ending, Event, pairs, schedule
from atomicist.image import specimens, vmlinux
from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.machine.target import Target
from atomicist.native import codegen
from atomicist.native.build import cache_dir
from atomicist.native.engine import Engine
from atomicist.search.replay import Timed, find_context, replay_timed
from atomicist.spec.contexts import Context
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES, PROPERTIES
from tests.debian_kernel import fetched

MAX_STEPS = 4_000
IMAGES = ("entry", "naive", "debian", "m02-saved-test-strict", "m07-commit-in-two-steps")
Run = tuple[tuple[Event, ...], Ending]


@functools.cache
def target(name: str) -> Target:
    """The entry, a specimen, or Debian's kernel."""
    config = BareConfig()
    if name == "entry":
        return load(build(kernel_source(), config, cache_dir()), config)
    if name == "debian":
        return vmlinux.load(fetched())
    return specimens.load(specimens.find(name), config, cache_dir())


@functools.cache
def start_of(name: str, context: str) -> Context:
    """The start context."""
    return find_context(target(name), context)


def reference(name: str, context: str, events: Sequence[Event]) -> Ending:
    """How the reference interpreter ends it."""
    timed = [Timed(e.vector, e.steps) for e in events]
    verdict = replay_timed(target(name), start_of(name, context), timed, traced=False).verdict
    return Ending(verdict.property, verdict.outcome)


@functools.cache
def engine(name: str) -> tuple[Engine, c.c_void_p | None]:
    """The native model of it, and its compiled code."""
    made = Engine(target(name), CODES, EVENTS, ERROR_TOKEN, MAX_STEPS)
    return made, codegen.compiled(target(name), CODES, EVENTS, ERROR_TOKEN).address


def native(name: str, context: str, events: Sequence[Event]) -> str | None:
    """What the native model finds in one schedule, "" if nothing; None: it is none."""
    start, (model, code) = start_of(name, context), engine(name)
    found = model.follow(
        start.registers, [(EVENTS.index(e.vector), e.steps) for e in events], expect_df=start.expect_df,
        no_stack=start.no_stack, run=code,
    )  # fmt: skip
    return None if found is None else f"IST{found:03}" if found else ""


def enumerated(name: str, context: str, first: str) -> dict[tuple[Event, ...], str]:
    """The native search's findings among all schedules of two events."""
    start, (model, code) = start_of(name, context), engine(name)
    found = model.enumerate(
        start.registers, budget=2, offered=(1 << len(EVENTS)) - 1, first=1 << EVENTS.index(first),
        expect_df=start.expect_df, no_stack=start.no_stack, run=code,
    )  # fmt: skip
    return {
        tuple(Event(EVENTS[e.vector], e.steps) for e in f.events): f"IST{f.property:03}"
        for f in found.findings
    }


def differences(name: str, context: str, events: Sequence[Event], ending: Ending) -> list[str]:
    """Where the reference interpreter or the native model end a schedule otherwise than Unicorn."""
    theirs, model = reference(name, context, events), native(name, context, events)
    said = f"{name} {context} {' '.join(f'{e.vector}+{e.steps}' for e in events)}: {ending}"
    wrong = [f"{said}, reference {theirs}"] if ending != theirs else []
    return wrong + ([f"{said}, native {model!r}"] if ending.property != model else [])


def compare(name: str, context: str, first: str, every: int) -> tuple[int, int, list[str]]:
    """Compare a share of the pairs; how many there were, how many findings, and what differs."""
    walked = dict(pairs(target(name), start_of(name, context), first, every=every))
    wrong = [w for events, ending in walked.items() for w in differences(name, context, events, ending)]
    findings = {events: e.property for events, e in walked.items() if e.property}
    known = enumerated(name, context, first)
    here = {events: p for events, p in known.items() if all(e.steps % every == 0 for e in events)}
    if target(name).claims:
        # the native search follows equal committed states once; what it has is what there is
        good = here.items() <= findings.items() and set(here.values()) == set(findings.values())
    else:
        good = here == findings
    if not good:
        wrong.append(f"{name} {context} {first}: the native search has {here}, Unicorn {findings}")
    assert set(findings.values()) <= set(PROPERTIES)
    return len(walked), len(findings), wrong


@pytest.mark.parametrize(("name", "context", "first", "every"), [
    ("entry", "user", "NMI", 120), ("entry", "kernel-task", "VC", 120), ("naive", "kernel-task", "NMI", 30),
    ("debian", "kernel-task", "MC", 40), ("h-gsbase-by-rdpid", "kernel-task", "NMI", 30),
])  # fmt: skip
def test_two_events(name: str, context: str, first: str, every: int) -> None:
    count, _, wrong = compare(name, context, first, every)
    assert not wrong
    assert count > 4


def deeper(name: str, context: str, count: int, seed: int) -> tuple[int, int, list[str]]:
    """``count`` random schedules of three to five events: how many there were, findings, differences.

    Those in which an event finds its gate closed, so that fewer than three are left, are tried again."""
    random = Random(f"{name} {context} {seed}")  # noqa: S311 - the same schedules each time
    start, deep, findings = start_of(name, context), 0, 0
    wrong: list[str] = []
    walker = walking.Walker(target(name))
    for _ in range(100 * count):
        if deep == count:
            break
        wanted = [Event(random.choice(EVENTS), 0)]
        wanted += [
            Event(random.choice(EVENTS), random.randrange(random.choice((8, 20, 60, 400))))
            for _ in range(random.randint(2, 4))
        ]
        events, ending = schedule(target(name), start, wanted, walker)
        if len(events) < 3:
            continue
        deep += 1
        findings += bool(ending.property)
        wrong += differences(name, context, events, ending)
    return deep, findings, wrong


@pytest.mark.parametrize(
    ("name", "context"), [("entry", "user"), ("naive", "user"), ("debian", "kernel-task")]
)
def test_deeper(name: str, context: str) -> None:
    deep, _, wrong = deeper(name, context, 6, 1)
    assert not wrong
    assert deep == 6


def test_an_event_that_cannot_be_delivered_is_no_schedule() -> None:
    assert native("entry", "user", [Event("NMI", 0), Event("MC", 1)]) == ""
    assert native("entry", "user", [Event("NMI", 0), Event("NMI", 1)]) is None
    assert native("entry", "user", [Event("NMI", 0), Event("MC", 5_000)]) is None
    assert native("entry", "user", [Event("NMI", 3)]) is None


def test_an_error_in_the_walker_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivery that pushes another carry flag ends otherwise."""
    deliver = walking.Walker.deliver

    def wrong(self: walking.Walker, vector: str, error: int) -> None:
        deliver(self, vector, error)
        self.memory.poke(self["RSP"] + 16, self.memory.peek(self["RSP"] + 16, 8) ^ 1)

    start = find_context(target("entry"), "user")
    assert schedule(target("entry"), start, [Event("NMI", 0)])[1] == Ending("", "resumed")
    monkeypatch.setattr(walking.Walker, "deliver", wrong)
    _, ending = schedule(target("entry"), start, [Event("NMI", 0)])
    assert ending == Ending("IST001", "violated")


def test_the_walker_does_not_look_at_what_it_checks() -> None:
    """It shares the ruler, and neither the search nor the microcode."""
    for module in (walking, walks, by_hand, walked_memory):
        names = set(
            re.findall(r"^from (atomicist[.\w]*)", Path(str(module.__file__)).read_text(), re.MULTILINE)
        )
        shared = {n for n in names if not n.startswith("atomicist.crosscheck")}
        assert not [n for n in shared if ".search" in n or ".native" in n or (n.startswith("atomicist.isa.")
                    and n != "atomicist.isa.registers")], shared  # fmt: skip
