# SPDX-License-Identifier: GPL-2.0-only
"""Loads the C runtime and gives it a target; results come back as data.

The runtime executes the IR tables it is given, so a new image needs no
compiler; only `codegen` (for enumeration at full speed) does.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from atomicist.isa.delivery import VECTORS, deliver
from atomicist.isa.ir import Flow, Op, Var
from atomicist.isa.registers import REGISTERS, SLOTS
from atomicist.machine.target import Target
from atomicist.native import layout
from atomicist.native.build import runtime_sources, shared_object
from atomicist.native.tables import CODE_NUMBER, FREE_SLOTS, KEY_SLOTS, render

UNITS = ("runtime.c",)
FLAGS = ("-O3",)
FLOWS = tuple(Flow)
MAX_STACK_WORDS = 4096
MAX_CANDIDATES = 32
_KEY_INDEX = {REGISTERS[name].slot: i for i, name in enumerate(KEY_SLOTS)}


@dataclass(frozen=True, slots=True)
class NativeEvent:
    """``vector`` was delivered ``steps`` instructions after the event before, at ``rip``."""

    vector: int
    steps: int
    rip: int


@dataclass(frozen=True, slots=True)
class NativeFinding:
    """A violation as the runtime saw it; ``register`` is a slot, `SLOTS` for none."""

    property: int
    events: tuple[NativeEvent, ...]
    rip: int
    address: int
    register: int
    expected: int
    found: int
    text: str


@dataclass(frozen=True, slots=True)
class NativeContext:
    """A context met after a commit: ``key`` (values of `KEY_SLOTS`), ``rip``, and how
    it was reached: ``events``, then ``steps`` instructions.  ``relative``: its RSP
    moves with the interrupted one; ``handler``: it is inside a handler, which may
    have used any more of the stack.  ``source`` gives for each key register the one
    (index in `KEY_SLOTS`) of the interrupted context that it comes from, None for a
    constant."""

    key: tuple[int, ...]
    source: tuple[int | None, ...]
    rip: int
    relative: bool
    handler: bool
    events: tuple[NativeEvent, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class Emitted:
    """Contexts that were met, as the runtime wrote them down: a certificate meets hundreds,
    nearly all of them as another one did, so that they are read when they are asked for.

    ``shapes`` has for each what tells it from others: all but how it was reached."""

    records: bytes

    def __len__(self) -> int:
        return len(self.records) // _RECORD

    def __iter__(self) -> Iterator[NativeContext]:
        return map(self.__getitem__, range(len(self)))

    def shapes(self) -> Iterator[bytes]:
        """For each context, bytes that are equal where ``key``, ``source``, ``rip``, ``relative``
        and ``handler`` are."""
        return (self.records[at : at + _SHAPE] for at in range(0, len(self.records), _RECORD))

    def __getitem__(self, index: int) -> NativeContext:
        e = layout.CEmitted.from_buffer_copy(self.records, index * _RECORD)
        source = tuple(_KEY_INDEX.get(slot) for slot in e.source)
        return NativeContext(
            tuple(e.r),
            source,
            e.rip,
            bool(e.relative),
            bool(e.handler),
            _events(e.events, e.nevents),
            e.steps,
        )


_REFUSES: Final = 6
"""REFUSES of the runtime's enum status."""

_RECORD: Final = c.sizeof(layout.CEmitted)
_SHAPE: Final = layout.CEmitted.nevents.offset
"""There is no padding before it."""


@dataclass(frozen=True, slots=True)
class NativeResult:
    """What one call of the runtime did and found.

    ``dependence`` is (place, address) of the first thing a certificate rested on
    that it may not rest on, None if there is none; ``overflow``: a table of the
    search was too small, the result is not complete."""

    findings: tuple[NativeFinding, ...]
    emitted: Emitted
    covers: bytes
    covers_rsp: bytes
    covers_key: tuple[frozenset[int], ...]
    guest_insns: int
    interleavings: int
    executed: int
    boundaries: int
    hits: int
    misses: int
    worst_commit: int
    lowest_main: int
    overflow: int
    dependence: tuple[int, int] | None
    injected: tuple[bytes, bytes] = (b"", b"")
    """For each instruction by address, and each event, how often it was delivered there one by
    one, and how often a certificate tried it there, by a class that it belongs to or one by one:
    64-bit numbers, little-endian."""
    cells: tuple[tuple[tuple[int, bool], ...] | None, ...] = ()
    """For each of `FREE_SLOTS`, of a context in user mode or with the user's RSP: the cells that
    its values fall into, as (first value, whether the result holds there), in order; None if they
    cannot be told."""
    holds: tuple[bool, ...] = ()
    """For each context that was asked for: whether the result is known to hold for it too."""
    ends: tuple[int, int] = (0, 0)
    """Of a certificate: a digest of all that is left behind at commits and deliberate double faults,
    each counted once, whatever led to it, by value, for the context that was certified; and one of
    the reasons of the double faults."""


class Engine:
    """The native runtime, loaded with one target. Use as a context manager."""

    def __init__(
        self,
        target: Target,
        properties: Mapping[str, int],
        events: Sequence[str],
        error_token: int,
        max_steps: int,
    ) -> None:
        """Raises `native.build.BuildError` if there is no working compiler."""
        sources = runtime_sources() | {"tables.h": render(properties, events, error_token)}
        self._lib = c.CDLL(str(shared_object(sources, UNITS, FLAGS)))
        self._lib.atomicist_new.restype = c.c_void_p
        for name in (
            "findings", "emitted", "covers", "covers_rsp", "covers_key", "free_registers", "ran", "delivered",
            "offered",
        ):  # fmt: skip
            getattr(self._lib, f"atomicist_{name}").restype = c.c_void_p
        self._texts: list[str] = [""]
        self._candidates: list[tuple[int, ...]] = [() for _ in KEY_SLOTS]
        self._order = sorted(target.insns)
        self._events = len(events)
        self._image = self._make_image(target, events, max_steps)
        self._search = c.c_void_p(self._lib.atomicist_new(c.byref(self._image)))
        if self._search.value is None:
            raise MemoryError("the native runtime could not allocate its tables")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the runtime's memory."""
        if self._search.value is not None:
            self._lib.atomicist_free(self._search)
            self._search = c.c_void_p()

    def certify(
        self,
        registers: Sequence[int],
        vector: int,
        *,
        expect_df: bool,
        no_stack: bool,
        brute: bool = False,
        checked: bool = False,
        others: Sequence[Sequence[int]] = (),
    ) -> NativeResult:
        """All nestings inside the atomic entry from one context, ``vector`` first.

        ``others``: contexts that are asked for in ``NativeResult.holds``.

        For tests: ``brute`` walks each of them, ``checked`` asks of each class that is met
        again whether all of it holds, not only what has changed (``overflow``: it does not)."""
        status = self._lib.atomicist_certify(
            self._search,
            layout.Registers(*registers),
            vector,
            int(expect_df),
            int(no_stack),
            2 if checked else int(brute),
        )
        free = no_stack or registers[REGISTERS["CS"].slot] & 3
        result = self._result(tuple(self._cells()) if free else ())
        if status and not result.findings and not result.overflow:
            raise AssertionError(f"the runtime ended with status {status}, and does not say why")
        if status or not others:
            return result
        holds = tuple(
            bool(self._lib.atomicist_holds(self._search, layout.Registers(*some))) for some in others
        )
        return replace(result, holds=holds)

    def enumerate(
        self, registers: Sequence[int], *, budget: int, offered: int, first: int, expect_df: bool = False,
        no_stack: bool = False, stop: int = 0, limit: int = 0, run: c.c_void_p | None = None,
    ) -> NativeResult:  # fmt: skip
        """Every schedule of at most ``budget`` events; ``offered`` and ``first`` are bit
        sets of vectors; ``stop`` ends after that many findings (0: never), ``limit`` after
        that many schedules, with ``overflow`` set; ``run`` is the `codegen.Compiled`
        target's address.  ``hits`` and ``misses`` count committed states that were met
        again and that were new."""
        self._lib.atomicist_enumerate(
            self._search, layout.Registers(*registers), budget, offered, first, int(expect_df), int(no_stack),
            stop, c.c_uint64(limit), run,
        )  # fmt: skip
        return self._result()

    def follow(
        self, registers: Sequence[int], events: Sequence[tuple[int, int]], *, expect_df: bool = False,
        no_stack: bool = False, run: c.c_void_p | None = None,
    ) -> int | None:  # fmt: skip
        """One schedule, each event by its number and the steps since the event before (a handler is one
        step), with nothing merged: the property it violates, 0 if none.  None if an event cannot be
        delivered when it is due; ``run`` as for `enumerate`."""
        table = (layout.CEvent * len(events))(*(layout.CEvent(*event) for event in events))
        status = self._lib.atomicist_follow(
            self._search, layout.Registers(*registers), int(expect_df), int(no_stack), table, len(events), run
        )
        found = self._result()
        if found.overflow:
            raise AssertionError(f"the runtime stopped in line {found.overflow}")
        if status == _REFUSES:
            return None
        return found.findings[0].property if found.findings else 0

    def _cells(self) -> Iterator[tuple[tuple[int, bool], ...] | None]:
        table = c.cast(self._lib.atomicist_free_registers(self._search), c.POINTER(layout.CFree))
        for i in range(len(FREE_SLOTS)):
            f = table[i]
            yield None if f.unknown else tuple(sorted((f.value[k], bool(f.holds[k])) for k in range(f.n)))

    def _result(self, cells: tuple[tuple[tuple[int, bool], ...] | None, ...] = ()) -> NativeResult:
        t = layout.CTotals()
        self._lib.atomicist_totals(self._search, c.byref(t))
        broken = None if t.broken_slot == SLOTS else (int(t.broken_slot), int(t.broken_where))
        covers = c.string_at(self._lib.atomicist_covers(self._search), len(self._order))
        covers_rsp = c.string_at(self._lib.atomicist_covers_rsp(self._search), MAX_STACK_WORDS)
        emitted = Emitted(c.string_at(self._lib.atomicist_emitted(self._search), int(t.emitted) * _RECORD))
        return NativeResult(
            tuple(self._findings(int(t.findings))), emitted, covers, covers_rsp,
            self._covered_values(), t.guest_insns, t.interleavings, t.executed, t.boundaries, t.hits,
            t.misses, t.worst_commit, t.lowest_main, int(t.overflow), broken, self._injected(), cells,
            ends=(int(t.ends), int(t.told)),
        )  # fmt: skip

    def _injected(self) -> tuple[bytes, bytes]:
        size = 8 * len(self._order) * self._events
        return (
            c.string_at(self._lib.atomicist_delivered(self._search), size),
            c.string_at(self._lib.atomicist_offered(self._search), size),
        )

    def ran(self) -> bytes:
        """For each instruction by address: bit 0 it was executed (without compiled code) since
        the last call, bit 1 it went on behind itself, bit 2 elsewhere."""
        flags = c.string_at(self._lib.atomicist_ran(self._search), len(self._order))
        self._lib.atomicist_forget_ran(self._search)
        return flags

    def candidates(self, values: Sequence[Sequence[int]]) -> None:
        """For each key register, the values that certificates are to be tried for."""
        self._candidates = [tuple(v[:MAX_CANDIDATES]) for v in values]
        for i, some in enumerate(self._candidates):
            self._lib.atomicist_candidates(self._search, i, (c.c_uint64 * len(some))(*some), len(some))

    def _covered_values(self) -> tuple[frozenset[int], ...]:
        flags = c.string_at(self._lib.atomicist_covers_key(self._search), len(KEY_SLOTS) * MAX_CANDIDATES)
        return tuple(
            frozenset(v for k, v in enumerate(values) if flags[i * MAX_CANDIDATES + k])
            for i, values in enumerate(self._candidates)
        )

    def _findings(self, count: int) -> Iterator[NativeFinding]:
        table = c.cast(self._lib.atomicist_findings(self._search), c.POINTER(layout.CFinding))
        for i in range(count):
            f = table[i]
            yield NativeFinding(
                f.property, _events(f.events, f.nevents), f.rip, f.address, f.reg, f.expected, f.found,
                self._texts[f.text],
            )  # fmt: skip

    def _make_image(self, target: Target, events: Sequence[str], max_steps: int) -> layout.CImage:
        ops: list[Op] = []
        insns = (layout.CInsn * len(self._order))()
        vectors = {name: i for i, name in enumerate(events)}
        for i, va in enumerate(self._order):
            insn = target.insns[va]
            handler = vectors[target.handlers[va]] + 1 if target.handlers.get(va) in vectors else 0
            flow = FLOWS.index(insn.flow)
            insns[i] = layout.CInsn(
                va, len(ops), len(insn.ops), insn.size, flow, int(target.places.get(va, 0)), handler
            )
            ops += insn.ops
        gates = (layout.CGate * len(events))()
        for i, name in enumerate(events):
            gate = target.gates.get(name)
            if gate is not None:
                microcode = deliver(gate)
                gates[i] = layout.CGate(len(ops), len(microcode), VECTORS[name].number, 1)
                ops += microcode
        pages = (layout.CPage * len(target.pages))()
        for i, page in enumerate(target.pages):
            pages[i].base, pages[i].flags = page.base, int(page.flags)
        regions = (layout.CRegion * len(target.regions))()
        for i, region in enumerate(target.regions):
            regions[i] = layout.CRegion(region.bottom, region.top, int(region.kind), 0, region.top)
        table = (layout.COp * len(ops))(*(self._op(op) for op in ops))
        contents = c.create_string_buffer(b"".join(p.data for p in target.pages))
        self._keep = (table, insns, pages, contents, regions, gates)
        address = [c.cast(x, c.c_void_p).value for x in self._keep]
        return layout.CImage(
            address[0], address[1], len(insns), len(pages), len(regions), len(gates), address[2], address[3],
            address[4], address[5], target.user_root_bit, target.kernel_gsbase, target.kernel_cr3,
            target.kernel_spec_ctrl, int(target.claims), target.reserve, target.slot_bytes,
            target.exit_bytes, max_steps, int(target.mitigation == "ibrs"), target.call_alignment,
        )  # fmt: skip

    def _op(self, op: Op) -> layout.COp:
        text = 0
        if op.text:
            self._texts.append(op.text)
            text = len(self._texts) - 1
        ins = (layout.CVar * 3)(*(_var(v) for v in op.ins))
        return layout.COp(CODE_NUMBER[op.code], text, _var(op.out) if op.out else layout.CVar(), ins)


def _var(v: Var) -> layout.CVar:
    return layout.CVar(v.off & 0xFFFF_FFFF_FFFF_FFFF, int(v.space), v.size)


def _events(table: c.Array[layout.CEvent], count: int) -> tuple[NativeEvent, ...]:
    return tuple(NativeEvent(table[i].vector, table[i].steps, table[i].rip) for i in range(count))


__all__ = ["KEY_SLOTS", "Emitted", "Engine", "NativeContext", "NativeEvent", "NativeFinding", "NativeResult"]
