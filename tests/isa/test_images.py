# SPDX-License-Identifier: GPL-2.0-only
"""Every instruction that occurs in an image: compared, or microcode with tests of its own."""

from collections import Counter
from pathlib import Path

import pytest

from atomicist.crosscheck.generate import random_choice
from atomicist.crosscheck.states import decoder
from atomicist.image import bare
from atomicist.image.bare import BareConfig
from atomicist.isa.system import SYSTEM, system_ops
from tests.isa.compare import COUNT, MANY, compare, generator, is_unknown
from tests.isa.engines import PLACES, lifter

UNKNOWN = {"int3": "padding between functions; to run into it is a finding"}
"""What images hold and the model refuses, with the reason."""

BY_HAND = set(SYSTEM) | {"clac", "stac"}
"""Mnemonics whose tests are test_system, test_control and test_ring0."""


def form(raw: bytes) -> tuple[str, ...]:
    """Mnemonic, and kind and size of each operand."""
    insn = next(decoder().disasm(raw, 0, 1))
    kinds = {1: "reg", 2: "imm", 3: "mem"}
    operands = []
    for o in insn.operands:
        name = insn.reg_name(o.reg) if o.type == 1 else insn.reg_name(o.mem.segment) if o.type == 3 else ""
        special = name if name and (name[:2] in ("cr", "dr") or name in ("gs", "fs", "ss")) else ""
        operands.append(f"{kinds[o.type]}{8 * o.size}{special}")
    return (insn.mnemonic, *operands)


def check(code: dict[bytes, str]) -> None:
    random = generator(6)
    compared: Counter[tuple[str, ...]] = Counter()
    wrong = []
    for raw, where in code.items():
        p, insn = PLACES.get(raw)
        mnemonic = p.insn.mnemonic
        if mnemonic in UNKNOWN:
            assert is_unknown(insn)
        elif system_ops(mnemonic, p.insn) is not None:
            assert not is_unknown(insn) or mnemonic == "hlt", p.text
            assert mnemonic in BY_HAND or mnemonic == "mov", f"{p.text} of {where} has no test"
        elif mnemonic not in BY_HAND:
            compared[form(raw)] += 1
            for _ in range(2 * max(1, MANY)):
                wrong += [f"{where}: {line}" for line in compare([raw], *random_choice(random))]
    assert not wrong, "\n".join(wrong[:20])
    assert len(compared) > 50
    print(f"{len(code)} instructions, {len(compared)} forms; {COUNT}")


def test_bare_image(bare_code: dict[bytes, str]) -> None:
    check(bare_code)


def test_debian_kernel(linux_code: dict[bytes, str]) -> None:
    check(linux_code)


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_the_sweep_misses_nothing(
    cc: str, bare_images: dict[BareConfig, Path], bare_code: dict[bytes, str]
) -> None:
    """What the loader finds by following the code is what the sweep above compared."""
    config = BareConfig(cc)
    target = bare.load(bare_images[config], config)
    assert {insn.raw for insn in target.insns.values()} <= bare_code.keys()
    known = [i for i in target.insns.values() if not is_unknown(i) and i.text != "hlt"]
    assert len(known) > 1000
    refused = {i.text for i in target.insns.values() if is_unknown(i)} - {"hlt"}
    assert refused <= set(UNKNOWN)
    assert lifter() is not None
