# SPDX-License-Identifier: GPL-2.0-only
"""States to run an instruction in, and what it leaves behind, for any engine.

Memory operands are steered into the arena: with a base register, that register is set to suit; without one,
the index, the segment base or the displacement itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import capstone
from capstone import x86_const as x86

from atomicist.isa.registers import FLAG_BITS, GPRS

CODE: Final = 0x2000_0000
CODE_SIZE: Final = 1 << 20
SLOT: Final = 64
"""Bytes between instructions: each encoding has its own place, so no engine sees code change."""

ARENA: Final = 0x1000_0000
ARENA_SIZE: Final = 3 * 4096
LOWEST: Final = ARENA + 0x800
PLACES: Final = 0x2000
"""Operands lie in [LOWEST, LOWEST + PLACES), which holds two page boundaries."""

MASK: Final = (1 << 64) - 1
FLAGS: Final = ("CF", "PF", "AF", "ZF", "SF", "DF", "OF")
"""The flags that ordinary instructions use."""

BACKGROUND: Final = Random(20).randbytes(ARENA_SIZE)  # noqa: S311 - a pattern, not a secret

_LOW = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")


def _families() -> dict[str, str]:
    table: dict[str, str] = {}
    for i, name in enumerate(GPRS):
        if i < 8:
            low = _LOW[i]
            names = [name.lower(), "e" + low, low, low[0] + "l" if low[1] == "x" else low + "l"]
            names += [low[0] + "h"] if low[1] == "x" else []
        else:
            names = [name.lower() + suffix for suffix in ("", "d", "w", "b")]
        table |= dict.fromkeys(names, name)
    return table


FAMILY: Final = _families()
"""Any name of a general register, or of part of one -> the 64-bit register's."""


@dataclass
class State:
    """Registers by name (flags are single registers), and the arena."""

    registers: dict[str, int]
    arena: bytes

    @property
    def rflags(self) -> int:
        """The flags as RFLAGS."""
        return 2 | sum(self.registers.get(name, 0) << bit for name, (bit, _) in FLAG_BITS.items())


@dataclass
class Result:
    """What an instruction left: ``vector`` is -1, or that of the exception it raised."""

    registers: dict[str, int]
    arena: bytes
    vector: int = -1
    error: int = 0
    address: int = 0


def spread(rflags: int) -> dict[str, int]:
    """RFLAGS as single flags."""
    return {name: rflags >> bit & ((1 << width) - 1) for name, (bit, width) in FLAG_BITS.items()}


@functools.cache
def decoder() -> capstone.Cs:
    """capstone, with details."""
    made = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    made.detail = True
    return made


@dataclass(frozen=True, slots=True)
class Operand:
    """``kind`` (capstone's: register, immediate, memory), ``size`` in bytes, the general register of a
    ``register`` operand, the value of an immediate."""

    kind: int
    size: int
    register: str
    immediate: int


@dataclass(frozen=True, slots=True)
class Place:
    """A memory operand: ``base`` and ``index`` are general registers, "RIP", or nothing; ``segment`` is the
    register with the base of its segment, or nothing; ``narrow``: addresses have 32 bits."""

    base: str
    index: str
    scale: int
    disp: int
    segment: str
    narrow: bool


@dataclass
class Prepared:
    """An encoding at its place in the code area, with its memory within reach.

    What capstone says is looked up once: it takes longer than a state does."""

    raw: bytes
    va: int
    insn: Any
    text: str
    mnemonic: str
    next: int
    used: tuple[str, ...] = ()
    bit_index: str = ""
    operands: tuple[Operand, ...] = ()
    memory: tuple[Place, ...] = ()


def _decode(raw: bytes, va: int) -> Any:
    return next(decoder().disasm(raw, va, 1))


def _touches_memory(insn: Any) -> bool:
    return insn.mnemonic not in ("lea", "nop", "endbr64") and not insn.mnemonic.startswith("prefetch")


def _memory(insn: Any) -> list[Any]:
    return [o.mem for o in insn.operands if o.type == x86.X86_OP_MEM] if _touches_memory(insn) else []


def _place(insn: Any, mem: Any) -> Place:
    def name(register: int) -> str:
        return insn.reg_name(register) if register else ""

    base, segment = name(mem.base), name(mem.segment)
    base = "RIP" if base in ("rip", "eip") else FAMILY.get(base, "")
    index = FAMILY.get(name(mem.index), "")  # "riz" is no index
    segment = segment.upper() + "BASE" if segment in ("gs", "fs") else ""
    return Place(base, index, mem.scale, mem.disp, segment, insn.addr_size == 4)


def _operand(insn: Any, operand: Any) -> Operand:
    register = FAMILY.get(insn.reg_name(operand.reg), "") if operand.type == x86.X86_OP_REG else ""
    immediate = operand.imm if operand.type == x86.X86_OP_IMM else 0
    return Operand(operand.type, operand.size, register, immediate)


def prepare(raw: bytes, va: int) -> Prepared:
    """``raw`` to be run at ``va``: a displacement that no register can reach is replaced."""
    insn = _decode(raw, va)
    for place in [_place(insn, mem) for mem in _memory(insn)]:
        if place.base == "RIP" or not (place.base or place.index or place.segment):
            target = 0x10 if place.segment else LOWEST + 0xFFA
            disp = target - (va + insn.size if place.base else 0)
            at = insn.disp_offset
            raw = raw[:at] + (disp & 0xFFFF_FFFF).to_bytes(4, "little") + raw[at + 4 :]
            insn = _decode(raw, va)
    text = f"{insn.mnemonic} {insn.op_str} [{raw.hex()}]"
    made = Prepared(raw, va, insn, text, insn.mnemonic, va + insn.size)
    made.memory = tuple(_place(insn, mem) for mem in _memory(insn))
    made.operands = tuple(_operand(insn, o) for o in insn.operands)
    names = [insn.reg_name(o.reg) for o in insn.operands if o.type == x86.X86_OP_REG]
    names += [insn.reg_name(r) for group in insn.regs_access() for r in group]
    made.used = tuple(dict.fromkeys(FAMILY[n] for n in names if n in FAMILY))
    stem = insn.mnemonic.removeprefix("lock ")
    if stem in ("bt", "bts", "btr", "btc") and made.memory:
        made.bit_index = made.operands[1].register
    return made


def effective(p: Prepared, mem: Place, registers: dict[str, int]) -> int:
    """The address of a memory operand."""
    total = mem.disp
    if mem.base:
        total += p.next if mem.base == "RIP" else registers[mem.base]
    if mem.index:
        total += registers[mem.index] * mem.scale
    if mem.narrow:
        total &= 0xFFFF_FFFF
    if mem.segment:
        total += registers[mem.segment]
    return total & MASK


def _steer(p: Prepared, mem: Place, registers: dict[str, int], target: int) -> None:
    base, index = "" if mem.base == "RIP" else mem.base, mem.index
    if mem.narrow:
        for name in filter(None, (base, index)):
            registers[name] &= 0xFFFF_FFFF
    if base and base == index:
        registers[base] = 0
        registers[base] = (target - effective(p, mem, registers) & MASK) // (1 + mem.scale)
    elif base:
        if index and p.bit_index == index:
            registers[index] &= 0xFF
        registers[base] = 0
        registers[base] = target - effective(p, mem, registers) & MASK
    elif index:
        registers[index] = 0
        distance = 64 if mem.segment else target - effective(p, mem, registers)
        registers[index] = distance // mem.scale & MASK
    if not base and mem.segment:
        registers[mem.segment] = 0
        registers[mem.segment] = target - effective(p, mem, registers) & MASK


_START: Final = {name: 0x1111_1111_1111_1111 * i ^ 0x00F0 for i, name in enumerate(GPRS)} | {
    "FSBASE": 0x20_0000, "GSBASE": 0x30_0000, "RSP": LOWEST + 0x800,
}  # fmt: skip
"""Registers that an instruction does not use."""

Spot = tuple[int, bytes]
"""Sixteen bytes of the arena, from an offset on, that differ from `BACKGROUND`."""


def draw(p: Prepared, values: Sequence[int], place: int, flags: int) -> tuple[dict[str, int], list[Spot]]:
    """Registers and memory from plain numbers: ``values`` for the registers used, in order, and the memory
    operand; ``place`` for where that lies; ``flags`` a bit for each of `FLAGS`."""
    registers = _START.copy()
    for i, name in enumerate(p.used):
        if name != "RSP" or p.mnemonic in ("lea", "mov", "xchg"):
            registers[name] = values[i % len(values)]
    target = LOWEST + place % PLACES
    mnemonic = p.mnemonic.rpartition(" ")[2]
    if mnemonic in ("push", "pop", "call", "ret", "pushfq", "popfq"):
        registers["RSP"] = LOWEST + (place // 3) % PLACES
    if mnemonic in ("call", "jmp", "ret"):
        values = [(v & (1 << 48) - 1 ^ 1 << 47) - (1 << 47) & MASK for v in values]
        for name in p.used:
            registers[name] = registers[name] if name == "RSP" else values[0]
    if mnemonic == "leave":
        registers["RBP"] = target
    if p.bit_index:
        bits = 8 * p.operands[1].size
        registers[p.bit_index] = (registers[p.bit_index] % 0x2000 - 0x1000) & MASK
        if bits < 64 and values[0] & 1:
            registers[p.bit_index] ^= values[-1] >> bits << bits
    if mnemonic.startswith("loop") or p.mnemonic.startswith(("rep", "jrcxz", "jecxz")):
        registers["RCX"] = (values[0] % 3 if values[0] & 8 else values[0]) & MASK
    for n, mem in enumerate(p.memory):
        _steer(p, mem, registers, target if not n else LOWEST + (place * 7 + values[-1]) % PLACES)
    spots = []
    for n, spot in enumerate([effective(p, mem, registers) for mem in p.memory] + [registers["RSP"]]):
        if 0 <= spot - ARENA <= ARENA_SIZE - 16:
            content = b"".join(values[n - k].to_bytes(8, "little") for k in (1, 2))
            spots.append((spot - ARENA, content))
    registers |= {name: flags >> i & 1 for i, name in enumerate(FLAGS)}
    return registers, spots


def arena_of(spots: Sequence[Spot]) -> bytes:
    """The arena with ``spots`` in it."""
    arena = bytearray(BACKGROUND)
    for at, content in spots:
        arena[at : at + 16] = content
    return bytes(arena)


def make_state(p: Prepared, values: Sequence[int], place: int, flags: int) -> State:
    """What `draw` says, as a state."""
    registers, spots = draw(p, values, place, flags)
    return State(registers, arena_of(spots))
