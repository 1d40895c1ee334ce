# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's NOPs: which bytes fill n bytes, and runs of single NOPs made fewer.

A test that injects an event at every instruction boundary must have the kernel's boundaries, so the exact
encodings matter, not just that nothing happens.
"""

from __future__ import annotations

import capstone

NOPS: tuple[bytes, ...] = tuple(
    bytes.fromhex(text)
    for text in (
        "",
        "90",
        "6690",
        "0f1f00",
        "0f1f4000",
        "0f1f440000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
    )
)
"""By length (arch/x86/include/asm/nops.h, BYTES_NOP1 to BYTES_NOP8 for 64 bits; SDM vol. 2, NOP)."""

_decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def nops(length: int) -> bytes:
    """`length` bytes of as few NOPs as the kernel uses (alternative.c, add_nops)."""
    whole, rest = divmod(length, 8)
    return NOPS[8] * whole + NOPS[rest]


def optimise_nops(code: bytes) -> bytes:
    """`code` with each run of one-byte NOPs made longer ones (alternative.c, optimize_nops).

    Like the kernel, stops at the first bytes that are no instruction.
    """
    if b"\x90\x90" not in code:
        return code
    out = bytearray(code)
    at = 0
    while at < len(out):
        length = next((size for _, size, _, _ in _decoder.disasm_lite(bytes(out[at:]), 0, 1)), 0)
        if not length:
            break
        end = at
        while end < len(out) and length == 1 and out[end] == 0x90:
            end += 1
        if end > at + 1:
            out[at:end] = nops(end - at)
        at = max(end, at + length)
    return bytes(out)
