# SPDX-License-Identifier: GPL-2.0-only
"""Where control goes from each instruction, and which registers matter where.

A register is live where some path reads it before writing it.  All are live where
somebody looks: where compiled code stops (a handler, a commit label, an address
without code), at an indirect branch, a return from an event, an instruction left to
`step()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from atomicist.isa.ir import Code, Insn, Note, Op, Space, Var
from atomicist.isa.registers import REGISTERS, SLOT, SLOTS
from atomicist.machine.target import Place, Target
from atomicist.native import expressions
from atomicist.native.group import KINDS

ALL: Final = (1 << SLOTS) - 1
_RIP: Final = REGISTERS["RIP"].slot
_SHADOW: Final = REGISTERS["SHADOW"].slot
_NATURAL: Final = tuple(r.size for r in REGISTERS.values())
LONGEST: Final = 64
"""Instructions in one trace: a refusal does all of them again, slowly."""

_LEAVES: Final = (Code.BRANCH, Code.BRANCHIND)


class FlowGraph:
    """The compilable instructions of a target and what is known of them."""

    def __init__(self, target: Target) -> None:
        self.stops = {va for va in target.insns if va in target.handlers}
        self.commits = {va for va, place in target.places.items() if place & Place.COMMITTED}
        self.insns = {
            va: insn for va, insn in target.insns.items() if va not in self.stops and compilable(insn.ops)
        }
        self._next = {va: tuple(successors(insn)) for va, insn in self.insns.items()}
        self._live = self._liveness()
        self.leaders = self._leaders(target)

    def live(self, va: int | None) -> frozenset[int]:
        """The slots that matter at ``va``; None: at an address not known."""
        bits = self.live_bits(va)
        return frozenset(i for i in range(SLOTS) if bits >> i & 1)

    def live_bits(self, va: int | None) -> int:
        """The same as a bit set."""
        return ALL if va is None or va in self.commits else self._live.get(va, ALL)

    def _liveness(self) -> dict[int, int]:
        effects = {va: reads_writes(insn.ops) for va, insn in self.insns.items()}
        before: dict[int, list[int]] = {}
        for va, targets in self._next.items():
            for to in targets:
                before.setdefault(to, []).append(va)
        live = dict.fromkeys(self.insns, 0)
        todo = list(self.insns)
        self._live = live
        while todo:
            va = todo.pop()
            reads, writes = effects[va]
            after = 0
            for to in self._next[va]:
                after |= self.live_bits(to)
            if observed(self.insns[va].ops):
                after = ALL
            now = reads | (after & ~writes)
            if now != live[va]:
                live[va] = now
                todo += [p for p in before.get(va, ()) if p in live]
        return live

    def _leaders(self, target: Target) -> set[int]:
        """Where traces begin: wherever control may come from elsewhere."""
        found = {gate.offset for gate in target.gates.values()} | self.commits
        for va, insn in self.insns.items():
            found |= set(self._next[va]) - {insn.next}
            if not falls_through(insn) or any(op.code is Code.NOTE for op in insn.ops):
                found.add(insn.next)
        reached = {insn.next for insn in self.insns.values() if falls_through(insn)}
        found |= self.insns.keys() - reached
        found &= self.insns.keys()
        for va in sorted(found):
            found |= self._cuts(va, found)
        return found

    def _cuts(self, va: int, leaders: set[int]) -> set[int]:
        """Where the code from ``va`` to the next of ``leaders`` is cut, because it is long."""
        cuts: set[int] = set()
        for count in itertools.count(1):
            insn = self.insns[va]
            va = insn.next
            if va in leaders or va not in self.insns or not falls_through(insn):
                return cuts
            if count % LONGEST == 0:
                cuts.add(va)
        return cuts


def compilable(ops: Iterable[Op], *, delivery: bool = False) -> bool:
    """Whether a trace can express ``ops``; if not, they are left to `step()`."""
    known = delivery
    for op in ops:
        # RIP is kept up to date between traces only; what an instruction wrote there it may read
        if not known and any(v.space is Space.REG and v.off // SLOT == _RIP for v in op.ins):
            return False
        slot = op.out.off // SLOT if op.out is not None and op.out.space is Space.REG else None
        if (slot == _SHADOW and not delivery) or not _expressible(op):
            return False
        known = known or slot == _RIP
    return True


def _expressible(op: Op) -> bool:
    if op.code is Code.LOAD:
        return op.out is not None and op.out.size in KINDS
    if op.code is Code.STORE:
        return op.ins[1].size in KINDS
    if op.code is Code.UNKNOWN:
        return op.ins[0].space is not Space.CONST
    return expressions.known(op)


def observed(ops: tuple[Op, ...]) -> bool:
    """Whether the instruction leaves to where nothing is known of what comes."""
    return any(
        op.code is Code.BRANCHIND or (op.code is Code.NOTE and op.ins[0].off != Note.WRITE_CR3) for op in ops
    )


def falls_through(insn: Insn) -> bool:
    """Whether control may reach the instruction behind ``insn``."""
    return insn.next in successors(insn)


def successors(insn: Insn) -> Iterator[int]:
    """Addresses that ``insn`` can lead to and that it names itself."""
    end = len(insn.ops)
    seen: set[int] = set()
    todo = [0]
    while todo:
        index = todo.pop()
        if index in seen:
            continue
        seen.add(index)
        if index >= end:
            yield insn.next
            continue
        op = insn.ops[index]
        if op.code in (Code.BRANCH, Code.CBRANCH):
            yield op.ins[0].off
        if op.code in (Code.JUMP, Code.CJUMP):
            todo.append(op.ins[0].off)
        if op.code not in (*_LEAVES, Code.JUMP):
            todo.append(index + 1)


def reads_writes(ops: tuple[Op, ...]) -> tuple[int, int]:
    """Slots read before they are surely written, and those surely written."""
    reads = writes = 0
    sure = True
    for op in ops:
        for v in op.ins:
            reads |= _bit(v) & ~writes
        if op.code in (Code.LOAD, Code.STORE) and op.ins[-1].off == 2:
            reads |= 1 << REGISTERS["GSBASE"].slot & ~writes
        # what lies behind a jump may be skipped, and so counts as a reader only
        sure = sure and op.code not in (Code.JUMP, Code.CJUMP, Code.CBRANCH)
        out = op.out
        if out is None or out.space is not Space.REG:
            continue
        whole = out.off % SLOT == 0 and out.size == _NATURAL[out.off // SLOT]
        if whole and sure:
            writes |= _bit(out)
        elif not whole:
            reads |= _bit(out) & ~writes
    return reads, writes


def _bit(v: Var) -> int:
    return 1 << v.off // SLOT if v.space is Space.REG else 0
