# SPDX-License-Identifier: GPL-2.0-only
"""A context that a certificate's run meets, and how it follows from the interrupted one."""

from __future__ import annotations

from dataclasses import dataclass, field

from atomicist.native.engine import Emitted, NativeContext, NativeEvent


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """Contexts that differ in RIP and RSP alone: the ``key`` without RSP, the index of
    the ``region`` that RSP lies in.  With the user's RSP (the SYSCALL gap) ``region`` is
    -1, and RSP is part of the key."""

    key: tuple[int, ...]
    region: int
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # it is looked up a million times
        object.__setattr__(self, "_hash", hash((self.key, self.region)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How a context that is met follows from the one interrupted: apart from RIP.

    ``group`` and ``bit``: where it is met if the certificate's own context is interrupted;
    ``sources``: for each value of the group's key the place in the interrupted context's
    that it comes from, None for a constant."""

    group: Group
    bit: int
    sources: tuple[int | None, ...]
    relative: bool
    handler: bool
    known: dict[Group, Group] = field(default_factory=dict)

    def group_for(self, member: Group) -> Group:
        """The group of the context, where a member of the certificate is interrupted."""
        found = self.known.get(member)
        if found is None:
            found = self.known[member] = self._group_for(member)
        return found

    def _group_for(self, member: Group) -> Group:
        key = tuple(
            value if source is None else member.key[source]
            for value, source in zip(self.group.key, self.sources, strict=False)
        )
        return Group(key + self.group.key[len(key) :], self.group.region)


@dataclass(frozen=True, slots=True)
class Met:
    """A context that a certificate's run passes through: the number of it in ``emitted``."""

    way: Way
    rip: int
    emitted: Emitted
    index: int

    @property
    def context(self) -> NativeContext:
        """With the events that lead to it."""
        return self.emitted[self.index]


@dataclass(frozen=True, slots=True)
class Leg:
    """The events of one certificate, the instructions behind the last of them, and how
    many more bytes of stack the handler had used where the leg ends."""

    events: tuple[NativeEvent, ...]
    steps: int
    depth: int = 0


def bits(flags: bytes) -> int:
    """One bit for each byte of ``flags`` that is not zero."""
    return int(bytes(flags[::-1]).translate(_DIGITS).decode(), 2) if flags else 0


def all_below(words: int) -> int:
    """All words up to the highest of ``words``."""
    return (1 << words.bit_length()) - 1


_DIGITS = bytes([0x30]) + bytes([0x31]) * 255
