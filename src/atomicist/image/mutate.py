# SPDX-License-Identifier: GPL-2.0-only
"""Mutants of built code: one instruction of the linked image changed, in its bytes.

What is mutated is every instruction that can be reached between
``__atomic_ist_text_start`` and ``__atomic_ist_text_end`` - the entries' whole text, from
the targets of the gates to the handler call, and from there to IRET or to the jump into
the return to user mode - and that return itself, up to and with its IRET
(`RANGES`).  Left out is what an event can interrupt but never runs itself: SYSCALL and
SYSRET, the stubs of other gates, the handlers; and padding, which nothing reaches.

============  =========================================================================
delete        the instruction is filled with one NOP of its length
swap          it and the next one change places; a branch keeps its target, and a branch
              to the second leads to what stands there now
displacement  that of a memory operand by one byte, up or down
slot          the same by one 8-byte word
immediate     by one, up or down
branch        its target is the next or the previous instruction, or one byte off
condition     negated; and one with an order made strict or lax (jb and jbe, ...)
============  =========================================================================
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import capstone

from atomicist.image.code import ENDS, RETURNS
from atomicist.image.nops import NOPS
from atomicist.isa.ir import Flow, Insn
from atomicist.isa.lift import MAX_INSN, Lifter
from atomicist.machine.memory import PAGE
from atomicist.machine.target import Place, Target

KINDS: Final = ("delete", "swap", "displacement", "slot", "immediate", "branch", "condition")

RANGES: Final = (
    ("__atomic_ist_text_start", "__atomic_ist_text_end"),
    ("swapgs_restore_regs_and_return_to_usermode", "native_iret"),
)
"""First symbol and last: code before the last is mutated, and an instruction at it if it is
an IRET."""

_STAGES: Final = (
    (r"asm_exc_\w+", "save 2"),
    (r"atomic_ist_copy_\w+", "locate and copy, straight"),
    (r"atomic_ist_walk_\w+", "locate and copy, nested"),
    (r"atomic_ist_double_fault_\w+", "deliberate double fault"),
    (r"atomic_ist_commit_\w+", "commit"),
    (r"atomic_ist_committed_\w+", "after the commit"),
    (r"swapgs_restore_\w+|native_iret", "return to user mode"),
)
STAGES: Final = (*(name for _, name in _STAGES), "other")

_PREFIXES: Final = frozenset({0x66, 0x67, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, 0xF0, 0xF2, 0xF3})
_STRICT: Final = {0x2: 0x6, 0x6: 0x2, 0x3: 0x7, 0x7: 0x3, 0xC: 0xE, 0xE: 0xC, 0xD: 0xF, 0xF: 0xD}
"""b and be, ae and a, l and le, ge and g (SDM vol. 1, appendix B)."""
_DIRECT: Final = (Flow.JUMP, Flow.BRANCH, Flow.CALL)


def _nop(size: int) -> bytes:
    """One NOP of ``size`` bytes: there are as many boundaries as before."""
    longest = len(NOPS) - 1
    return b"\x66" * (size - longest) + NOPS[min(size, longest)]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of the image: ``edits`` are (address, new bytes).  ``name`` is unique in
    an image; ``was`` and ``now`` are the instructions before and after, as text."""

    name: str
    kind: str
    stage: str
    va: int
    edits: tuple[tuple[int, bytes], ...]
    was: str
    now: str


@dataclass(frozen=True, slots=True)
class Change:
    """A mutant in lifted form: instructions by address (None: none starts there any more)
    and the marks of those that are new."""

    insns: Mapping[int, Insn | None]
    places: Mapping[int, Place]


@dataclass(frozen=True, slots=True)
class NotMade:
    """Why there is no mutant where one could be expected, and how often."""

    why: str
    count: int


class Mutator:
    """Makes the mutants of one target, and applies them."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._decoder.detail = True
        self._lifter = Lifter()
        self._lifted: dict[tuple[int, bytes], Insn] = {}
        self._pages = {p.base: p.data for p in target.pages}
        self._order = sorted(target.insns)
        self._targets: dict[int, list[Insn]] = {}
        for insn in target.insns.values():
            if insn.target is not None:
                self._targets.setdefault(insn.target, []).append(insn)
        self._roots = set(target.symbols.values())
        self._skipped: dict[str, int] = {}
        self.insns = tuple(target.insns[va] for va in self._order if self._in_range(va))

    def _in_range(self, va: int) -> bool:
        symbols = self.target.symbols
        for first, last in RANGES:
            if first not in symbols or last not in symbols or va in self.target.handlers:
                continue
            at_end = va == symbols[last] and self.target.insns[va].flow is Flow.IRET
            if symbols[first] <= va < symbols[last] or at_end:
                return True
        return False

    def stage(self, va: int) -> str:
        """The part of the entry that ``va`` is in."""
        symbol = self.target.symbolize(va).split("+")[0]
        return next((name for pattern, name in _STAGES if re.fullmatch(pattern, symbol)), "other")

    def not_made(self) -> tuple[NotMade, ...]:
        """What `mutants` had to leave out, when it has been run through."""
        return tuple(NotMade(why, n) for why, n in sorted(self._skipped.items()))

    def mutants(self) -> tuple[Mutant, ...]:
        """All mutants, by address and kind; those with the same bytes once."""
        self._skipped = {}
        found: dict[tuple[tuple[int, bytes], ...], Mutant] = {}
        for insn in self.insns:
            for kind, how, edits in self._of(insn):
                if all(self._bytes(va, len(new)) == new for va, new in edits):
                    self._skip("the bytes stay the same")
                elif edits not in found:
                    name = f"{kind}{how}@{self.target.symbolize(insn.va)}"
                    found[edits] = self._named(name, kind, insn, edits)
        return tuple(found.values())

    def _named(self, name: str, kind: str, insn: Insn, edits: tuple[tuple[int, bytes], ...]) -> Mutant:
        texts = [insn.text]
        size = insn.size
        if kind == "swap":
            second = self.target.insns[insn.next]
            texts.append(second.text)
            size += second.size
        code = next(new for va, new in edits if va == insn.va)
        now = [f"{d.mnemonic} {d.op_str}".strip() for d in self._decoder.disasm(code[:size], insn.va)]
        return Mutant(name, kind, self.stage(insn.va), insn.va, edits, "; ".join(texts), "; ".join(now))

    def _skip(self, why: str) -> None:
        self._skipped[why] = self._skipped.get(why, 0) + 1

    def _bytes(self, va: int, size: int) -> bytes:
        base = va & ~(PAGE - 1)
        data = self._pages.get(base, b"")[va - base : va - base + size]
        if data and len(data) < size:
            data += self._bytes(base + PAGE, size - len(data))
        return data

    def _of(self, insn: Insn) -> Iterator[tuple[str, str, tuple[tuple[int, bytes], ...]]]:
        detail = next(self._decoder.disasm(insn.raw, insn.va))
        yield "delete", "", ((insn.va, _nop(insn.size)),)
        swapped = self._swap(insn)
        if swapped is not None:
            yield "swap", "", swapped
        e = detail.encoding
        memory = any(o.type == capstone.x86.X86_OP_MEM for o in detail.operands)
        if memory and not e.disp_size:
            self._skip("a memory operand without a displacement")
        if memory and e.disp_size and insn.text.startswith("nop"):
            self._skip("the displacement of a NOP, which is no address")
        elif memory and e.disp_size:
            for kind, step in (("displacement", 1), ("slot", 8)):
                yield from self._field(insn, kind, e.disp_offset, e.disp_size, step)
        direct = insn.flow in _DIRECT and insn.target is not None
        if e.imm_size and not direct:
            yield from self._field(insn, "immediate", e.imm_offset, e.imm_size, 1)
        if direct:
            yield from self._retarget(insn)
        yield from self._condition(insn)

    def _field(
        self, insn: Insn, kind: str, at: int, size: int, step: int
    ) -> Iterator[tuple[str, str, tuple[tuple[int, bytes], ...]]]:
        old = int.from_bytes(insn.raw[at : at + size], "little", signed=True)
        for new in (old + step, old - step):
            if not -(1 << 8 * size - 1) <= new < 1 << 8 * size - 1:
                self._skip(f"{kind} does not fit its {size} bytes")
                continue
            sign = "+" if new > old else "-"
            raw = insn.raw[:at] + new.to_bytes(size, "little", signed=True) + insn.raw[at + size :]
            # an instruction may have a displacement and an immediate: which, says the kind
            yield kind, f"{sign}{step}", ((insn.va, raw),)

    def _moved(self, insn: Insn, va: int, target: int | None = None) -> bytes | None:
        """The bytes of ``insn`` at ``va``, with the same target, or another; None if it
        cannot be reached from there."""
        detail = next(self._decoder.disasm(insn.raw, insn.va))
        e = detail.encoding
        raw, fields = insn.raw, []
        if insn.flow in _DIRECT and insn.target is not None:
            to = insn.target if target is None else target
            fields.append((e.imm_offset, e.imm_size, to - (va + insn.size)))
        relative = [o for o in detail.operands if o.type == capstone.x86.X86_OP_MEM]
        relative = [o for o in relative if detail.reg_name(o.mem.base) == "rip"]
        fields += [(e.disp_offset, e.disp_size, o.mem.disp + insn.va - va) for o in relative]
        for at, size, value in fields:
            if not -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1:
                return None
            raw = raw[:at] + value.to_bytes(size, "little", signed=True) + raw[at + size :]
        return raw

    def _swap(self, first: Insn) -> tuple[tuple[int, bytes], ...] | None:
        second = self.target.insns.get(first.next)
        if (
            second is None
            or (first.flow in ENDS and first.flow not in RETURNS)
            or not self._in_range(second.va)
        ):
            return None
        if self.target.places.get(second.va, Place(0)) & Place.COMMITTED:
            self._skip("a swap across a commit label, whose address is data of the image")
            return None
        middle = first.va + second.size
        a, b = self._moved(first, middle), self._moved(second, first.va)
        if a is None or b is None:
            self._skip("a swap that brings a branch out of reach")
            return None
        edits = [(first.va, b + a)]
        for branch in self._targets.get(second.va, ()):
            if middle == second.va:
                break
            raw = None if branch in (first, second) else self._moved(branch, branch.va, middle)
            if raw is None:
                self._skip("a swap that brings a branch out of reach")
                return None
            edits.append((branch.va, raw))
        return tuple(edits)

    def _retarget(self, insn: Insn) -> Iterator[tuple[str, str, tuple[tuple[int, bytes], ...]]]:
        target = insn.target or 0
        around = [
            ("+insn", self._neighbour(target, 1)), ("-insn", self._neighbour(target, -1)),
            ("+1", target + 1), ("-1", target - 1),
        ]  # fmt: skip
        for how, to in around:
            raw = self._moved(insn, insn.va, to) if to is not None else None
            if raw is None:
                self._skip("a branch target out of reach")
            else:
                yield "branch", how, ((insn.va, raw),)

    def _neighbour(self, va: int, step: int) -> int | None:
        if step > 0:
            insn = self.target.insns.get(va)
            return insn.next if insn is not None else None
        index = bisect_left(self._order, va) - 1
        return self._order[index] if index >= 0 else None

    def _condition(self, insn: Insn) -> Iterator[tuple[str, str, tuple[tuple[int, bytes], ...]]]:
        raw, at = insn.raw, 0
        while raw[at] in _PREFIXES or raw[at] & 0xF0 == 0x40:
            at += 1
        if raw[at] == 0x0F and raw[at + 1] & 0xF0 in (0x40, 0x80, 0x90):
            at += 1
        elif raw[at] & 0xF0 != 0x70:
            return
        code = raw[at] & 0xF
        for how, new in (("!", code ^ 1), ("=", _STRICT.get(code))):
            if new is not None:
                yield "condition", how, ((insn.va, raw[:at] + bytes([raw[at] ^ code ^ new]) + raw[at + 1 :]),)

    def lift(self, edits: tuple[tuple[int, bytes], ...]) -> Change:
        """What ``edits`` change of the lifted code: all that can be reached in it is lifted
        anew, until known code is met where nothing was changed."""
        changed: dict[int, Insn | None] = {}
        work: list[int] = []
        for va, new in edits:
            start = bisect_right(self._order, va - MAX_INSN)
            for at in self._order[start : bisect_left(self._order, va + len(new))]:
                if self.target.insns[at].next > va:
                    changed[at] = None
                    if at in self._targets or at in self._roots or at <= va:
                        work.append(at)
        while work:
            va = work.pop()
            known = changed.get(va) if va in changed else self.target.insns.get(va)
            if known is not None:
                continue
            insn = self._at(va, edits)
            if insn is None:
                continue
            changed[va] = insn
            if va in self.target.handlers:
                continue
            if insn.target is not None:
                work.append(insn.target)
            if insn.flow not in ENDS or insn.flow in RETURNS:
                work.append(insn.next)
        return Change(changed, {va: self._mark(va) for va, insn in changed.items() if insn is not None})

    def _at(self, va: int, edits: tuple[tuple[int, bytes], ...]) -> Insn | None:
        code = bytearray(self._bytes(va, MAX_INSN))
        if not code:
            return None
        for at, new in edits:
            lo, hi = max(va, at), min(va + len(code), at + len(new))
            if lo < hi:
                code[lo - va : hi - va] = new[lo - at : hi - at]
        key = va, bytes(code)
        if key not in self._lifted:
            if len(self._lifted) > 100_000:
                self._lifted.clear()
            self._lifted[key] = self._lifter.lift(va, bytes(code))
        return self._lifted[key]

    def _mark(self, va: int) -> Place:
        """The marks of new code: those of the text around it, but for a commit label."""
        known = self.target.places.get(va)
        if known is not None:
            return known
        index = bisect_right(self._order, va) - 1
        near = self.target.places.get(self._order[index], Place(0)) if index >= 0 else Place(0)
        return near & ~Place.COMMITTED

    def apply(self, mutants: tuple[Mutant, ...]) -> Target:
        """The target with all of ``mutants`` in it, which must not overlap."""
        edits = tuple(e for m in mutants for e in m.edits)
        change = self.lift(edits)
        insns = {va: i for va, i in (dict(self.target.insns) | dict(change.insns)).items() if i is not None}
        pages = []
        for page in self.target.pages:
            data = bytearray(page.data)
            for va, new in edits:
                lo, hi = max(va, page.base), min(va + len(new), page.base + PAGE)
                if lo < hi:
                    data[lo - page.base : hi - page.base] = new[lo - va : hi - va]
            pages.append(replace(page, data=bytes(data)) if data != page.data else page)
        return replace(
            self.target,
            name=mutants[0].name if len(mutants) == 1 else f"{len(mutants)} mutants",
            insns=MappingProxyType(insns),
            places=MappingProxyType(dict(self.target.places) | dict(change.places)),
            pages=tuple(pages),
        )

    def decoded(self, mutant: Mutant) -> list[Any]:
        """What the mutated bytes decode to, for whoever wants to check."""
        return [d for va, new in mutant.edits for d in self._decoder.disasm(new, va)]
