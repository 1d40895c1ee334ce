# SPDX-License-Identifier: GPL-2.0-only
"""Whole runs: schedules end the same on the reference interpreter, in the native model and in Unicorn."""

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
from atomicist.native.build import cache_dir
from atomicist.native.engine import Engine
from atomicist.search.replay import Timed, find_context, replay_timed
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


def reference(name: str, context: str, events: Sequence[Event]) -> Ending:
    """How the reference interpreter ends it."""
    timed = [Timed(e.vector, e.steps) for e in events]
    verdict = replay_timed(target(name), find_context(target(name), context), timed).verdict
    return Ending(verdict.property, verdict.outcome)


def native(name: str, context: str, first: str) -> dict[tuple[Event, ...], str]:
    """The native model's findings among all schedules of two events."""
    start = find_context(target(name), context)
    with Engine(target(name), CODES, EVENTS, ERROR_TOKEN, MAX_STEPS) as engine:
        found = engine.enumerate(
            start.registers, budget=2, offered=(1 << len(EVENTS)) - 1, first=1 << EVENTS.index(first),
            expect_df=start.expect_df, no_stack=start.no_stack,
        )  # fmt: skip
    return {
        tuple(Event(EVENTS[e.vector], e.steps) for e in f.events): f"IST{f.property:03}"
        for f in found.findings
    }


def compare(name: str, context: str, first: str, every: int) -> tuple[int, int]:
    """Compare a share of the pairs; how many there were, and how many findings."""
    start = find_context(target(name), context)
    walked = dict(pairs(target(name), start, first, every=every))
    wrong = []
    for events, ending in walked.items():
        theirs = reference(name, context, events)
        if ending != theirs:
            wrong.append(f"{events}: {ending}, reference {theirs}")
    assert not wrong, wrong[:5]
    findings = {events: e.property for events, e in walked.items() if e.property}
    known = native(name, context, first)
    here = {events: p for events, p in known.items() if all(e.steps % every == 0 for e in events)}
    if target(name).claims:
        # the native search follows equal committed states once; what it has is what there is
        assert here.items() <= findings.items()
        assert set(here.values()) == set(findings.values())
    else:
        assert here == findings
    assert set(findings.values()) <= set(PROPERTIES)
    return len(walked), len(findings)


@pytest.mark.parametrize(("name", "context", "first", "every"), [
    ("entry", "user", "NMI", 120), ("entry", "kernel-task", "VC", 120), ("naive", "kernel-task", "NMI", 30),
    ("debian", "kernel-task", "MC", 40),
])  # fmt: skip
def test_two_events(name: str, context: str, first: str, every: int) -> None:
    count, _ = compare(name, context, first, every)
    assert count > 4


@pytest.mark.slow
@pytest.mark.parametrize("first", EVENTS)
@pytest.mark.parametrize("context", ["user", "kernel-task"])
@pytest.mark.parametrize("name", IMAGES)
def test_all_with_two_events(name: str, context: str, first: str) -> None:
    count, findings = compare(name, context, first, 1)
    print(f"{name} {context} {first}: {count} schedules, {findings} findings")


def deeper(name: str, context: str, count: int, seed: int) -> int:
    """Random schedules of three to five events; how many had at least three."""
    random = Random(seed)  # noqa: S311 - the same schedules each time
    start, deep = find_context(target(name), context), 0
    for _ in range(count):
        wanted = [Event(random.choice(EVENTS), 0)]
        wanted += [
            Event(random.choice(EVENTS), random.randrange(random.choice((20, 60, 400))))
            for _ in range(random.randint(2, 4))
        ]
        events, ending = schedule(target(name), start, wanted)
        if not events:
            continue
        deep += len(events) > 2
        assert ending == reference(name, context, events), events
    return deep


@pytest.mark.parametrize(
    ("name", "context"), [("entry", "user"), ("naive", "user"), ("debian", "kernel-task")]
)
def test_deeper(name: str, context: str) -> None:
    assert deeper(name, context, 8, 1) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "context"), [
    ("entry", "user"), ("entry", "kernel-task"), ("naive", "user"), ("naive", "kernel-task"),
    ("debian", "user"), ("debian", "kernel-task"),
])  # fmt: skip
def test_many_deeper(name: str, context: str) -> None:
    assert deeper(name, context, 1_700, 2) > 500


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
