# SPDX-License-Identifier: GPL-2.0-only
"""Arguments that a mutant does what the original does, found in the IR alone.

An argument is about the mutated instructions: from any state they lead to the same
place with the same values, in every register that matters there and in all memory.
A system instruction is a function of the registers that it reads, whatever it computes; that it may
fault does not matter here, for a fault is a finding.  What is in memory depends on CR3 as well.
Between two of them an event may see another state than before; that this does no harm
is not argued here but tried, by closing the search over an image with the mutant in it.

A register matters where some path reads it before writing it.  Across a handler's call
that is what the ABI says: arguments and stack are read, what the caller saves is lost.
An event at a boundary saves and restores all registers, so it does not make one matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from atomicist.image.mutate import Change
from atomicist.isa.arithmetic import PURE, evaluate, mask
from atomicist.isa.delivery import VECTORS
from atomicist.isa.ir import Code, Flow, Insn, Op, Space, Var
from atomicist.isa.registers import BY_SLOT, GPRS, REGISTERS, SLOT, SLOTS
from atomicist.machine.target import Place, Target
from atomicist.native.flow import observed, reads_writes, successors

_ALL: Final = (1 << SLOTS) - 1
_CLOBBERED: Final = (
    "RAX",
    "RCX",
    "RDX",
    "RSI",
    "RDI",
    "R8",
    "R9",
    "R10",
    "R11",
    "CF",
    "PF",
    "AF",
    "ZF",
    "SF",
    "OF",
)
_CR3: Final = REGISTERS["CR3"].slot
_NATURAL: Final = tuple(r.size for r in REGISTERS.values())
_LONGEST: Final = 4
_SYSTEM: Final = frozenset({Code.FAULT, Code.UNKNOWN, Code.NOTE, Code.JUMP, Code.CJUMP, Code.PREDICTED})
_CLEAR: Final = frozenset({Code.LOAD, Code.STORE, Code.BRANCH, Code.CBRANCH, Code.BRANCHIND, Code.PREDICTED})

_CLAIMED: Final = sum(1 << REGISTERS[n].slot for n in (*GPRS, "IF", "TF", "NT", "AC", "DF"))
"""What a commit label says something about (IST028)."""

Expr = tuple[Any, ...]
"""("c", value) a constant, ("r", slot) a register before, or an operation of these."""


def _slots(names: Iterable[str]) -> int:
    return sum(1 << REGISTERS[n].slot for n in names)


class Liveness:
    """Which registers matter at each address of a target, as bit sets of slots."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._next: dict[int, tuple[int, ...]] = {}
        effects: dict[int, tuple[int, int]] = {}
        for va, insn in target.insns.items():
            effects[va], self._next[va] = reads_writes(insn.ops), tuple(successors(insn))
            # a call of a handler and what it does are one step: it comes back to this caller
            vector = target.handlers.get(insn.target or 0) if insn.flow is Flow.CALL else None
            if vector is not None:
                reads = _slots(["RDI", "RSP", *(["RSI"] if VECTORS[vector].has_error_code else [])])
                own, written = effects[va]
                effects[va] = own | reads, written | _slots(_CLOBBERED) & ~reads
                self._next[va] = (insn.next,)
        self._live = dict.fromkeys(target.insns, 0)
        self._solve(effects)

    def _solve(self, effects: Mapping[int, tuple[int, int]]) -> None:
        before: dict[int, list[int]] = {}
        for va, targets in self._next.items():
            for to in targets:
                before.setdefault(to, []).append(va)
        todo = list(self._live)
        while todo:
            va = todo.pop()
            reads, writes = effects[va]
            after = 0
            for to in self._next[va]:
                after |= self.at(to)
            if observed(self._target.insns[va].ops) or not self._next[va]:
                after = _ALL
            now = reads | after & ~writes
            if now != self._live[va]:
                self._live[va] = now
                todo += [p for p in before.get(va, ()) if p in self._live]

    def at(self, va: int) -> int:
        """The registers that matter at ``va``; all, where nothing is known."""
        claimed = self._target.places.get(va, Place(0)) & Place.COMMITTED
        return self._live.get(va, _ALL) | (_CLAIMED if claimed else 0)


@dataclass(slots=True)
class _Exit:
    """Where a block leaves to, under which condition, with what."""

    to: Expr
    condition: Expr | None
    registers: dict[int, Expr]
    stores: tuple[tuple[Expr, int, Expr], ...]


class _Unclear(Exception):  # noqa: N818 - said of the block
    """The block does something of which no argument is made."""


def _op(code: Code, ins: tuple[Expr, ...], sizes: tuple[int, ...], out: int) -> Expr:
    if all(i[0] == "c" for i in ins):
        return ("c", evaluate(code, [i[1] for i in ins], list(sizes), out))
    if code in (Code.INT_XOR, Code.INT_SUB) and len(ins) == 2 and ins[0] == ins[1]:
        return ("c", 0)
    if code is Code.INT_AND and ins[1][0] == "c" and ins[0][0] == Code.INT_OR.value and ins[0][4][0] == "c":
        # bits that are set, and then others cleared
        kept = _op(code, (ins[0][3], ins[1]), sizes, out)
        return _op(Code.INT_OR, (kept, ("c", ins[0][4][1] & ins[1][1])), sizes, out)
    if code is Code.INT_AND and ins[0] == ins[1]:
        return ins[0]
    if code in (Code.COPY, Code.INT_ZEXT) and sizes[0] <= out:
        return ins[0]
    if out == SLOT and code in (Code.INT_ADD, Code.INT_SUB) and ins[1][0] == "c":
        base, offset = _split(ins[0])
        offset = (offset + (ins[1][1] if code is Code.INT_ADD else -ins[1][1])) & mask(SLOT)
        return ("+", base, offset) if offset else base
    if code is Code.INT_ADD and ins[0][0] == "c" and out == SLOT:
        return _op(code, (ins[1], ins[0]), (sizes[1], sizes[0]), out)
    if code is Code.SUBPIECE and ins[1] == ("c", 0):
        return _low(ins[0], out)
    return (code.value, sizes, out, *ins)


def _split(e: Expr) -> tuple[Expr, int]:
    return (e[1], e[2]) if e[0] == "+" else (e, 0)


def _low(e: Expr, size: int) -> Expr:
    if e[0] == "c":
        return ("c", e[1] & mask(size))
    return ("low", size, e)


def _disjoint(a: Expr, asize: int, b: Expr, bsize: int) -> bool:
    (abase, aoff), (bbase, boff) = _split(a), _split(b)
    apart = (boff - aoff) & mask(SLOT)
    return abase == bbase and asize <= apart <= mask(SLOT) + 1 - bsize


@dataclass(slots=True)
class _State:
    registers: dict[int, Expr] = field(default_factory=dict)
    temps: dict[int, Expr] = field(default_factory=dict)
    stores: list[tuple[Expr, int, Expr]] = field(default_factory=list)

    def slot(self, slot: int) -> Expr:
        return self.registers.get(slot, ("r", slot))

    def get(self, v: Var) -> Expr:
        if v.space is Space.CONST:
            return ("c", v.off)
        if v.space is Space.TMP:
            return self.temps[v.off]
        slot, sub = divmod(v.off, SLOT)
        value = self.slot(slot)
        if sub == 0 and v.size == _NATURAL[slot]:
            return value
        if value[0] == "c":
            return ("c", value[1] >> 8 * sub & mask(v.size))
        return _low(value, v.size) if sub == 0 else ("part", sub, v.size, value)

    def put(self, v: Var, value: Expr) -> None:
        if v.space is Space.TMP:
            self.temps[v.off] = value
            return
        slot, sub = divmod(v.off, SLOT)
        whole = sub == 0 and v.size == _NATURAL[slot]
        self.registers[slot] = value if whole else ("merge", sub, v.size, self.slot(slot), value)

    def at(self, address: Expr) -> Expr:
        """The place that ``address`` is in the page tables in force."""
        root = self.registers.get(_CR3)
        return address if root is None else ("under", address, root)

    def load(self, address: Expr, size: int) -> Expr:
        seen: list[Expr] = []
        for where, width, value in reversed(self.stores):
            if where == address and width == size and not seen:
                return value
            if not _disjoint(address, size, where, width):
                seen.append((where, width, value))
        return ("load", address, size, tuple(seen))

    def memory(self) -> tuple[tuple[Expr, int, Expr], ...]:
        """The stores in an order that does not depend on how disjoint ones were made."""
        done: list[tuple[Expr, int, Expr]] = []
        for store in self.stores:
            at = len(done)
            while (
                at
                and _disjoint(store[0], store[1], done[at - 1][0], done[at - 1][1])
                and repr(store[:2]) < repr(done[at - 1][:2])
            ):
                at -= 1
            if at and done[at - 1][:2] == store[:2]:
                done[at - 1] = store
            else:
                done.insert(at, store)
        return tuple(done)


def _run(insns: Mapping[int, Insn | None], start: int, end: int) -> list[_Exit]:
    """The exits of the straight code from ``start`` to ``end``."""
    state, exits, va, count = _State(), [], start, 0

    def leave(to: Expr, condition: Expr | None) -> None:
        exits.append(_Exit(to, condition, dict(state.registers), state.memory()))

    while va != end:
        insn = insns.get(va)
        count += 1
        if insn is None or count > _LONGEST or not start <= va < end:
            raise _Unclear
        state.temps = {}
        if any(op.code in _SYSTEM for op in insn.ops):
            _opaque(insn, state)
        else:
            for op in insn.ops:
                if not _execute(op, state, leave):
                    return exits
        va = insn.next
    leave(("c", end), None)
    return exits


def _opaque(insn: Insn, state: _State) -> None:
    """A system instruction, by what it reads and what it may write."""
    if insn.flow is not Flow.FALL or any(op.code in _CLEAR for op in insn.ops) or observed(insn.ops):
        raise _Unclear
    reads: set[int] = set()
    writes: set[int] = set()
    for op in insn.ops:
        reads |= {v.off // SLOT for v in op.ins if v.space is Space.REG}
        if op.out is not None and op.out.space is Space.REG:
            writes.add(op.out.off // SLOT)
    if REGISTERS["RIP"].slot in reads | writes:
        raise _Unclear
    # what it may leave as it was depends on what was
    inputs = tuple((slot, state.slot(slot)) for slot in sorted(reads | writes))
    for slot in writes:
        state.registers[slot] = ("system", insn.raw, slot, inputs)


def _execute(op: Op, state: _State, leave: Any) -> bool:
    """One operation; False if it always leaves the block."""
    if op.code in PURE and op.out is not None:
        if op.out.size > SLOT or any(v.size > SLOT for v in op.ins):
            raise _Unclear
        ins = tuple(state.get(v) for v in op.ins)
        state.put(op.out, _op(op.code, ins, tuple(v.size for v in op.ins), op.out.size))
    elif op.code is Code.LOAD and op.out is not None:
        state.put(op.out, state.load(state.at(state.get(op.ins[0])), op.out.size))
    elif op.code is Code.STORE:
        state.stores.append((state.at(state.get(op.ins[0])), op.ins[1].size, state.get(op.ins[1])))
    elif op.code is Code.CBRANCH:
        leave(state.get(op.ins[0]), state.get(op.ins[1]))
    elif op.code is Code.BRANCH:
        leave(state.get(op.ins[0]), None)
        return False
    else:
        raise _Unclear
    return True


def same(target: Target, live: Liveness, change: Change, span: tuple[int, int]) -> str:
    """Why the code in ``span`` (addresses) does the same after ``change``; "" if no
    argument is found."""
    changed = [va for va, insn in change.insns.items() if insn != target.insns.get(va)]
    if any(not span[0] <= va < span[1] for va in changed):
        return ""
    mutated = dict(target.insns) | dict(change.insns)
    start, end = span
    a, b = target.insns.get(start), mutated.get(start)
    if a is not None and b is not None and a.next == b.next == end and a.ops == b.ops:
        return "the instruction means the same"
    try:
        was, now = _run(target.insns, start, end), _run(mutated, start, end)
    except _Unclear:
        return ""
    if len(was) != len(now):
        return ""
    dead: set[int] = set()
    for x, y in zip(was, now, strict=True):
        if (x.to, x.condition, x.stores) != (y.to, y.condition, y.stores):
            return ""
        matters = live.at(x.to[1]) if x.to[0] == "c" else _ALL
        for slot in x.registers.keys() | y.registers.keys():
            if x.registers.get(slot, ("r", slot)) != y.registers.get(slot, ("r", slot)):
                if matters >> slot & 1:
                    return ""
                dead.add(slot)
    if not dead:
        return "the instructions commute" if b is not None and b.next != end else "it changes nothing"
    names = [BY_SLOT[s] for s in sorted(dead)]
    return f"what differs is written before it is read: {', '.join(names)}"
