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

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from atomicist.isa.predictions import EXPOSED_VALUES
from atomicist.isa.registers import REGISTERS
from atomicist.machine.memory import WORD, Region
from atomicist.machine.target import Target
from atomicist.native.engine import NativeContext, NativeResult
from atomicist.native.tables import CR3_USER_PCID, KEY_SLOTS
from atomicist.search.met import Group, Leg, Met, Way, all_below, bits
from atomicist.spec.contexts import Context, from_key

_KEY = tuple(REGISTERS[name].slot for name in KEY_SLOTS if name != "RSP")
_RSP, _RIP, _CS = (REGISTERS[name].slot for name in ("RSP", "RIP", "CS"))
_AT_RSP = KEY_SLOTS.index("RSP")


@dataclass(frozen=True, slots=True)
class Origin:
    """How a context is reached: from the start context ``name`` by ``legs``."""

    name: str
    legs: tuple[Leg, ...] = ()


@dataclass(slots=True)
class _Followed:
    """How far a certificate was followed for one group."""

    members: int = 0
    changes: int = 0


@dataclass(slots=True)
class _Certificate:
    group: Group
    values: tuple[frozenset[int], ...]
    rips: frozenset[int]
    rsps: int
    bit: int
    met: dict[Way, list[Met]]
    followed: dict[Group, _Followed] = field(default_factory=dict)
    asked: int = 0
    """Of all groups, in the order in which they became known, those that were tried."""

    def holds_for(self, group: Group) -> bool:
        """Whether the certificate can hold for contexts of ``group``."""
        return group.region == self.group.region and all(
            there == here or there in values
            for there, here, values in zip(group.key, self.group.key, self.values, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """Why words were added to a set: a start context, or the members of a certificate."""

    name: str = ""
    certificate: _Certificate | None = None
    met: Met | None = None
    group: Group | None = None
    members: int = 0


@dataclass(frozen=True, slots=True)
class _Added:
    """Words that were new to a set, when, and why they were added."""

    time: int
    words: int
    source: _Source


@dataclass(slots=True)
class _Set:
    words: int = 0
    covered: int = 0
    sources: list[_Added] = field(default_factory=list)


@dataclass(slots=True)
class _Sets:
    """The sets of one group by RIP; ``changes``: the RIP of whatever was added to them, in order."""

    by_rip: defaultdict[int, _Set] = field(default_factory=lambda: defaultdict(_Set))
    changes: list[int] = field(default_factory=list)


class Reach:
    """Sets of contexts that are met, and what certificates cover of them."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._index = {va: i for i, va in enumerate(sorted(target.insns))}
        self._sets: defaultdict[Group, _Sets] = defaultdict(_Sets)
        self._shapes: dict[bytes, tuple[Way, int]] = {}
        self._ways: dict[tuple[Group, int, tuple[int | None, ...], bool, bool], Way] = {}
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
        of GSBASE may move to KERNEL_GSBASE and back, the kernel's CR3 is made of the user's, and
        EXPOSED is set on the way.  Of RSP those of the SYSCALL gap."""
        values = {n: {c.registers[REGISTERS[n].slot] for c in start} for n in KEY_SLOTS}
        values["GSBASE"] = values["KERNEL_GSBASE"] = values["GSBASE"] | values["KERNEL_GSBASE"]
        if self._target.user_root_bit:
            # the kernel's, where a context has the user's
            user = self._target.user_root_bit | CR3_USER_PCID
            values["CR3"] |= {cr3 & ~user for cr3 in values["CR3"]}
        if self._target.mitigation != "none":
            values["EXPOSED"] |= set(EXPOSED_VALUES)
        values["RSP"] = {c.registers[_RSP] for c in start if c.no_stack}
        return [sorted(values[n]) for n in KEY_SLOTS]

    def begin(self, context: Context) -> bool:
        """Add a start context. False if it is of a kind that is certified alone."""
        located = self._locate(context)
        if located is None or context.registers[_RIP] not in self._index:
            return False
        rip = context.registers[_RIP]
        self._given[located[0], rip, located[1]] = context
        self._add(located[0], rip, 1 << located[1], _Source(context.name))
        return True

    def _add(self, group: Group, rip: int, words: int, source: _Source) -> bool:
        sets = self._sets[group]
        known = sets.by_rip[rip]
        added = words & ~known.words
        if not added:
            return False
        self._time += 1
        sets.changes.append(rip)
        known.words |= added
        known.sources.append(_Added(self._time, added, source))
        return True

    def certified(
        self,
        context: Context,
        results: Sequence[NativeResult],
        *,
        sound: bool,
        others: Sequence[Context] = (),
    ) -> None:
        """Note a certificate: what it holds for, and what its runs pass through.

        Without ``sound`` (it has findings) it covers its own context and leads nowhere.
        ``others``: contexts without a set of their own that it was found to hold for."""
        located = self._locate(context)
        met = self._met(results)
        for other in others:
            self._spread_other(met, context, other)
        if located is None:
            self._spread_alone(met, context.name)
            return
        group, bit = located
        rip = context.registers[_RIP]
        own = frozenset({rip} & self._index.keys())
        values = [
            frozenset.intersection(*columns) for columns in zip(*(r.covers_key for r in results), strict=True)
        ]
        own_rsps = values.pop(_AT_RSP)
        rsps = -1
        for r in results:
            rsps &= bits(r.covers_rsp)
        flags = zip(*(r.covers for r in results), strict=True)
        rips = frozenset(va for va, some in zip(self._index, flags, strict=False) if all(some))
        if not sound:
            rips, rsps, met, values = own, 1 << bit, {}, [frozenset() for _ in values]
            own_rsps = frozenset()
        if group.region < 0:
            rsps = 1
            values.append(own_rsps if context.no_stack else frozenset())
        self._certificates.append(_Certificate(group, tuple(values), rips | own, rsps | 1 << bit, bit, met))
        if not own:
            self._spread_alone(met, context.name)

    def _met(self, results: Sequence[NativeResult]) -> dict[Way, list[Met]]:
        """The different contexts that ``results`` met, those that follow in the same way together."""
        met: dict[Way, list[Met]] = {}
        seen: set[bytes] = set()
        for emitted in (r.emitted for r in results):
            for index, shape in enumerate(emitted.shapes()):
                if shape in seen:
                    continue
                seen.add(shape)
                known = self._shapes.get(shape)
                if known is None:
                    known = self._shapes[shape] = self._way(emitted[index])
                way, rip = known
                met.setdefault(way, []).append(Met(way, rip, emitted, index))
        return met

    def _way(self, e: NativeContext) -> tuple[Way, int]:
        place = self._place(e.key[_AT_RSP])
        key = tuple(v for i, v in enumerate(e.key) if i != _AT_RSP)
        sources = tuple(
            None if s is None else s - (s > _AT_RSP) for i, s in enumerate(e.source) if i != _AT_RSP
        )
        if place is None:
            if e.relative:
                self.unplaced = (
                    self.unplaced or f"RSP leaves the known stacks at {self._target.symbolize(e.rip)}"
                )
            group, bit = Group((*key, e.key[_AT_RSP]), -1), 0
        else:
            group, bit = Group(key, place[0]), place[1]
        same = group, bit, sources, e.relative, e.handler
        way = self._ways.get(same)
        if way is None:
            way = self._ways[same] = Way(*same)
        return way, e.rip

    def _spread_alone(self, met: dict[Way, list[Met]], name: str) -> None:
        """What follows from a context that belongs to no group."""
        for way, some in met.items():
            words = all_below(1 << way.bit) if way.handler and way.group.region >= 0 else 1 << way.bit
            for m in some:
                self._add(way.group, m.rip, words, _Source(name, None, m, way.group, 1))

    def _spread_other(self, met: dict[Way, list[Met]], context: Context, other: Context) -> None:
        """What follows from ``other``, for which the certificate of ``context`` holds."""
        member = Group(tuple(other.registers[s] for s in _KEY), -1)
        shift = (other.registers[_RSP] - context.registers[_RSP]) // WORD
        for way, some in met.items():
            where = way.group_for(member)
            bit = way.bit + (shift if way.relative and where.region >= 0 else 0)
            words = all_below(1 << bit) if way.handler and where.region >= 0 else 1 << bit
            for m in some:
                self._add(where, m.rip, words, _Source(other.name, None, m, where, 1))

    def spread(self) -> None:
        """Follow all certificates until no context is met that was not met before."""
        changed = True
        while changed:
            changed = False
            for certificate in self._certificates:
                if certificate.asked < len(self._sets):
                    new = list(self._sets)[certificate.asked :]
                    certificate.asked = len(self._sets)
                    certificate.followed |= {g: _Followed() for g in new if certificate.holds_for(g)}
                for group, followed in certificate.followed.items():
                    changed |= self._follow(group, certificate, followed)

    def _follow(self, group: Group, certificate: _Certificate, followed: _Followed) -> bool:
        sets = self._sets[group]
        seen, followed.changes = followed.changes, len(sets.changes)
        if seen == followed.changes:
            return False
        members = 0
        for rip in certificate.rips.intersection(sets.changes[seen:]):
            known = sets.by_rip[rip]
            known.covered |= certificate.rsps
            members |= known.words
        members &= certificate.rsps
        # what follows from the others is known already
        new = members & ~followed.members
        if not new:
            return False
        followed.members |= new
        changed = False
        for way, some in certificate.met.items():
            where = way.group_for(group)
            words = 1 << way.bit
            if way.relative and certificate.group.region >= 0:
                shift = way.bit - certificate.bit
                words = new << shift if shift >= 0 else new >> -shift
            if way.handler and where.region >= 0:
                words = all_below(words)
            changed |= self._add_all(where, some, words, certificate, group, new)
        return changed

    def _add_all(
        self,
        where: Group,
        some: list[Met],
        words: int,
        certificate: _Certificate,
        group: Group,
        members: int,
    ) -> bool:
        sets = self._sets[where]
        changed = False
        for m in some:
            known = sets.by_rip.get(m.rip)
            if known is None or words & ~known.words:
                changed |= self._add(where, m.rip, words, _Source("", certificate, m, group, members))
        return changed

    def uncovered(self) -> list[tuple[Context, Origin]]:
        """For each stack, one context that no certificate covers; the certificate for it
        will often cover those of other groups, so they wait."""
        chosen: dict[int, tuple[Context, Origin]] = {}
        for group, sets in sorted(self._sets.items(), key=lambda item: item[0]):
            if group.region in chosen:
                continue
            for rip, known in sorted(sets.by_rip.items(), key=lambda item: item[0]):
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
        for added in self._sets[group].by_rip[rip].sources:
            if added.time < before and added.words >> bit & 1:
                break
        else:
            raise LookupError(f"no origin for {rip:#x}")
        source = added.source
        if source.met is None:
            return Origin(source.name)
        way, context, certificate = source.met.way, source.met.context, source.certificate
        if certificate is None:
            return Origin(source.name, (Leg(context.events, context.steps, WORD * (way.bit - bit)),))
        shift = way.bit - certificate.bit if way.relative else 0
        for member in range(source.members.bit_length()):
            end = member + shift if way.relative else way.bit
            if source.members >> member & 1 and (end == bit or (way.handler and end > bit)):
                break
        else:
            raise LookupError(f"no member leads to {rip:#x}")
        came = self._member_origin(certificate, source.group or way.group, member, added.time)
        return Origin(came.name, (*came.legs, Leg(context.events, context.steps, WORD * (end - bit))))

    def _member_origin(self, certificate: _Certificate, group: Group, bit: int, before: int) -> Origin:
        for rip, known in sorted(self._sets[group].by_rip.items(), key=lambda item: item[0]):
            if rip in certificate.rips and any(s.words >> bit & 1 and s.time < before for s in known.sources):
                return self._origin(group, rip, bit, before)
        raise LookupError("a member without origin")

    def by_rip(self) -> dict[int, int]:
        """For each instruction, how many contexts were met at it."""
        met: dict[int, int] = {}
        for sets in self._sets.values():
            for rip, known in sets.by_rip.items():
                met[rip] = met.get(rip, 0) + known.words.bit_count()
        return met

    def size(self) -> int:
        """How many contexts were met."""
        return sum(known.words.bit_count() for sets in self._sets.values() for known in sets.by_rip.values())
