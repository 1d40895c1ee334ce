# SPDX-License-Identifier: GPL-2.0-only
"""Figures of one image, for comparing it with others: all from the image and runs of it.

`cheap` runs two schedules on the reference interpreter and looks at the code;
`Figures.verified` is added by whoever has verified the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from atomicist.image.code import follow
from atomicist.image.retbleed import EARLY, ExposedPath, exposed_paths
from atomicist.isa.ir import Insn
from atomicist.machine.memory import PAGE, PageFlag, RegionKind
from atomicist.machine.target import Place, Target
from atomicist.search.replay import Replay, replay
from atomicist.search.result import Result
from atomicist.search.schedule import parse

FAST: Final = {"user": "user:NMI", "kernel": "kernel-task:NMI"}
"""The paths whose instructions are counted: an NMI alone, from either mode."""

LOST: Final = frozenset({f"IST{n:03d}" for n in (1, 2, 3, 4, 5, 6)})
"""Properties of which a violation means that a context or an event is lost or mixed up."""

RETBLEED: Final = "IST026"
REWRITTEN: Final = "atomic_ist_copy_nmi_return"
"""The label to which a patch step points a return, where there is one."""


@dataclass(frozen=True, slots=True)
class Path:
    """Instructions of the entry from an event's ``delivery`` to its handler's first
    instruction, and from the handler's ``back`` to the interrupted context."""

    delivery: int
    back: int

    @property
    def total(self) -> int:
        """Both."""
        return self.delivery + self.back


@dataclass(frozen=True, slots=True)
class Figures:
    """What `compare` shows of an image.

    ``fast``: by mode, None where the schedule does not end; ``text_bytes``: of the code
    that the four entries reach, returns included and handlers not; ``assembler`` and
    ``c``: source lines of the entry with code in the image, 0 without debug information;
    ``early_c``: instructions, of C, that the NMI's entry has before its commit;
    ``exposed``: paths to a return that come too early; ``user_mapped``: bytes of memory,
    by region, that the user page tables must map writable for the entries; ``trusted``: what
    the result rests on besides the hardware."""

    name: str
    build_id: str
    config: tuple[str, ...]
    mitigation: str
    fast: dict[str, Path | None]
    text_bytes: int
    assembler: int
    c: int
    early_c: int
    exposed: tuple[ExposedPath, ...]
    user_mapped: dict[str, int]
    trusted: tuple[str, ...]
    verified: Result | None = None

    @property
    def lost(self) -> tuple[str, ...] | None:
        """Properties violated that mean a loss; None if nobody has looked."""
        return None if self.verified is None else _violated(self.verified, LOST)

    @property
    def safe(self) -> bool | None:
        """Whether no run returned while predictions were the user's; None if unknown."""
        return None if self.verified is None else not _violated(self.verified, frozenset({RETBLEED}))


def _violated(result: Result, of: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted({f.property for f in result.findings} & of))


def cheap(target: Target, name: str, source: Callable[[int], str]) -> Figures:
    """The figures of ``target`` that need no search; ``source`` gives file:line."""
    entries = [g.offset for v, g in target.gates.items() if g.offset in target.insns and v != "DF"]
    insns = follow(target.insns, entries, target.handlers)
    lines = {line for va in insns if (line := source(va))}
    start, end = _atomic(target)
    every = exposed_paths(target.insns, target.symbols, target.mitigation, entries, target.handlers)
    early = [va for va in target.insns if start <= va < end and ".S:" not in (source(va) or ".S:")]
    return Figures(
        name, target.build_id, target.config, target.mitigation,
        {mode: path(replay(target, parse(schedule, target))) for mode, schedule in FAST.items()},
        sum(i.size for i in insns.values()),
        sum(".S:" in line for line in lines), sum(".c:" in line or ".h:" in line for line in lines),
        len(early), tuple(p for p in every if not p.note),
        _mapped(target, insns), tuple(_trusted(target, early)),
    )  # fmt: skip


def path(shown: Replay) -> Path | None:
    """The fast path of a replay of one event, None if it was not resumed."""
    handlers = [i for i, s in enumerate(shown.steps) if s.kind == "handler"]
    if shown.verdict.outcome != "resumed" or len(handlers) != 1:
        return None
    before, behind = shown.steps[: handlers[0]], shown.steps[handlers[0] :]
    return Path(*(sum(s.kind == "insn" for s in part) for part in (before, behind)))


def _atomic(target: Target) -> tuple[int, int]:
    """The NMI's text up to its commit, empty where there is none."""
    symbols = target.symbols
    start = symbols.get("__atomic_ist_nmi_text", 0)
    return start, symbols.get("atomic_ist_committed_nmi", start)


def _mapped(target: Target, insns: dict[int, Insn]) -> dict[str, int]:
    pages = {p.base: p.flags for p in target.pages}
    stacks = (RegionKind.IST_STACK, RegionKind.MAIN_STACK)
    out = {}
    for region in target.regions:
        if region.kind in stacks and pages.get(region.bottom & -PAGE, PageFlag(0)) & PageFlag.USER_ROOT:
            out[region.name] = region.top - region.bottom
    code = {va & -PAGE for va in insns}
    out["text"] = PAGE * sum(bool(pages.get(base, PageFlag(0)) & PageFlag.USER_ROOT) for base in code)
    return out


def _trusted(target: Target, early: list[int]) -> list[str]:
    trusted = []
    if early:
        trusted.append("compiled C before the commit")
    if REWRITTEN in target.symbols:
        trusted.append("a patch step for its return")
    if any(name.startswith(EARLY) for name in target.symbols) and target.mitigation == "unret":
        trusted.append("an untraining of its own")
    if not any(p & Place.COMMITTED for p in target.places.values()):
        trusted.append("what is patched at boot")
    return trusted
