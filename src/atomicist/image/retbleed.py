# SPDX-License-Identifier: GPL-2.0-only
"""Where code may not return yet: untraining code by its symbols, and paths that come too late.

`guard` puts into the instructions of an image what `isa.predictions` says, so that every
run of them is checked.  `exposed_paths` asks the same of the code without running it:
over the control-flow graph, is there a path from an entry to a RET, an indirect branch
or the call of a handler on which nothing has made predictions the kernel's?  Objtool's
--unret is the peer (Linux tools/objtool/check.c).

A direct CALL goes where it says: a processor that takes it for another branch knows better
once it is decoded.  What is wrong with it is the RET that follows, so Linux's paranoid_entry()
is right to be called and to untrain before it returns (UNTRAIN_RET_FROM_CALL), and objtool
follows it.  There it is a *note*.  In an image with atomic entries the rule is the one that
reviewers of the RFC stated, no CALL, RET or indirect branch: a CALL is a finding like the RET,
but for one whose target does nothing before it makes predictions the kernel's.

What a path cannot know, and the run does: whether two tests of one value agree; and a value
written to an MSR that is no constant, which is taken to be the right one.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from atomicist.image.errors import ImageError
from atomicist.isa.ir import Flow, Insn, Space
from atomicist.isa.predictions import (
    EVERYTHING,
    EXPOSED_ALL,
    IBRS,
    PRED_CMD,
    SPEC_CTRL,
    checked,
    msr_write,
    own_text,
    untraining,
)
from atomicist.isa.registers import REGISTERS, SLOT
from atomicist.machine.stages import COMMITTED

UNTRAINING: Final = (
    "entry_untrain_ret", "zen_untrain_ret", "retbleed_untrain_ret", "srso_untrain_ret",
    "srso_alias_untrain_ret", "srso_untrain_ret_alias",
)  # fmt: skip
"""Symbols at which an instruction untrains everything: ours, then Linux's in the order
of its versions (arch/x86/lib/retpoline.S)."""

EARLY: Final = "atomic_ist_untrain_ret_"
"""Symbols, with the vector's name behind, at which its one own RET is untrained."""

VECTOR_TEXT: Final = {"nmi": 0, "db": 1, "mc": 2, "vc": 3}
"""Names of vectors in symbols, and their event numbers."""

MAX_STATES: Final = 200_000
MAX_CALLS: Final = 16
MAX_AHEAD: Final = 16
"""Instructions in which the target of a CALL has to make predictions the kernel's."""
_PREDICTED: Final = frozenset({Flow.RET, Flow.INDIRECT, Flow.INDIRECT_CALL})
_CONSTANT: Final = re.compile(r"mov (ecx|eax), (0x[0-9a-f]+|\d+)")
_SLOTS: Final = {name: REGISTERS[name].slot for name in ("RAX", "RCX")}


@dataclass(frozen=True, slots=True)
class Untraining:
    """Of an image: which ``bits`` of EXPOSED an address clears, [start, end) of the
    ``texts`` that have a bit of their own, by event, and whether a direct CALL is held
    to the same as a RET."""

    mitigation: str
    bits: Mapping[int, int]
    texts: Mapping[int, tuple[int, int]]
    calls: bool = False

    def bit(self, insn: Insn) -> int:
        """The bit of EXPOSED that ``insn``, a branch, is checked for."""
        if insn.flow in (Flow.RET, Flow.CALL):
            to = insn.va if insn.target is None else insn.target
            for event, (start, end) in self.texts.items():
                if start <= insn.va < end and start <= to < end:
                    return own_text(event)
        return EVERYTHING

    def early_call(self, insn: Insn, insns: Mapping[int, Insn]) -> bool:
        """Whether ``insn`` is a direct CALL of other code than such as makes predictions the kernel's."""
        if insn.flow is not Flow.CALL or insn.target is None:
            return False
        va = insn.target
        for _ in range(MAX_AHEAD):
            at = insns.get(va)
            if va in self.bits or (at is not None and at.text == "wrmsr"):
                return False
            if at is None or at.flow is not Flow.FALL:
                return True
            va = at.next
        return True


@dataclass(frozen=True, slots=True)
class ExposedPath:
    """A way from an entry to the instruction at ``va`` (``what``: ret, call, ...): the
    addresses of its branches that were taken, the entry's first, ``va`` last.  ``note``: it
    is a direct CALL in an image for which that is no finding."""

    what: str
    va: int
    places: tuple[int, ...]
    note: bool = False


def untraining_of(symbols: Mapping[str, int], mitigation: str) -> Untraining:
    """What the symbols of an image say of its untraining code."""
    bits: dict[int, int] = {}
    texts: dict[int, tuple[int, int]] = {}
    if mitigation == "unret":
        bits = {symbols[name]: EXPOSED_ALL for name in UNTRAINING if name in symbols}
        for name, event in VECTOR_TEXT.items():
            end = symbols.get(f"atomic_ist_committed_{name}")
            start = symbols.get(f"__atomic_ist_{name}_text")
            early = symbols.get(EARLY + name)
            if early is not None and start is not None and end is not None:
                bits[early] = own_text(event)
                texts[event] = start, end
    atomic = any(re.fullmatch(COMMITTED, name) for name in symbols)
    return Untraining(mitigation, bits, texts, atomic)


def guard(
    insns: Mapping[int, Insn], symbols: Mapping[str, int], mitigation: str, handlers: Container[int] = ()
) -> dict[int, Insn]:
    """``insns`` with the checks of a CPU that needs ``mitigation``; the same for "none".

    The call of one of ``handlers`` is judged there, with all else that a handler counts on."""
    if mitigation == "none":
        return dict(insns)
    u = untraining_of(symbols, mitigation)
    out = {}
    for va, insn in insns.items():
        new = insn
        if insn.flow in _PREDICTED or (u.calls and insn.target not in handlers and u.early_call(insn, insns)):
            new = checked(new, u.bit(insn))
        if insn.text == "wrmsr":
            new = msr_write(new, mitigation)
        if va in u.bits:
            new = untraining(new, u.bits[va])
        out[va] = new
    return out


def exposed_paths(
    insns: Mapping[int, Insn],
    symbols: Mapping[str, int],
    mitigation: str,
    entries: Iterable[int],
    handlers: Container[int],
) -> tuple[ExposedPath, ...]:
    """One path from ``entries`` to each branch that may be predicted by what user mode left.

    Raises `ImageError` if the code has more states than entry code has."""
    if mitigation == "none":
        return ()
    found: dict[int, ExposedPath] = {}
    u = untraining_of(symbols, mitigation)
    for path in _exposed(insns, entries, u, handlers):
        found.setdefault(path.va, path)
    return tuple(found[va] for va in sorted(found))


@dataclass(frozen=True, slots=True)
class _State:
    va: int
    exposed: int
    rcx: int | None
    rax: int | None
    stack: tuple[int, ...]


def _exposed(
    insns: Mapping[int, Insn], entries: Iterable[int], u: Untraining, handlers: Container[int]
) -> Iterator[ExposedPath]:
    came: dict[_State, _State | None] = {_State(va, EXPOSED_ALL, None, None, ()): None for va in entries}
    work = list(came)
    while work:
        state = work.pop()
        insn = insns.get(state.va)
        if insn is None:
            continue
        now = _after(state, insn, u)
        if not now.exposed and u.mitigation != "ibrs":
            continue  # nothing exposes it again before user mode
        if u.early_call(insn, insns) and insn.target not in handlers and state.exposed & u.bit(insn):
            yield ExposedPath(insn.flow.value, state.va, _places(came, state, insns), not u.calls)
        wrong = _wrong(insn, state, u, handlers)
        if wrong:
            yield ExposedPath(insn.flow.value, state.va, _places(came, state, insns))
            continue
        for following in _next(now, insn, insns, handlers):
            if following not in came:
                came[following] = state
                work.append(following)
                if len(came) > MAX_STATES:
                    raise ImageError(
                        f"more than {MAX_STATES} states on the paths to a return; is this entry code?"
                    )


def _wrong(insn: Insn, state: _State, u: Untraining, handlers: Container[int]) -> bool:
    if insn.flow is Flow.CALL:
        called = insn.target is None or insn.target in handlers or len(state.stack) >= MAX_CALLS
        return called and bool(state.exposed & EVERYTHING)
    return insn.flow in _PREDICTED and bool(state.exposed & u.bit(insn))


def _next(now: _State, insn: Insn, insns: Mapping[int, Insn], handlers: Container[int]) -> Iterator[_State]:
    stack = now.stack
    if insn.flow is Flow.CALL and insn.target is not None:
        if insn.target in insns and insn.target not in handlers:
            yield _State(insn.target, now.exposed, now.rcx, now.rax, (*stack, insn.next))
        elif insn.target in handlers:
            yield _State(insn.next, now.exposed, None, None, stack)
        return
    if insn.flow is Flow.RET:
        if stack:
            yield _State(stack[-1], now.exposed, now.rcx, now.rax, stack[:-1])
        return
    if insn.target is not None and insn.target not in handlers:
        yield _State(insn.target, now.exposed, now.rcx, now.rax, stack)
    if insn.flow in (Flow.FALL, Flow.BRANCH):
        yield _State(insn.next, now.exposed, now.rcx, now.rax, stack)


def _after(state: _State, insn: Insn, u: Untraining) -> _State:
    exposed = state.exposed & ~u.bits.get(state.va, 0)
    if insn.text == "wrmsr":
        if state.rcx == PRED_CMD and (state.rax is None or state.rax & 1):
            exposed = 0
        if state.rcx == SPEC_CTRL and u.mitigation == "ibrs":
            exposed = 0 if state.rax is None or state.rax & IBRS else EXPOSED_ALL
    written = {op.out.off // SLOT for op in insn.ops if op.out is not None and op.out.space is Space.REG}
    constant = _CONSTANT.fullmatch(insn.text)
    value = int(constant[2], 0) if constant else None
    values = {
        name: (value if constant and constant[1] == name.lower().replace("r", "e", 1) else None)
        if _SLOTS[name] in written
        else getattr(state, name.lower())
        for name in _SLOTS
    }
    return _State(state.va, exposed, values["RCX"], values["RAX"], state.stack)


def _places(
    came: Mapping[_State, _State | None], state: _State, insns: Mapping[int, Insn]
) -> tuple[int, ...]:
    places = [state.va]
    at: _State | None = state
    while at is not None:
        before = came[at]
        if before is None:
            places.append(at.va)
        elif insns[before.va].next != at.va:
            places.append(before.va)
        at = before
    return tuple(dict.fromkeys(reversed(places)))
