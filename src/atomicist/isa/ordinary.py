# SPDX-License-Identifier: GPL-2.0-only
"""Which instructions' p-code is believed: those that the tests compare, in each kind and
size of operand, with an independent emulator and with a processor.  The rest is refused
with a reason, however plausible its p-code looks.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

_CONDITIONS: Final = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")

ORDINARY: Final = frozenset(
    """
    adc add and bsf bsr bswap bt btc btr bts call cbw cdq cdqe clac clc cld cmc cmp cmpsb cmpsd
    cmpsq cmpsw cqo cwd cwde dec imul inc jecxz jmp jrcxz lahf lea leave lodsb lodsd lodsq lodsw
    loop loope loopne mov movabs movsb movsd movsq movsw movsx movsxd movzx mul neg not or pop
    popcnt push ret rol ror sahf sar sbb scasb scasd scasq scasw shl shld shr shrd stac stc std
    stosb stosd stosq stosw sub test tzcnt xchg xor
    """.split()  # noqa: SIM905 - it reads better
) | {stem + condition for stem in ("cmov", "j", "set") for condition in _CONDITIONS}
"""Mnemonics, without prefix, whose p-code is right.  Left out, for what SLEIGH says of them
is wrong: LZCNT (CF, if source and target are one), XADD and CMPXCHG (upper halves, and
a base register that is overwritten); and all that nobody has compared."""

_PREFIXES: Final = frozenset({"", "lock", "rep", "repe", "repne", "repz", "notrack"})
"""Prefixes, as capstone writes them, that mean what the mnemonic's p-code says."""

_GROUPS: Final = {
    0x66: "operand", 0x67: "address", 0xF0: "lock", 0xF2: "repeat", 0xF3: "repeat",
    **dict.fromkeys((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65), "segment"),
}  # fmt: skip
"""Legacy prefixes (SDM vol. 2, 2.1.1)."""

_FAR: Final = (3, 5)
"""Opcode FF with these in ModRM.reg branches far (SDM vol. 2, appendix A, table A-6)."""

STRINGS: Final = frozenset(
    stem + size for stem in ("movs", "stos", "lods", "cmps", "scas") for size in "bwdq"
)
"""The string instructions, which REP repeats."""

_MANDATORY_F3: Final = frozenset(
    {"pause", "endbr64", "rdpid", "rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase"}
)
"""Microcoded instructions of whose opcode the byte F3 is a part."""


def _prefixes(raw: bytes) -> list[int]:
    return list(itertools.takewhile(_GROUPS.__contains__, raw))


def plain(raw: bytes, mnemonic: str) -> bool:
    """Whether a microcoded instruction has no prefix that changes what it does, or forbids it."""
    found = _prefixes(raw)
    return 0xF0 not in found and 0xF2 not in found and (0xF3 not in found or mnemonic in _MANDATORY_F3)


def refusal(raw: bytes, decoded: Any) -> str:
    """Why the p-code of an instruction is not believed; empty if it is.

    That is also what no assembler writes, and SLEIGH reads otherwise than processors do."""
    prefix, _, stem = decoded.mnemonic.rpartition(" ")
    found = _prefixes(raw)
    groups = [_GROUPS[byte] for byte in found]
    if stem not in ORDINARY or prefix not in _PREFIXES:
        return "no such mnemonic has been compared"
    if stem == "bswap" and decoded.operands[0].size == 2:
        return "the result is undefined"
    if decoded.opcode[0] == 0xFF and decoded.modrm >> 3 & 7 in _FAR:
        return "far branch"
    if len(set(groups)) != len(groups):
        return "two prefixes of one group"
    if 0x66 in found and (stem.startswith(("j", "loop")) or stem in ("call", "ret")):
        return "operand-size prefix of a branch, on which processors differ"
    if "repeat" in groups and stem not in STRINGS and stem not in ("ret", "tzcnt", "popcnt"):
        return "repeat prefix of an instruction that does not repeat"
    if "segment" in groups and stem in STRINGS:
        return "string instruction with a segment"
    if decoded.addr_size != 8 and stem != "jecxz":
        return "32-bit addresses"
    return ""
