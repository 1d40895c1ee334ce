# SPDX-License-Identifier: GPL-2.0-only
"""IR -> C for whole images: the fast path of enumeration.

The C has two functions.  `run` executes from RIP on, trace by trace, until it
meets something that is the walker's business, and leaves the machine exactly as
`step()`, as often, would have.  `deliver` is the microcode of the events.  Whatever
they do not express they refuse, with nothing changed, and `step()` does it.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from atomicist.isa.delivery import ERROR_CODE, deliver
from atomicist.isa.registers import SLOTS
from atomicist.machine.memory import PAGE, Page, PageFlag
from atomicist.machine.target import Target
from atomicist.native.build import runtime_sources, shared_object
from atomicist.native.flow import FlowGraph, compilable
from atomicist.native.tables import render
from atomicist.native.trace import Trace

_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
FLAGS: Final = ("-O1", "-Wno-unused-variable", "-Wno-unused-but-set-variable", "-Wno-unused-label")
"""-O1: -O2 takes twice as long to compile and gives nothing measurable."""
_HEADERS: Final = ("model.h", "compiled.h")
_EVERY: Final = frozenset(range(SLOTS))

_HEAD: Final = """\
/* SPDX-License-Identifier: GPL-2.0-only */
/* Printed by atomicist.native.codegen; do not edit. */
#include "compiled.h"

"""

_RUN: Final = """
static int run(struct machine *m, u64 fuel)
{
	MACHINE;
	u64 *mark = u;
	u64 n = 0, rip = R[REG_RIP];
	u32 slot;

	if (R[REG_SHADOW])
		return GOES_ON;
dispatch:
	for (slot = (u32)(rip * GOLDEN >> DISPATCH_SHIFT); at[slot]; slot = (slot + 1) & DISPATCH_MASK)
		if (at[slot] == rip)
			goto *code[slot];
	goto out;
"""

_RUN_END: Final = """
refused:
	TAKE_BACK(mark);
out:
	R[REG_RIP] = rip;
	m->nsaved = (u32)(u - m->saved);
	m->steps += (u32)n;
	m->guest_insns += n;
	return GOES_ON;
returns:
	m->root = root_of(m);
	m->nsaved = (u32)(u - m->saved);
	m->steps += (u32)n;
	m->guest_insns += n;
	return RETURNS;
}
"""

_ONE: Final = """
static int {name}(struct machine *m)
{{
	MACHINE;
	u64 n = 0;

{body}
out:
	m->nsaved = (u32)(u - m->saved);
	return GOES_ON;
refused:
	TAKE_BACK(start);
	return REFUSES;
returns:
	m->root = root_of(m);
	m->nsaved = (u32)(u - m->saved);
	return RETURNS;
}}
"""

_DELIVER: Final = """
static int deliver_event(struct machine *m, u32 index, u64 error)
{
	MACHINE;

	m->note = 0;
	m->pc = R[REG_RIP];
	switch (index) {
"""

_DELIVER_END: Final = """\
	default:
		return REFUSES;
	}
	m->nsaved = (u32)(u - m->saved);
	return GOES_ON;
refused:
	TAKE_BACK(start);
	return REFUSES;
}

extern const struct compiled atomicist_code;
__attribute__((visibility("default")))
const struct compiled atomicist_code = { .run = run, .one = one, .deliver = deliver_event };
"""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Compiled code of one target, loaded; valid for as long as it is kept.

    ``address`` is what `Engine.enumerate` takes as ``run``."""

    library: c.CDLL
    address: c.c_void_p


def compiled(
    target: Target, properties: Mapping[str, int], events: Sequence[str], error_token: int
) -> Compiled:
    """``target`` as machine code; the other arguments as for `Engine`.

    Compiled once per content. Raises `native.build.BuildError`."""
    sources = {name: text for name, text in runtime_sources().items() if name in _HEADERS}
    sources |= {"tables.h": render(properties, events, error_token), "code.c": source(target, events)}
    library = c.CDLL(str(shared_object(sources, ("code.c",), FLAGS)))
    return Compiled(library, c.c_void_p(c.addressof(c.c_char.in_dll(library, "atomicist_code"))))


def source(target: Target, events: Sequence[str]) -> str:
    """The C of ``target``."""
    graph = FlowGraph(target)
    parts = (
        _page_table(target.pages),
        _run(target, graph),
        _singles(target, graph),
        _deliveries(target, events),
    )
    return _HEAD + "".join(parts)


def _hash(value: int, shift: int) -> int:
    return (value * _GOLDEN & (1 << 64) - 1) >> shift


def _array(kind: str, name: str, values: Sequence[object]) -> str:
    return f"static {kind} {name}[{len(values)}] = {{ {', '.join(map(str, values))} }};\n"


def _page_table(pages: tuple[Page, ...]) -> str:
    """`page_at`: from an address to the one page that it may be in."""
    for bits in range(max(len(pages), 2).bit_length(), 20):
        for multiplier in range(_GOLDEN, _GOLDEN + 400, 2):
            numbers = [p.base // PAGE * multiplier & (1 << 64) - 1 for p in pages]
            slots = {number >> 64 - bits: i for i, number in enumerate(numbers)}
            if len(slots) == len(pages):
                table = _array("const u16", "page_of", [slots.get(i, 0) for i in range(1 << bits)])
                return (
                    f"{table}static inline u32 page_at(u64 va)\n{{\n"
                    f"\treturn page_of[(va / PAGE) * {multiplier:#x}ull >> {64 - bits}];\n}}\n"
                )
    raise ValueError("two pages have one address")


def _run(target: Target, graph: FlowGraph) -> str:
    bodies, entries = [], []
    for va in sorted(graph.insns):
        if va in graph.leaders:
            bodies.append(_trace(target, graph, va))
            entries.append((va, f"&&L_{va:x}"))
    bits = max(4, (4 * len(entries)).bit_length())
    at, code = [0] * (1 << bits), ["&&out"] * (1 << bits)
    for va, label in entries:
        slot = _hash(va, 64 - bits)
        while at[slot]:
            slot = (slot + 1) % len(at)
        at[slot], code[slot] = va, label
    numbers = {"GOLDEN": f"{_GOLDEN:#x}ull", "DISPATCH_SHIFT": 64 - bits, "DISPATCH_MASK": f"{len(at) - 1}u"}
    defines = "".join(f"#define {name} {value}\n" for name, value in numbers.items())
    tables = _array("const u64", "at", [f"{va:#x}ull" for va in at]) + _array("void *const", "code", code)
    head, marker, rest = _RUN.partition("\tif (R")
    return defines + head + tables + marker + rest + "".join(bodies) + _RUN_END


def _trace(target: Target, graph: FlowGraph, va: int) -> str:
    """The C of the trace from ``va`` on."""

    def leave(to: int) -> str:
        return f"goto L_{to:x};" if to in graph.leaders else f"rip = {to:#x}ull; goto out;"

    trace = Trace(f"L_{va:x}", graph.live, leave, "rip = {}; goto dispatch;")
    at, taken = va, [va]
    while trace.add(graph.insns[at]):
        at = graph.insns[at].next
        if at not in graph.insns or at in graph.leaders:
            trace.exit(at)
            break
        taken.append(at)
    lines = [f"L_{va:x}: {{\n\trip = {va:#x}ull;\n\tmark = u;"]
    if va in graph.commits:
        lines.append("\tif (early)\n\t\tgoto out;")
    room = f"n + {len(taken)} > fuel || last - u < {trace.room}"
    lines.append(f"\tif ({room}{_fetch(target, taken)})\n\t\tgoto out;")
    return "\n".join(lines) + "\n" + trace.render() + "}\n"


def _fetch(target: Target, addresses: Sequence[int]) -> str:
    """The C condition under which code at ``addresses`` is not mapped, behind "||"."""
    flags = {p.base: p.flags for p in target.pages}
    roots = PageFlag.KERNEL_ROOT | PageFlag.USER_ROOT
    for va in addresses:
        roots &= flags.get(va & ~(PAGE - 1), PageFlag(0))
    if roots == PageFlag.KERNEL_ROOT | PageFlag.USER_ROOT:
        return ""
    return {PageFlag.KERNEL_ROOT: " || root", PageFlag.USER_ROOT: " || !root"}.get(roots, " || true")


def _singles(target: Target, graph: FlowGraph) -> str:
    """A function for each instruction; one for all that do the same."""
    functions: dict[str, str] = {}
    table = []
    for va in sorted(target.insns):
        insn = graph.insns.get(va)
        if insn is None:
            table.append("NULL")
            continue

        def leave(to: int, behind: int = insn.next) -> str:
            return "goto out;" if to == behind else f"R[REG_RIP] = {to:#x}ull; goto out;"

        trace = Trace("one", lambda _: _EVERY, leave, "R[REG_RIP] = {}; goto out;")
        if trace.add(insn):
            trace.exit(insn.next)
        check = f"\tif (last - u < {trace.room}{_fetch(target, [va])})\n\t\treturn REFUSES;\n"
        body = check + trace.render()
        table.append(functions.setdefault(body, f"one_{len(functions)}"))
    text = "".join(_ONE.format(name=name, body=body) for body, name in functions.items())
    return text + "\n" + _array("one_fn *const", "one", table)


def _deliveries(target: Target, events: Sequence[str]) -> str:
    cases = []
    for index, name in enumerate(events):
        gate = target.gates.get(name)
        ops = deliver(gate) if gate is not None else ()
        if gate is None or not compilable(ops, delivery=True):
            continue
        trace = Trace(name, lambda _: _EVERY, lambda _: "", "")
        trace.bind(ERROR_CODE.off, "error")
        trace.deliver(ops)
        room = f"\tif (last - u < {trace.room})\n\t\treturn REFUSES;\n"
        cases.append(f"\tcase {index}: {{\n{room}{trace.render()}\tbreak;\n\t}}\n")
    return _DELIVER + "".join(cases) + _DELIVER_END
