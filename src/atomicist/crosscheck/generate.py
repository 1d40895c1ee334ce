# SPDX-License-Identifier: GPL-2.0-only
"""Random states for an encoding, edge values favoured, and what of each the manuals leave open.

Ordinary instructions get the registers they use, their memory and the flags; system instructions
the whole file: privilege, bases, control registers, MSRs, and frames for IRET.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from atomicist.crosscheck.states import (
    ARENA,
    BACKGROUND,
    FLAGS,
    LOWEST,
    Prepared,
    Spot,
    State,
    arena_of,
    draw,
)
from atomicist.crosscheck.undefined import RULES, needs_memory, undefined
from atomicist.isa.delivery import KERNEL_CS, KERNEL_DS, USER_CS, USER_DS
from atomicist.isa.ir import Insn
from atomicist.isa.registers import FLAG_BITS, REGISTERS, SLOTS
from atomicist.isa.system import COMMANDS, CPUNODE_SELECTOR, CR4_FSGSBASE, MSRS, system_ops

_ALL: Final = (1 << 64) - 1
_WIDTHS: Final = (7, 8, 15, 16, 31, 32, 47, 63, 64)

EDGES: Final = tuple(
    dict.fromkeys(
        [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 0x18, 0x33]
        + [v & _ALL for n in _WIDTHS for v in ((1 << n) - 1, 1 << n, -1 << n)]
        + [0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 0x8080_8080_8080_8080, 0x0F0F_0F0F_0F0F_0F0F]
        + [0x7F7F_7F7F_7F7F_7F7F, 0x8000_8000_8000_8000, 0x7FFF_FFFF_7FFF_7F7F, 0x0123_4567_89AB_CDEF]
    )
)
"""Values at which carries, signs, widths and counts change."""

Choice = tuple[tuple[int, ...], int, int]


def random_choice(random: Random) -> Choice:
    """Arguments for `draw`, half of the values from `EDGES`."""
    bits, pick = random.getrandbits, random.random
    edges, count = EDGES, len(EDGES)
    values = [edges[int(pick() * count)] if pick() < 0.5 else bits(64) for _ in range(6)]
    return tuple(values), bits(13), bits(len(FLAGS))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A state: ``file`` by slot, ``spots`` of memory; ``open_``: slots that are undefined behind the
    instruction, as a bit set; ``open_memory``: so is its memory operand."""

    file: list[int]
    spots: list[Spot]
    open_: int
    open_memory: bool
    system: bool

    def state(self) -> State:
        """The same for engines that want names."""
        return State({n: self.file[r.slot] for n, r in REGISTERS.items() if n != "RIP"}, arena_of(self.spots))


_SLOT: Final = {name: r.slot for name, r in REGISTERS.items()}
_WITH_RULES: Final = frozenset().union(*(rule.mnemonics for rule in RULES))


class Generator:
    """States for one encoding, the same for the same ``seed``."""

    def __init__(self, prepared: Prepared, insn: Insn, seed: str) -> None:
        self._p = prepared
        self._random = Random(seed)  # noqa: S311 - states to try, not secrets
        mnemonic = prepared.mnemonic
        self.system = system_ops(mnemonic, prepared.insn) is not None or mnemonic in ("clac", "stac")
        self._open = mnemonic.split()[-1] in _WITH_RULES
        self._looks = needs_memory(prepared)
        self._bits: dict[frozenset[str], tuple[int, bool]] = {}
        self._file = [0] * SLOTS
        fixed = {"CS": KERNEL_CS, "SS": KERNEL_DS, "CR4": CR4_FSGSBASE, "RIP": insn.va}
        for name, value in fixed.items():
            self._file[_SLOT[name]] = value
        key = "mov.control" if mnemonic == "mov" and self.system else mnemonic
        self._own = _OWN.get(key)

    def __call__(self) -> Drawn:
        """The next state."""
        values, place, flags = random_choice(self._random)
        if self._random.random() < 0.6:
            # as code does it; 24 because a stack operand is placed by a third of this
            place -= place % 24
        registers, spots = draw(self._p, values, place, flags)
        if self.system:
            self._whole(registers, spots)
        file = self._file.copy()
        for name, value in registers.items():
            file[_SLOT[name]] = value
        open_, memory = self._undefined(registers, spots) if self._open else (0, False)
        return Drawn(file, spots, open_, memory, self.system)

    def _undefined(self, registers: dict[str, int], spots: list[Spot]) -> tuple[int, bool]:
        names = undefined(self._p, State(registers, arena_of(spots) if self._looks else b""))
        known = self._bits.get(names)
        if known is None:
            open_ = sum(1 << _SLOT[name] for name in names if name != "memory")
            known = self._bits[names] = open_, "memory" in names
        return known

    def _whole(self, registers: dict[str, int], spots: list[Spot]) -> None:
        random = self._random
        for name, (_, width) in FLAG_BITS.items():
            registers[name] = random.getrandbits(width)
        # a single step, and virtual 8086 mode, are no business of one instruction
        registers |= dict.fromkeys(("TF", "VM", "VIF", "VIP"), 0)
        registers["CS"] = KERNEL_CS if random.random() < 0.85 else USER_CS
        registers["SS"] = random.choice((0, KERNEL_DS, USER_DS))
        if not self._p.memory:
            registers |= {name: canonical(random) for name in ("FSBASE", "GSBASE")}
        registers |= {"KERNEL_GSBASE": canonical(random), "CR2": random.choice(EDGES)}
        registers["CR3"] = random.getrandbits(36) & ~0x18
        registers |= {"SPEC_CTRL": random.getrandbits(3), "MCG_STATUS": random.getrandbits(3)}
        registers |= {"NMI_BLOCKED": random.getrandbits(1), "CPUNODE": random.getrandbits(16)}
        registers["TSC_AUX"] = random.getrandbits(32)
        registers["CR4"] = CR4_FSGSBASE if random.random() < 0.9 else 0
        if self._own is not None:
            self._own(random, registers, spots)


def canonical(random: Random) -> int:
    """An address whose upper bits agree."""
    value = (
        random.getrandbits(48)
        if random.random() < 0.7
        else random.choice((0, 0x1000, (1 << 47) - 1, 1 << 47))
    )
    return value if value < 1 << 47 else value | ~0xFFFF_FFFF_FFFF & _ALL


def mostly(random: Random, value: int) -> int:
    """``value``, or now and then something else."""
    return value if random.random() < 0.85 else random.choice(EDGES)


Registers = dict[str, int]
Own = Callable[[Random, Registers, list[Spot]], None]


def _msr(random: Random, registers: Registers, _: list[Spot]) -> None:
    registers["RCX"] = mostly(random, random.choice((*MSRS, *COMMANDS))) | random.getrandbits(32) << 32
    value = mostly(random, canonical(random))
    if MSRS.get(registers["RCX"] & 0xFFFF_FFFF) == "TSC_AUX":
        value = mostly(random, value & 0xFFFF_FFFF)
    registers |= {"RAX": value & 0xFFFF_FFFF, "RDX": value >> 32}


def _iretq(random: Random, registers: Registers, spots: list[Spot]) -> None:
    registers["RSP"] = LOWEST + 8 * random.randrange(0x200)
    user = random.random() < 0.5
    words = [
        mostly(random, canonical(random)),
        mostly(random, USER_CS if user else KERNEL_CS),
        random.getrandbits(22) & ~0x20100,
        mostly(random, canonical(random)),
        mostly(random, USER_DS if user else random.choice((0, KERNEL_DS))),
        0,
    ]
    at = registers["RSP"] - ARENA
    spots[:] = [(at + 16 * i, struct.pack("<2Q", *words[2 * i : 2 * i + 2])) for i in range(3)]


def _popfq(random: Random, registers: Registers, spots: list[Spot]) -> None:
    at = registers["RSP"] - ARENA
    spots[:] = [(at, struct.pack("<2Q", random.getrandbits(64) & ~0x100, 0))]


def _sysretq(random: Random, registers: Registers, _: list[Spot]) -> None:
    registers |= {"RCX": mostly(random, canonical(random)), "R11": random.getrandbits(64)}


def _write_base(random: Random, registers: Registers, _: list[Spot]) -> None:
    value = mostly(random, canonical(random))
    registers |= {name: value for name in registers if name[0] == "R" and name not in ("RF", "RSP")}


def _control(random: Random, registers: Registers, _: list[Spot]) -> None:
    value = random.getrandbits(36) | (
        random.choice((1 << 52, 1 << 62, 1 << 63)) if random.random() < 0.2 else 0
    )
    registers |= {name: value for name in registers if name[0] == "R" and name not in ("RF", "RSP")}


def _lsl(random: Random, registers: Registers, _: list[Spot]) -> None:
    value = mostly(random, CPUNODE_SELECTOR) | random.getrandbits(48) << 16
    registers |= {name: value for name in registers if name[0] == "R" and name not in ("RF", "RSP")}


def _verw(random: Random, _: Registers, spots: list[Spot]) -> None:
    word = struct.pack("<H", mostly(random, KERNEL_DS) & 0xFFFF)
    spots[0] = (spots[0][0], word + spots[0][1][2:])
    del spots[1:]


_OWN: Final[dict[str, Own]] = {
    "rdmsr": _msr, "wrmsr": _msr, "iretq": _iretq, "popfq": _popfq, "sysretq": _sysretq, "lsl": _lsl,
    "wrgsbase": _write_base, "wrfsbase": _write_base, "mov.control": _control, "verw": _verw,
}  # fmt: skip
"""What a system instruction wants to find."""

__all__ = ["BACKGROUND", "EDGES", "Drawn", "Generator", "random_choice"]
