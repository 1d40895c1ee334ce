# SPDX-License-Identifier: GPL-2.0-only
"""Holds the reference interpreter against a second opinion, in given or drawn states."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

import unicorn
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from atomicist.crosscheck.engines import UNICORN_IS_WRONG, may_run_on_host
from atomicist.crosscheck.generate import EDGES
from atomicist.crosscheck.states import FLAGS, Prepared, Result, State, make_state
from atomicist.crosscheck.undefined import undefined
from atomicist.isa.delivery import GP
from atomicist.isa.ir import Code, Insn
from atomicist.machine.memory import canonical
from tests.isa.engines import (
    PLACES,
    Host,
    emulator,
    host_or_reason,
    reference,
)

MANY: Final = int(os.environ.get("ATOMICIST_EXAMPLES", "0"))
"""How many times as many examples, drawn anew in each run; 0: the few that are always the same."""

VALUE: Final = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1))
VALUES: Final = st.tuples(*[VALUE] * 6)
PLACE: Final = st.integers(0, 0x1FFF)
FLAG_CHOICE: Final = st.integers(0, (1 << len(FLAGS)) - 1)


def examples(few: int) -> settings:
    """Hypothesis settings for ``few`` examples, or `MANY` times as many."""
    return settings(
        max_examples=few * max(1, MANY),
        deadline=None,
        derandomize=not MANY,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def generator(seed: int) -> Random:
    """Numbers that are the same in each run, unless many more are asked for."""
    return Random() if MANY else Random(seed)  # noqa: S311 - states to try, not secrets


@dataclass
class Count:
    """How much was compared."""

    unicorn: int = 0
    host: int = 0


COUNT: Final = Count()


def is_unknown(insn: Insn) -> bool:
    """Whether the lifter refused the instruction."""
    return len(insn.ops) == 1 and insn.ops[0].code is Code.UNKNOWN and insn.ops[0].ins[0].off == 1


def difference(p: Prepared, state: State, ours: Result, theirs: Result) -> str:
    """Where ``ours`` and ``theirs`` disagree, in words; empty if they agree.

    A near branch to an address that is not canonical is #GP(0) of the branch (SDM vol. 2, CALL, JMP, RET);
    in the
    model it goes there, and the next fetch is #GP(0): test_access_faults holds it to that."""
    if theirs.vector == GP.number and ours.vector < 0 and not canonical(ours.registers["RIP"]):
        return ""
    open_ = undefined(p, state)
    words = []
    if ours.vector != theirs.vector:
        words.append(f"exception {ours.vector} ours, {theirs.vector} theirs")
    for name, value in ours.registers.items():
        if name in theirs.registers and name not in open_ and theirs.registers[name] != value:
            words.append(f"{name} {state.registers.get(name, p.va):#x} -> {value:#x} ours, "
                         f"{theirs.registers[name]:#x} theirs")  # fmt: skip
    if ours.arena != theirs.arena and "memory" not in open_:
        at = next(i for i, (a, b) in enumerate(zip(ours.arena, theirs.arena, strict=True)) if a != b)
        mine, other = ours.arena[at : at + 8].hex(), theirs.arena[at : at + 8].hex()
        words.append(f"memory at arena+{at:#x}: {mine} ours, {other} theirs")
    return "; ".join(words)


def disagreements(
    p: Prepared, insn: Insn, values: tuple[int, ...], place: int, flags: int, *, on_host: bool = True
) -> list[str]:
    """Run ``insn`` in all engines that can; what differs, one line for each engine."""
    state = make_state(p, values, place, flags)
    ours = reference(state, insn)
    found = []
    if not UNICORN_IS_WRONG.keys() & {p.insn.mnemonic, f"{p.insn.mnemonic} {p.insn.op_str}"}:
        try:
            theirs = emulator().run(p, state)
            COUNT.unicorn += 1
            found.append(("unicorn", difference(p, state, ours, theirs)))
        except unicorn.UcError as e:
            found.append(("unicorn", f"raised {e}, ours {ours.vector}"))
    processor = host_or_reason()
    if on_host and isinstance(processor, Host) and may_run_on_host(p):
        COUNT.host += 1
        found.append(("host", difference(p, state, ours, processor.run(p, state))))
    return [f"{p.text}: {engine}: {words}" for engine, words in found if words]


def compare(encodings: Iterable[bytes], values: tuple[int, ...], place: int, flags: int) -> list[str]:
    """Disagreements over all ``encodings``, each in the state that the numbers make for it."""
    found = []
    for raw in encodings:
        p, insn = PLACES.get(raw)
        if is_unknown(insn):
            found.append(f"{p.text}: {insn.ops[0].text}")
        else:
            found += disagreements(p, insn, values, place, flags)
    return found
