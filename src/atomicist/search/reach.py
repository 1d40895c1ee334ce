# SPDX-License-Identifier: GPL-2.0-only
"""Which contexts can be met, and which of them are covered, as sets of stack words.

Contexts with the same key, on the same stack, at the same instruction differ in RSP
alone; such a set is kept as one integer with a bit for each 8-byte word of the stack.
A certificate says for which RIPs, RSPs and key values it holds and which contexts a run
from its representative passes through; for another RSP that it holds for, these move
along with RSP (``relative``) or stay where they are, and a key register is a constant or
one of the interrupted context.  `Reach.spread` follows that until
nothing new is met: a fixed point over sets, not over single contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from atomicist.isa.registers import REGISTERS
from atomicist.machine.memory import WORD, Region
from atomicist.machine.target import Target
from atomicist.native.engine import NativeContext, NativeEvent, NativeResult
from atomicist.native.tables import KEY_SLOTS
from atomicist.spec.contexts import Context, from_key

_KEY = tuple(REGISTERS[name].slot for name in KEY_SLOTS if name != "RSP")
_RSP, _RIP, _CS = (REGISTERS[name].slot for name in ("RSP", "RIP", "CS"))
_AT_RSP = KEY_SLOTS.index("RSP")


@dataclass(frozen=True, slots=True)
class Leg:
    """The events of one certificate, the instructions behind the last of them, and how
    many more bytes of stack the handler had used where the leg ends."""

    events: tuple[NativeEvent, ...]
    steps: int
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Origin:
    """How a context is reached: from the start context ``name`` by ``legs``."""

    name: str
    legs: tuple[Leg, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """Contexts that differ in RIP and RSP alone: the ``key`` without RSP, the index of
    the ``region`` that RSP lies in.  With the user's RSP (the SYSCALL gap) ``region`` is
    -1, and RSP is part of the key."""

    key: tuple[int, ...]
    region: int


@dataclass(frozen=True, slots=True)
class _Met:
    """Contexts that one certificate's run passes through."""

    group: Group
    rip: int
    bit: int
    context: NativeContext

    def group_for(self, member: Group) -> Group:
        """The group of the context, where a member of the certificate is interrupted."""
        sources = [s for i, s in enumerate(self.context.source) if i != _AT_RSP]
        key = tuple(
            value if source is None else member.key[source - (source > _AT_RSP)]
            for value, source in zip(self.group.key, sources, strict=False)
        )
        return Group(key + self.group.key[len(key) :], self.group.region)


@dataclass(slots=True)
class _Certificate:
    group: Group
    values: tuple[frozenset[int], ...]
    rips: int
    rsps: int
    bit: int
    met: tuple[_Met, ...]
    members: dict[Group, int] = field(default_factory=dict)

    def holds_for(self, group: Group) -> bool:
        """Whether the certificate can hold for contexts of ``group``."""
        return group.region == self.group.region and all(
            there == here or there in values
            for there, here, values in zip(group.key, self.group.key, self.values, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """Why words were added to a set: a start context, or the members of a certificate."""

    time: int
    added: int
    name: str = ""
    certificate: _Certificate | None = None
    met: _Met | None = None
    group: Group | None = None
    members: int = 0


@dataclass(slots=True)
class _Set:
    words: int = 0
    covered: int = 0
    sources: list[_Source] = field(default_factory=list)


class Reach:
    """Sets of contexts that are met, and what certificates cover of them."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._index = {va: i for i, va in enumerate(sorted(target.insns))}
        self._sets: dict[Group, dict[int, _Set]] = {}
        self._certificates: list[_Certificate] = []
        self._time = 0
        self.unplaced = ""
        """Why the sets are not complete, if they are not."""
        self._given: dict[tuple[Group, int, int], Context] = {}

    def _place(self, rsp: int) -> tuple[int, int] | None:
        """Index of the region that holds ``rsp``, and the word in it."""
        for i, region in enumerate(self._target.regions):
            if region.holds(rsp) and rsp % WORD == 0:
                return i, (rsp - region.bottom) // WORD
        return None

    def _locate(self, context: Context) -> tuple[Group, int] | None:
        r = context.registers
        if context.no_stack:
            return Group((*(r[s] for s in _KEY), r[_RSP]), -1), 0
        if context.expect_df or r[_CS] & 3:
            return None
        place = self._place(r[_RSP])
        if place is None:
            return Group((*(r[s] for s in _KEY), r[_RSP]), -1), 0
        return Group(tuple(r[s] for s in _KEY), place[0]), place[1]

    def key_values(self, start: Sequence[Context]) -> list[list[int]]:
        """For each register of `KEY_SLOTS`, all values that start contexts have; a value
        of GSBASE may move to KERNEL_GSBASE and back."""
        values = {n: {c.registers[REGISTERS[n].slot] for c in start} for n in KEY_SLOTS}
        values["GSBASE"] = values["KERNEL_GSBASE"] = values["GSBASE"] | values["KERNEL_GSBASE"]
        return [sorted(values[n]) if n != "RSP" else [] for n in KEY_SLOTS]

    def begin(self, context: Context) -> bool:
        """Add a start context. False if it is of a kind that is certified alone."""
        located = self._locate(context)
        if located is None or context.registers[_RIP] not in self._index:
            return False
        rip = context.registers[_RIP]
        self._given[located[0], rip, located[1]] = context
        self._add(located[0], rip, 1 << located[1], _Source(0, 0, context.name))
        return True

    def _add(self, group: Group, rip: int, words: int, source: _Source) -> bool:
        known = self._sets.setdefault(group, {}).setdefault(rip, _Set())
        added = words & ~known.words
        if not added:
            return False
        self._time += 1
        known.words |= added
        known.sources.append(
            _Source(
                self._time, added, source.name, source.certificate, source.met, source.group, source.members
            )
        )
        return True

    def certified(self, context: Context, results: Sequence[NativeResult], *, sound: bool) -> None:
        """Note a certificate: what it holds for, and what its runs pass through.

        Without ``sound`` (it has findings) it covers its own context and leads nowhere."""
        located = self._locate(context)
        different = {(e.key, e.source, e.rip, e.relative, e.handler): e for r in results for e in r.emitted}
        met = [self._met(e) for e in different.values()]
        if located is None:
            for m in met:
                self._spread_one(None, m, m.group, 1, context.name)
            return
        group, bit = located
        own = 1 << self._index[context.registers[_RIP]] if context.registers[_RIP] in self._index else 0
        rips, rsps = -1, -1
        values = [
            frozenset.intersection(*columns) for columns in zip(*(r.covers_key for r in results), strict=True)
        ]
        del values[_AT_RSP]
        for r in results:
            rips &= _bits(r.covers)
            rsps &= _bits(r.covers_rsp)
        if not sound:
            rips, rsps, met, values = own, 1 << bit, [], [frozenset() for _ in values]
        if group.region < 0:
            rsps = 1
            values.append(frozenset())
        self._certificates.append(
            _Certificate(group, tuple(values), rips | own, rsps | 1 << bit, bit, tuple(met))
        )
        if not own:
            for m in met:
                self._spread_one(None, m, m.group, 1, context.name)

    def _met(self, e: NativeContext) -> _Met:
        place = self._place(e.key[_AT_RSP])
        key = tuple(v for i, v in enumerate(e.key) if i != _AT_RSP)
        if place is None:
            if e.relative:
                self.unplaced = (
                    self.unplaced or f"RSP leaves the known stacks at {self._target.symbolize(e.rip)}"
                )
            return _Met(Group((*key, e.key[_AT_RSP]), -1), e.rip, 0, e)
        return _Met(Group(key, place[0]), e.rip, place[1], e)

    def _spread_one(
        self, certificate: _Certificate | None, m: _Met, group: Group, members: int, name: str = ""
    ) -> bool:
        words = 1 << m.bit
        where = m.group
        if certificate is not None:
            where = m.group_for(group)
            if m.context.relative and certificate.group.region >= 0:
                shift = m.bit - certificate.bit
                words = members << shift if shift >= 0 else members >> -shift
        if m.context.handler and where.region >= 0:
            words = (1 << words.bit_length()) - 1
        return self._add(where, m.rip, words, _Source(0, 0, name, certificate, m, group, members))

    def spread(self) -> None:
        """Follow all certificates until no context is met that was not met before."""
        changed = True
        while changed:
            changed = False
            for certificate in self._certificates:
                for group in sorted(self._sets):
                    if certificate.holds_for(group):
                        changed |= self._follow(group, certificate)

    def _follow(self, group: Group, certificate: _Certificate) -> bool:
        members = 0
        for rip, known in self._sets[group].items():
            if certificate.rips >> self._index[rip] & 1:
                known.covered |= certificate.rsps
                members |= known.words & certificate.rsps
        if members == certificate.members.get(group, 0):
            return False
        certificate.members[group] = members
        changed = [self._spread_one(certificate, m, group, members) for m in certificate.met]
        return any(changed)

    def uncovered(self) -> list[tuple[Context, Origin]]:
        """For each stack, one context that no certificate covers; the certificate for it
        will often cover those of other groups, so they wait."""
        chosen: dict[int, tuple[Context, Origin]] = {}
        for group, sets in sorted(self._sets.items(), key=lambda item: item[0]):
            if group.region in chosen:
                continue
            for rip, known in sorted(sets.items(), key=lambda item: item[0]):
                left = known.words & ~known.covered
                if left:
                    bit = left.bit_length() - 1
                    origin = self._origin(group, rip, bit, self._time + 1)
                    chosen[group.region] = (self._context(group, rip, bit), origin)
                    break
        return list(chosen.values())

    def _region(self, group: Group) -> Region:
        return self._target.regions[group.region]

    def _context(self, group: Group, rip: int, bit: int) -> Context:
        given = self._given.get((group, rip, bit))
        if given is not None:
            return given
        if group.region < 0:
            values, rsp = list(group.key[:-1]), group.key[-1]
        else:
            values, rsp = list(group.key), self._region(group).bottom + WORD * bit
        values.insert(_AT_RSP, rsp)
        name = f"met-{self._target.symbolize(rip)}-{rsp:#x}"
        return from_key(self._target, name, dict(zip(KEY_SLOTS, values, strict=True)), rip)

    def _origin(self, group: Group, rip: int, bit: int, before: int) -> Origin:
        """A way to the context, back through the sources that were there ``before``."""
        for source in self._sets[group][rip].sources:
            if source.time < before and source.added >> bit & 1:
                break
        else:
            raise LookupError(f"no origin for {rip:#x}")
        if source.met is None:
            return Origin(source.name)
        m, certificate = source.met, source.certificate
        if certificate is None:
            return Origin(source.name, (Leg(m.context.events, m.context.steps, WORD * (m.bit - bit)),))
        shift = m.bit - certificate.bit if m.context.relative else 0
        for member in range(source.members.bit_length()):
            end = member + shift if m.context.relative else m.bit
            if source.members >> member & 1 and (end == bit or (m.context.handler and end > bit)):
                break
        else:
            raise LookupError(f"no member leads to {rip:#x}")
        came = self._member_origin(certificate, source.group or m.group, member, source.time)
        return Origin(came.name, (*came.legs, Leg(m.context.events, m.context.steps, WORD * (end - bit))))

    def _member_origin(self, certificate: _Certificate, group: Group, bit: int, before: int) -> Origin:
        for rip, known in sorted(self._sets[group].items(), key=lambda item: item[0]):
            if certificate.rips >> self._index[rip] & 1 and any(
                s.added >> bit & 1 and s.time < before for s in known.sources
            ):
                return self._origin(group, rip, bit, before)
        raise LookupError("a member without origin")

    def size(self) -> int:
        """How many contexts were met."""
        return sum(known.words.bit_count() for sets in self._sets.values() for known in sets.values())


def _bits(flags: bytes) -> int:
    """One bit for each byte of ``flags`` that is not zero."""
    return int(bytes(flags[::-1]).translate(_DIGITS).decode(), 2) if flags else 0


_DIGITS = bytes([0x30]) + bytes([0x31]) * 255
