# SPDX-License-Identifier: GPL-2.0-only
"""IR -> the C of one trace: instructions that follow one another without a choice.

A trace is a transaction.  It reads registers into C constants, computes with
those, and writes registers back where control leaves it.  Stores go to memory at
once, but through the undo log.  So wherever it meets anything out of the
ordinary - an access that is refused, a fault, an unknown - it takes back its
stores and is as if it had never begun, and `step()` does it again, one
instruction at a time, and says what was wrong.

Accesses relative to one value are checked together, before the first of them: the
check may be stricter than the accesses that are then made, never laxer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from atomicist.isa.ir import Access, Code, Insn, Note, Op, Space, Var
from atomicist.isa.registers import REGISTERS, SLOT
from atomicist.native import expressions
from atomicist.native.expressions import Value, literal, mask
from atomicist.native.group import KINDS, Group

_GSBASE: Final = REGISTERS["GSBASE"].slot
_NATURAL: Final = tuple(r.size for r in REGISTERS.values())
_RETURNS: Final = (Note.IRET, Note.SYSRET)
_JUMPS: Final = (Code.JUMP, Code.CJUMP)


def _result(op: Op) -> Var:
    if op.out is None:
        raise ValueError(f"{op.code.value} without a result")
    return op.out


def _skipping(insn: Insn) -> tuple[Op, ...]:
    """The operations of ``insn``; a branch to what follows it (CMOVcc) skips the rest of them."""
    end = Var(Space.CONST, len(insn.ops), 4)
    return tuple(
        Op(Code.CJUMP, None, (end, *op.ins[1:]))
        if op.code is Code.CBRANCH and op.ins[0].off == insn.next
        else op
        for op in insn.ops
    )


@dataclass(slots=True)
class _Line:
    """One C statement: ``name`` is what it defines ("" if it is done for its effect)."""

    name: str
    text: Callable[[], str] | str
    uses: tuple[str, ...]


class Trace:
    """Collects the C of the trace called ``name``.

    ``live`` gives, for an address, the slots that matter there; ``leave`` the C that
    goes there; ``away`` is the C that goes to the address put in for "{}"."""

    def __init__(
        self, name: str, live: Callable[[int | None], frozenset[int]], leave: Callable[[int], str], away: str
    ) -> None:
        self._name = name
        self._away = away
        self._live = live
        self._leave = leave
        self._lines: list[_Line] = []
        self._regs: dict[int, Value] = {}
        self._written: set[int] = set()
        self._temps: dict[int, Value] = {}
        self._groups: list[Group] = []
        self._foreign: set[str] = set()
        self._count = 0
        self._names = 0
        self._notes: set[Note] = set()
        self._forked = False
        self._written_groups: list[Group] = []

    @property
    def room(self) -> int:
        """How many words of the log the trace takes at most."""
        return sum(group.room for group in self._written_groups)

    def add(self, insn: Insn) -> bool:
        """Append ``insn``; True if control may go on behind it, in this trace."""
        self._count += 1
        self._notes = set()
        self._temps = {}
        open_end = self.operations(_skipping(insn), insn.va)
        if not open_end:
            return False
        if Note.WRITE_CR3 in self._notes:
            self.exit(insn.next)
            return False
        return True

    def bind(self, number: int, name: str) -> None:
        """Let the C name ``name`` be the value of temporary ``number``."""
        self._temps[number] = Value(name, SLOT)

    def operations(self, ops: tuple[Op, ...], va: int) -> bool:
        """Append operations; False if they always leave the trace."""
        jumps = [(i, op.ins[0].off) for i, op in enumerate(ops) if op.code in _JUMPS]
        # from here on operations may be skipped, or done again
        fork = min((min(i, to) for i, to in jumps), default=len(ops))
        labels = {to for _, to in jumps}
        unique = self._fresh(f"J_{self._name}_")
        open_end = True
        for index, op in enumerate(ops):
            if index == fork:
                self._forked = True
                self._predeclare(ops[index:])
            if index in labels:
                self._effect(f"{unique}_{index}:;")
                open_end = True
            if open_end:
                open_end = self._one(op, va, unique)
        if len(ops) in labels:
            self._effect(f"{unique}_{len(ops)}:;")
            open_end = True
        self._forked = False
        return open_end

    def _predeclare(self, ops: tuple[Op, ...]) -> None:
        """Where operations are skipped, their results are C variables."""
        for v in (v for op in ops for v in op.ins if v.space is Space.REG):
            self._register(v.off // SLOT)
        sizes: dict[tuple[Space, int], int] = {}
        for out in (op.out for op in ops if op.out is not None):
            place = (out.space, out.off if out.space is Space.TMP else out.off // SLOT)
            sizes[place] = max(sizes.get(place, SLOT), out.size)
        for (space, index), size in sizes.items():
            old = self._temps.get(index) if space is Space.TMP else self._register(index)
            name = self._fresh("v")
            start = old or expressions.constant(0, size)
            self._effect(f"{expressions.ctype(size)} {name} = {start.text};", *start.names())
            if space is Space.TMP:
                self._temps[index] = Value(name, size)
            else:
                self._regs[index] = Value(name, size)
                self._written.add(index)

    def _fresh(self, letter: str) -> str:
        self._names += 1
        return f"{letter}{self._names}"

    def _line(self, name: str, text: Callable[[], str] | str, uses: tuple[str, ...]) -> None:
        self._lines.append(_Line(name, text, uses))

    def _effect(self, text: str, *uses: str) -> None:
        self._line("", text, uses)

    def _register(self, slot: int) -> Value:
        if slot not in self._regs:
            name = self._fresh("r")
            self._line(name, f"const u64 {name} = R[{slot}u];", ())
            self._regs[slot] = Value(name, SLOT)
        return self._regs[slot]

    def _get(self, v: Var) -> Value:
        if v.space is Space.CONST:
            return expressions.constant(v.off, v.size)
        if v.space is Space.TMP:
            return expressions.part(self._temps[v.off], 0, v.size)
        slot, sub = v.off // SLOT, v.off % SLOT
        whole = self._register(slot)
        if sub == 0 and v.size >= _NATURAL[slot]:
            return Value(whole.text, v.size, whole.base, whole.off)
        return expressions.part(whole, sub, v.size)

    def _put(self, v: Var, value: Value) -> None:
        if v.space is Space.TMP:
            if self._forked:
                self._effect(f"{self._temps[v.off].text} = {value.text};", *value.names())
            else:
                self._temps[v.off] = value
            return
        slot, sub = v.off // SLOT, v.off % SLOT
        if sub or v.size != _NATURAL[slot]:
            old = self._register(slot)
            keep = mask(SLOT) & ~(mask(v.size) << 8 * sub)
            text = f"({old.text} & {literal(keep)}) | ({value.text} << {8 * sub})"
            value = self._define(text, SLOT, (*old.names(), *value.names()))
        if self._forked:
            self._effect(f"{self._regs[slot].text} = {value.text};", *value.names())
            return
        self._regs[slot] = value
        self._written.add(slot)

    def _define(self, text: str, size: int, uses: tuple[str, ...]) -> Value:
        name = self._fresh("x")
        self._line(name, f"const {expressions.ctype(size)} {name} = {text};", uses)
        return Value(name, size)

    def _named(self, value: Value) -> Value:
        """``value`` under a name of its own, so that its text stays short."""
        if value.simple:
            return value
        named = self._define(value.text, value.size, value.names())
        return Value(named.text, value.size, value.base, value.off)

    def _one(self, op: Op, va: int, unique: str) -> bool:
        code, ins = op.code, op.ins
        if code is Code.LOAD:
            out = _result(op)
            self._put(out, self._load(self._get(ins[0]), out.size, ins[1].off))
        elif code is Code.STORE:
            self._store(self._get(ins[0]), self._named(self._get(ins[1])), ins[1].size, ins[2].off)
        elif code is Code.BRANCH:
            self.exit(ins[0].off)
            return False
        elif code is Code.CBRANCH:
            condition = self._get(ins[1])
            self._effect(f"if ({condition.text}) {{", *condition.names())
            self.exit(ins[0].off)
            self._effect("}")
        elif code is Code.BRANCHIND:
            self._indirect(self._get(ins[0]), va)
            return False
        elif code is Code.JUMP:
            self._effect(f"goto {unique}_{ins[0].off};")
            return False
        elif code is Code.CJUMP:
            condition = self._get(ins[1])
            self._effect(f"if ({condition.text}) goto {unique}_{ins[0].off};", *condition.names())
        elif code in (Code.FAULT, Code.UNKNOWN, Code.PREDICTED):
            condition = self._get(ins[2 if code is Code.FAULT else 0])
            self._effect(f"REFUSE_IF({condition.text});", *condition.names())
        elif code is Code.NOTE:
            self._notes.add(Note(ins[0].off))
        else:
            out = _result(op)
            value = expressions.pure(op, [self._named(self._get(v)) for v in ins])
            self._put(out, self._named(value))
        return True

    def _write_back(self, live: frozenset[int]) -> None:
        for slot in sorted(self._written & live):
            value = self._regs[slot]
            self._effect(f"R[{slot}u] = {value.text};", *value.names())
        if Note.WRITE_CR3 in self._notes:
            self._effect("root = m->root = root_of(m);")

    def exit(self, target: int) -> None:
        """Leave for the address ``target``."""
        self._write_back(self._live(target))
        self._effect(f"n += {self._count}; {self._leave(target)}")

    def _indirect(self, target: Value, va: int) -> None:
        self._write_back(self._live(None))
        if self._notes & set(_RETURNS):
            self._effect(f"n += {self._count}; m->pc = {literal(va)}; goto returns;")
        else:
            self._effect(f"n += {self._count}; {self._away.format(target.text)}", *target.names())

    def deliver(self, ops: tuple[Op, ...]) -> None:
        """An event's microcode, up to the branch to its handler, and what it wrote."""
        self.operations(ops[:-1], 0)
        self._write_back(self._live(None))

    def _group(self, address: Value, size: int, access: int, *, write: bool) -> tuple[Group, int]:
        if access == Access.GS:
            base = self._register(_GSBASE).text
            if base not in self._foreign:
                # a new value of GSBASE has a new name
                self._effect(f"REFUSE_IF({base} != m->im->kernel_gsbase);", base)
                if not self._forked:
                    self._foreign.add(base)
        address = self._named(address)
        # where operations are skipped, a base may have changed since the address was made
        origin, low = (address.base, address.off) if address.base and not self._forked else (address.text, 0)
        found = (g for g in self._groups if g.base == origin and g.fits(low, low + size))
        group = None if self._forked else next(found, None)
        if group is None:
            self._names += 1
            group = Group(self._names, origin)
            if not self._forked:
                self._groups.append(group)
            self._line("", group.check, () if origin == "0" else (origin,))
        if write and not group.writes:
            self._written_groups.append(group)
        (group.writes if write else group.reads).append((low, low + size))
        if write and group.aligned is None and size == SLOT:
            group.aligned = low
        return group, low

    def _load(self, address: Value, size: int, access: int) -> Value:
        group, low = self._group(address, size, access, write=False)
        name, kind = self._fresh("x"), KINDS[size]
        pointer = f"*(const {kind} *)(q{group.number}"
        self._line(name, lambda: f"const u64 {name} = {pointer} + {low - group.low});", ())
        return Value(name, size)

    def _store(self, address: Value, value: Value, size: int, access: int) -> None:
        group, low = self._group(address, size, access, write=True)
        self._line("", lambda: group.store(low, size, value.text), value.names())

    def render(self) -> str:
        """The C of the trace, without what nobody needs."""
        needed: set[str] = set()
        kept: list[_Line] = []
        for line in reversed(self._lines):
            if not line.name or line.name in needed:
                needed.update(line.uses)
                kept.append(line)
        return "".join("\t" + (t if isinstance(t := k.text, str) else t()) + "\n" for k in reversed(kept))
