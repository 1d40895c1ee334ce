# SPDX-License-Identifier: GPL-2.0-only
"""Every ordinary instruction, in each kind and size of operand, against Unicorn and this processor."""

import pytest
from hypothesis import given

from atomicist.crosscheck.engines import HOST_MNEMONICS, UNICORN_IS_WRONG, may_run_on_host
from atomicist.crosscheck.states import CODE
from atomicist.isa.ir import Code, const
from atomicist.isa.ordinary import ORDINARY
from atomicist.isa.system import SYSTEM
from tests.isa.compare import (
    FLAG_CHOICE,
    PLACE,
    VALUES,
    compare,
    examples,
    is_unknown,
)
from tests.isa.engines import PLACES, Host, host_or_reason, lifter
from tests.isa.forms import REFUSED, TABLE, assemble, encodings

ELSEWHERE = {"clac", "stac"}
"""Ordinary in form, but only for ring 0: test_ring0 compares them."""


@pytest.mark.parametrize("mnemonic", TABLE)
def test_engines_agree(mnemonic: str) -> None:
    codes = encodings()[mnemonic]

    @examples(3 if len(codes) > 30 else 5 if len(codes) > 8 else 12)
    @given(values=VALUES, place=PLACE, flags=FLAG_CHOICE)
    def check(values: tuple[int, ...], place: int, flags: int) -> None:
        assert not compare(codes, values, place, flags)

    check()


def test_what_is_believed_is_what_is_compared() -> None:
    compared = {name.rpartition(" ")[2] for name in TABLE}
    assert compared - set(SYSTEM) == ORDINARY - ELSEWHERE
    assert not ORDINARY & set(SYSTEM)
    # Of those nearly all on the processor too.
    assert compared - HOST_MNEMONICS == set()


@pytest.mark.parametrize("line", REFUSED)
def test_outside_the_model(line: str) -> None:
    """Nothing that was not compared is believed: the lifter names it."""
    insn = lifter().lift(CODE, assemble([line])[0])
    last = insn.ops[-1]
    assert (last.code, last.ins) == (Code.UNKNOWN, (const(1, 1),)), insn.ops
    assert insn.text.split()[0] in last.text
    # Microcode may look at the privilege before it gives up; ordinary code is refused whole.
    assert is_unknown(insn) or insn.text.startswith("mov ")


def test_where_unicorn_is_wrong() -> None:
    """Each exception from the second opinion still has the other one."""
    if not isinstance(host_or_reason(), Host):
        pytest.skip(str(host_or_reason()))
    prepared = [PLACES.get(raw)[0] for group in encodings().values() for raw in group]
    for what in UNICORN_IS_WRONG:
        found = [p for p in prepared if what in (p.insn.mnemonic, f"{p.insn.mnemonic} {p.insn.op_str}")]
        assert found, what
        assert all(may_run_on_host(p) for p in found)
