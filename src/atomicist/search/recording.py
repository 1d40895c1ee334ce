# SPDX-License-Identifier: GPL-2.0-only
"""A recorded run: a replay, and for each of its steps the registers that it changed, the
words that it stored with where they came from, the stack and the stage it was in.

It is what a picture of a run is made from (`report.run_data`), and nothing in it is
computed for the picture: the registers are the reference interpreter's, the stages are
the labels of the image (`machine.stages`), the sources were followed while it ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from atomicist.isa.registers import BY_SLOT, FLAG_BITS, GPRS
from atomicist.machine.memory import WORD, Region, RegionKind
from atomicist.machine.stages import STAGES, Stage, labelled
from atomicist.machine.target import Target
from atomicist.search.provenance import Source, Tape
from atomicist.search.replay import Replay, replay
from atomicist.search.schedule import Injection, Schedule, ScheduleError
from atomicist.spec.observer import pack_flags

SHOWN: Final = (
    *GPRS, "RIP", "RFLAGS", "CS", "SS", "CR2", "CR3", "GSBASE", "KERNEL_GSBASE", "SPEC_CTRL", "TSC_AUX",
    "MCG_STATUS", "NMI_BLOCKED", "SHADOW",
)  # fmt: skip
"""The registers of a record; RFLAGS as its image, not flag by flag."""

KINDS: Final[Mapping[RegionKind, str]] = {
    RegionKind.OTHER: "other", RegionKind.IST_STACK: "ist", RegionKind.MAIN_STACK: "main",
    RegionKind.TASK_STACK: "task", RegionKind.ENTRY_STACK: "entry", RegionKind.IRQ_STACK: "irq",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """A word stored at ``address``; ``source``: where it came from, None if it was computed."""

    address: int
    source: Source | None


@dataclass(frozen=True, slots=True)
class Moment:
    """One step: ``label`` is the key of the stage whose code RIP was in, if the image says
    so; ``rsp`` and ``user`` as they were when the step began; ``stack``: the region that
    RSP lay in; ``changed``: registers with their new values; ``stored``: words."""

    label: str
    rsp: int
    user: bool
    stack: str
    changed: tuple[tuple[str, int], ...]
    stored: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """A region: ``kind`` is ist, main, task, entry, irq or other."""

    name: str
    kind: str
    bottom: int
    top: int


@dataclass(frozen=True, slots=True)
class Recording:
    """A run as it was: ``replay`` and one of ``moments`` for each of its steps; ``start``:
    the registers at the beginning; ``slot_bytes``: what a level of nesting takes of the
    main stack, 0 where the image has no commit; ``save3``: whether a level begins with what
    save 3 has kept."""

    replay: Replay
    moments: tuple[Moment, ...]
    start: Mapping[str, int]
    stages: tuple[Stage, ...]
    stacks: tuple[Stack, ...]
    slot_bytes: int
    save3: bool = False


def _shown(registers: tuple[int, ...]) -> dict[str, int]:
    named = dict(zip(BY_SLOT, registers, strict=True))
    flags = pack_flags({name: named[name] for name in FLAG_BITS})
    return {name: flags if name == "RFLAGS" else named[name] for name in SHOWN}


def _stack(target: Target, rsp: int) -> Region | None:
    """The stack that ``rsp`` belongs to: of an empty one it is the end, where another
    region may begin."""
    region = target.region(rsp)
    if region is None or region.kind is RegionKind.OTHER or region.bottom == rsp:
        return target.region(rsp - WORD) or region
    return region


def record(target: Target, schedule: Schedule) -> Recording:
    """Replay ``schedule`` and keep everything. Raises `ScheduleError` as `replay` does."""
    tape = Tape(target)
    played = replay(target, schedule, tape)
    return _assemble(target, played, tape)


def _assemble(target: Target, played: Replay, tape: Tape) -> Recording:
    states = [_shown(registers) for registers in (*tape.before, tuple(tape.registers))]
    stored: dict[int, list[Stored]] = {}
    for address, writes in played.writes.items():
        for index in dict.fromkeys(w.step for w in writes if w.by != "freed"):
            stored.setdefault(index, []).append(Stored(address, tape.sources.get((index, address))))
    claims = target.claims
    moments = []
    for step in played.steps:
        now, then = states[step.index], states[step.index + 1]
        region = _stack(target, now["RSP"])
        moments.append(
            Moment(
                labelled(target.symbolize(step.rip).partition("+")[0]) if claims else "",
                now["RSP"],
                bool(now["CS"] & 3),
                region.name if region else "",
                tuple((name, then[name]) for name in SHOWN if then[name] != now[name]),
                tuple(sorted(stored.get(step.index, ()), key=lambda s: s.address)),
            )
        )
    stacks = tuple(Stack(r.name, KINDS[r.kind], r.bottom, r.top) for r in target.regions)
    save3 = claims and any(labelled(name) == "save3" for name in target.symbols)
    slot = target.slot_bytes if claims else 0
    return Recording(played, tuple(moments), states[0], STAGES, stacks, slot, save3)


def follow(target: Target, schedule: Schedule) -> tuple[Recording, tuple[tuple[int, Injection], ...]]:
    """Record ``schedule`` on an image that it was not made for: an event whose place is
    not reached again arrives right behind the next IRET at which it can, as one that was
    pending would.  Also gives which injections were moved, and to where.

    Raises `ScheduleError` if that does not help either."""
    moved: list[tuple[int, Injection]] = []
    injections = schedule.injections
    for number in range(1, len(injections)):
        try:
            record(target, Schedule(schedule.context, injections[: number + 1]))
        except ScheduleError as e:
            other = _behind_iret(target, Schedule(schedule.context, injections[:number]), injections[number])
            if other is None:
                raise ScheduleError(f"{e}, and nowhere behind an IRET either") from e
            injections = (*injections[:number], other, *injections[number + 1 :])
            moved.append((number, other))
    return record(target, Schedule(schedule.context, injections)), tuple(moved)


def _behind_iret(target: Target, before: Schedule, wanted: Injection) -> Injection | None:
    """Where ``wanted`` can arrive first, right behind an IRET that follows all of ``before``."""
    steps = record(target, before).replay.steps
    last = max(s.index for s in steps if s.kind == "deliver")
    for step, following in pairwise(steps):
        if step.index <= last or step.kind != "insn" or not step.text.startswith("iret"):
            continue
        rip = following.rip
        nth = sum(s.rip == rip and s.kind in ("insn", "handler") for s in steps[last + 1 : following.index])
        there = Injection(wanted.vector, rip, nth + 1)
        try:
            record(target, Schedule(before.context, (*before.injections, there)))
        except ScheduleError:
            continue
        return there
    return None
