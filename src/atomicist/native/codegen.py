# SPDX-License-Identifier: GPL-2.0-only
"""IR -> C for whole images: the enumeration's fast path.

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
from atomicist.machine.memory import PAGE, Page, PageFlag
from atomicist.machine.target import Target
from atomicist.native.build import runtime_sources, shared_object
from atomicist.native.flow import ALL, FlowGraph
from atomicist.native.tables import render
from atomicist.native.trace import Trace, compilable

_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
_FLAGS: Final = ("-fno-stack-protector",)
LONGEST: Final = 64
"""Instructions in one trace: a refusal does all of them again, slowly."""

_HEAD: Final = """\
/* SPDX-License-Identifier: GPL-2.0-only */
/* Printed by atomicist.native.codegen; do not edit. */
#include "model.h"

typedef int64_t s64;
typedef __int128 s128;
typedef uint16_t u16u __attribute__((aligned(1)));
typedef u32 u32u __attribute__((aligned(1)));
typedef u64 u64u __attribute__((aligned(1)));

#define REFUSE_IF(x) do { if (__builtin_expect(!!(x), 0)) goto refused; } while (0)
#define LOG(word) do { u->loc = (word); u->old = W[u->loc - NSLOTS]; u++; } while (0)
#define LOG_BYTES(word, byte, size) do { \\
	LOG((word) + (byte) / 8); \\
	if (((byte) & 7) + (size) > 8) \\
		LOG((word) + (byte) / 8 + 1); \\
} while (0)
#define MACHINE \\
	u64 *const R = m->r, *const W = m->mem; \\
	u8 *const M __attribute__((unused)) = (u8 *)W; \\
	const struct page *const P = m->pages; \\
	struct undo *u = m->log + m->nlog, *const start = u; \\
	struct undo *const last = m->log + m->caplog; \\
	const bool early __attribute__((unused)) = m->early; \\
	u32 root

static inline u32 root_of(const struct machine *m)
{
	return m->im->user_root_bit && (m->r[REG_CR3] & m->im->user_root_bit);
}
"""

_RUN: Final = """
__attribute__((visibility("hidden"))) int run(struct machine *m, u64 fuel);
int run(struct machine *m, u64 fuel)
{
	MACHINE = m->root;
	struct undo *mark = u;
	u64 n = 0, rip = R[REG_RIP];
	u32 slot;

	(void)start;
	if (R[REG_SHADOW])
		return GOES_ON;
dispatch: __attribute__((unused));
	for (slot = (u32)(rip * GOLDEN >> DISPATCH_SHIFT); at[slot]; slot = (slot + 1) & DISPATCH_MASK)
		if (at[slot] == rip)
			goto *code[slot];
	goto out;
"""

_RUN_END: Final = """
refused: __attribute__((unused));
	while (u > mark) {
		u--;
		W[u->loc - NSLOTS] = u->old;
	}
out: __attribute__((unused));
	R[REG_RIP] = rip;
	m->nlog = (u32)(u - m->log);
	m->steps += (u32)n;
	m->guest_insns += n;
	return GOES_ON;
returns: __attribute__((unused));
	m->root = root_of(m);
	m->nlog = (u32)(u - m->log);
	m->steps += (u32)n;
	m->guest_insns += n;
	return RETURNS;
}
"""

_DELIVER: Final = """
static int deliver_event(struct machine *m, u32 index, u64 error)
{
	MACHINE = m->root = root_of(m);

	m->note = 0;
	m->pc = R[REG_RIP];
	(void)error;
	switch (index) {
"""

_DELIVER_END: Final = """\
	default:
		return REFUSES;
	}
	m->nlog = (u32)(u - m->log);
	return GOES_ON;
refused: __attribute__((unused));
	while (u > start) {
		u--;
		W[u->loc - NSLOTS] = u->old;
	}
	return REFUSES;
}

extern const struct compiled atomicist_code;
__attribute__((visibility("default")))
const struct compiled atomicist_code = { .run = run, .deliver = deliver_event };
"""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Compiled code of one target, loaded; valid for as long as it is kept.

    ``address`` is what `Engine.enumerate` takes as ``run``."""

    library: c.CDLL
    address: c.c_void_p


def compiled(target: Target, properties: Mapping[str, int], events: Sequence[str], error_token: int) -> Compiled:
    """``target`` as machine code; the other arguments as for `Engine`.

    Compiled once per content. Raises `native.build.BuildError`."""
    sources = {name: text for name, text in runtime_sources().items() if name == "model.h"}
    sources |= {"tables.h": render(properties, events, error_token), "code.c": source(target, events)}
    library = c.CDLL(str(shared_object(sources, ("code.c",), _FLAGS)))
    return Compiled(library, c.c_void_p(c.addressof(c.c_char.in_dll(library, "atomicist_code"))))


def source(target: Target, events: Sequence[str]) -> str:
    """The C of ``target``."""
    return _HEAD + _page_table(target.pages) + _run(target) + _deliveries(target, events)


def _hash(value: int, shift: int) -> int:
    return (value * _GOLDEN & (1 << 64) - 1) >> shift


def _array(kind: str, name: str, values: Sequence[object]) -> str:
    return f"static const {kind} {name}[{len(values)}] = {{ {', '.join(map(str, values))} }};\n"


def _page_table(pages: tuple[Page, ...]) -> str:
    """`page_at`: from an address to the one page that it may be in."""
    for bits in range(max(len(pages), 2).bit_length(), 20):
        for multiplier in range(_GOLDEN, _GOLDEN + 400, 2):
            slots = {(p.base // PAGE * multiplier & (1 << 64) - 1) >> (64 - bits): i for i, p in enumerate(pages)}
            if len(slots) == len(pages):
                table = _array("uint16_t", "page_of", [slots.get(i, 0) for i in range(1 << bits)])
                return (
                    f"{table}static inline u32 page_at(u64 va)\n{{\n"
                    f"\treturn page_of[(va / PAGE) * {multiplier:#x}ull >> {64 - bits}];\n}}\n"
                )
    raise ValueError("two pages have one address")


def _run(target: Target) -> str:
    graph = FlowGraph(target)
    bodies, entries = [], []
    for va in sorted(graph.insns):
        if va in graph.leaders:
            bodies.append(_trace(target, graph, va, whole=True))
            entries.append((va, f"&&L_{va:x}"))
        elif va in graph.resumable:
            bodies.append(_trace(target, graph, va, whole=False))
            entries.append((va, f"&&S_{va:x}"))
    bits = max(4, (4 * len(entries)).bit_length())
    at, code = [0] * (1 << bits), ["&&out"] * (1 << bits)
    for va, label in entries:
        slot = _hash(va, 64 - bits)
        while at[slot]:
            slot = (slot + 1) % len(at)
        at[slot], code[slot] = va, label
    numbers = f"#define GOLDEN {_GOLDEN:#x}ull\n#define DISPATCH_SHIFT {64 - bits}\n#define DISPATCH_MASK {len(at) - 1}u\n"
    tables = _array("u64", "at", [f"{va:#x}ull" for va in at]) + _array("void *const", "code", code)
    head, marker, rest = _RUN.partition("\t(void)start;")
    return numbers + head + tables + marker + rest + "".join(bodies) + _RUN_END


def _trace(target: Target, graph: FlowGraph, va: int, *, whole: bool) -> str:
    """The C of the trace from ``va`` on, or of its first instruction alone."""
    pages = {p.base: p.flags for p in target.pages}

    def leave(to: int) -> str:
        if to not in graph.insns:
            return f"rip = {to:#x}ull; goto out;"
        if to in graph.leaders:
            return f"goto L_{to:x};"
        return f"goto S_{to:x};" if to in graph.resumable else f"rip = {to:#x}ull; goto out;"

    trace = Trace(f"{'L' if whole else 'S'}_{va:x}", graph.live, leave)
    at, count = va, 0
    roots = PageFlag.KERNEL_ROOT | PageFlag.USER_ROOT
    while True:
        roots &= pages.get(at & ~(PAGE - 1), PageFlag(0))
        count += 1
        if not trace.add(graph.insns[at]):
            break
        at = graph.insns[at].next
        if not whole or at not in graph.insns or at in graph.leaders or count == LONGEST:
            trace.exit(at)
            break
    lines = [f"{'L' if whole else 'S'}_{va:x}: {{\n\trip = {va:#x}ull;\n\tmark = u;"]
    if va in graph.commits:
        lines.append("\tif (early)\n\t\tgoto out;")
    lines.append(f"\tif (n + {count} > fuel || last - u < {trace.stores})\n\t\tgoto out;")
    if roots != PageFlag.KERNEL_ROOT | PageFlag.USER_ROOT:
        # fetched from a page that is not in both page tables
        refused = {PageFlag.KERNEL_ROOT: "root", PageFlag.USER_ROOT: "!root"}.get(roots, "true")
        lines.append(f"\tif ({refused})\n\t\tgoto out;")
    return "\n".join(lines) + "\n" + trace.render() + "}\n"


def _deliveries(target: Target, events: Sequence[str]) -> str:
    cases = []
    for index, name in enumerate(events):
        gate = target.gates.get(name)
        ops = deliver(gate) if gate is not None else ()
        if gate is None or not compilable(ops, delivery=True):
            continue
        trace = Trace(name, lambda _: frozenset(i for i in range(ALL.bit_length())), lambda _: "")
        trace.bind(ERROR_CODE.off, "error")
        trace.deliver(ops)
        cases.append(
            f"\tcase {index}: {{\n\tif (last - u < {trace.stores})\n\t\treturn REFUSES;\n{trace.render()}\tbreak;\n\t}}\n"
        )
    return _DELIVER + "".join(cases) + _DELIVER_END
