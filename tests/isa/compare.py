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

from atomicist.isa.delivery import GP
from atomicist.isa.ir import Code, Insn
from atomicist.machine.memory import canonical
from tests.isa.engines import (
    PLACES,
    Host,
    emulator,
    host_or_reason,
    may_run_on_host,
    reference,
)
from tests.isa.states import FLAGS, Prepared, Result, State, make_state
from tests.isa.undefined import undefined

_ALL = (1 << 64) - 1
_WIDTHS = (7, 8, 15, 16, 31, 32, 47, 63, 64)

EDGES: Final = tuple(
    dict.fromkeys(
        [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 0x18, 0x33]
        + [v & _ALL for n in _WIDTHS for v in ((1 << n) - 1, 1 << n, -1 << n)]
        + [0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 0x8080_8080_8080_8080, 0x0F0F_0F0F_0F0F_0F0F]
        + [0x7F7F_7F7F_7F7F_7F7F, 0x8000_8000_8000_8000, 0x7FFF_FFFF_7FFF_7F7F, 0x0123_4567_89AB_CDEF]
    )
)
"""Values at which carries, signs, widths and counts change."""

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


def random_choice(random: Random) -> tuple[tuple[int, ...], int, int]:
    """Arguments for `make_state`, half of the values from `EDGES`."""
    values = [random.choice(EDGES) if random.random() < 0.5 else random.getrandbits(64) for _ in range(6)]
    return tuple(values), random.randrange(0x2000), random.getrandbits(len(FLAGS))


UNICORN_IS_WRONG: Final = {
    "ret 0xfff8": "the 16-bit immediate is taken as signed; the processor and vol. 2B, RET, say unsigned",
    "lock neg": "flags are those of some other value; the processor, and Unicorn's own NEG, agree with ours",
}
"""Mnemonic, or text, of an instruction -> what Unicorn gets wrong; only the processor is asked then."""


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
