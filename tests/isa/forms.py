# SPDX-License-Identifier: GPL-2.0-only
"""Instructions to compare, as templates: mnemonic by mnemonic, with every kind and size of operand.

A template's `{...}` are filled from the tables below.  `encodings` assembles all of them, once.
"""

from __future__ import annotations

import functools
import itertools
import subprocess
import tempfile
from pathlib import Path

import capstone

SIZES = (8, 16, 32, 64)
WIDE = (16, 32, 64)
WORDS = {8: "byte", 16: "word", 32: "dword", 64: "qword"}

REGISTERS = {
    8: ("al", "bl", "ch", "dh", "sil", "bpl", "r9b", "r15b"),
    16: ("ax", "bx", "si", "bp", "r8w", "r13w"),
    32: ("eax", "ebx", "esi", "ebp", "r8d", "r13d"),
    64: ("rax", "rbx", "rsi", "rbp", "r8", "r13"),
}
OTHERS = {
    8: ("bh", "al", "dl", "bl", "r9b", "dil", "cl", "r10b"),
    16: ("cx", "bx", "r12w", "di"),
    32: ("ecx", "ebx", "r12d", "edi"),
    64: ("rcx", "rbx", "r12", "rdi"),
}
MEMORY = (
    "[rbx]", "[rsp+8]", "[rbp-0x10]", "[r13+rcx*8+0x20]", "[r12]", "gs:[rdi]", "gs:[0x1008]", "[rip+0x100]",
    "[rcx*8+0x1000]", "[r10+r10*2]", "fs:[rdx-8]", "gs:[rip+0x80]", "[rcx+rbp]",
)  # fmt: skip
IMMEDIATES = {
    8: ("1", "-1", "0x7f", "0x80"),
    16: ("1", "-1", "0x1234", "0x8000"),
    32: ("1", "-1", "0x12345678", "0x80000000"),
    64: ("1", "-1", "0x12345678", "-0x80000000"),
}
CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")


def _pairs(size: int) -> list[str]:
    pairs = zip(REGISTERS[size], itertools.cycle(OTHERS[size]), strict=False)
    return [f"{a}, {b}" for a, b in pairs] + [f"{REGISTERS[size][1]}, {REGISTERS[size][1]}"]


def _memory(size: int) -> list[str]:
    return [f"{WORDS[size]} ptr {place}" for place in MEMORY]


def _some_memory(size: int, start: int) -> list[str]:
    """Four of the addressing modes, others for each size and use."""
    return list(itertools.islice(itertools.cycle(_memory(size)), 3 * start, 3 * start + 4))


def _binary(mnemonic: str, *, load: bool = True) -> list[str]:
    lines = []
    for n, size in enumerate(SIZES):
        lines += [f"{mnemonic} {pair}" for pair in _pairs(size)]
        registers = itertools.cycle(REGISTERS[size])
        lines += [f"{mnemonic} {r}, {i}" for r, i in zip(registers, IMMEDIATES[size], strict=False)]
        if load:
            lines += [f"{mnemonic} {OTHERS[size][2]}, {m}" for m in _some_memory(size, n)]
        register = REGISTERS[size][0]
        lines += [f"{mnemonic} {m}, {register}" for m in _some_memory(size, n + 1)]
        lines += [f"{mnemonic} {m}, {IMMEDIATES[size][n]}" for m in _some_memory(size, n + 2)]
    return lines


def _unary(mnemonic: str, sizes: tuple[int, ...] = SIZES) -> list[str]:
    lines = []
    for n, size in enumerate(sizes):
        lines += [f"{mnemonic} {operand}" for operand in (*REGISTERS[size], *_some_memory(size, n))]
    return lines


def _shift(mnemonic: str) -> list[str]:
    lines = []
    for n, size in enumerate(SIZES):
        for count in ("1", "4", "7", "cl", str(size - 1), "0x1f", "0x21"):
            lines += [f"{mnemonic} {r}, {count}" for r in REGISTERS[size][:3]]
            lines += [f"{mnemonic} {m}, {count}" for m in _some_memory(size, n)[:1]]
    return lines


def _double_shift(mnemonic: str) -> list[str]:
    return [
        f"{mnemonic} {operands}, {count}"
        for size in WIDE
        for operands in (*_pairs(size)[:3], f"{_memory(size)[1]}, {OTHERS[size][2]}")
        for count in ("1", "9", "cl")
    ]


def _bits(mnemonic: str) -> list[str]:
    lines = []
    for n, size in enumerate(WIDE):
        lines += [f"{mnemonic} {pair}" for pair in _pairs(size)]
        lines += [f"{mnemonic} {r}, {i}" for r in REGISTERS[size][:2] for i in (0, 5, size - 1, 0x7F)]
        lines += [f"{mnemonic} {m}, {i}" for m in _some_memory(size, n) for i in (3, 0x7F)]
        bit = {16: "ax", 32: "eax", 64: "rax"}[size]
        lines += [f"{mnemonic} {m}, {bit}" for m in _memory(size)]
    return lines


def _source(mnemonic: str, sizes: tuple[int, ...] = WIDE) -> list[str]:
    """Register := function of register or memory."""
    lines = []
    for n, size in enumerate(sizes):
        lines += [f"{mnemonic} {pair}" for pair in _pairs(size)]
        lines += [f"{mnemonic} {OTHERS[size][2]}, {m}" for m in _some_memory(size, n)]
    return lines


def _extend(mnemonic: str, pairs: tuple[tuple[int, int], ...]) -> list[str]:
    lines = []
    for n, (to, of) in enumerate(pairs):
        legacy = ("al", "bl", "ch", "dh") if of == 8 and to != 64 else ()
        lines += [f"{mnemonic} {OTHERS[to][1]}, {r}" for r in legacy]
        fine = [r for r in OTHERS[of] if r[-1] != "h"]
        lines += [f"{mnemonic} {r}, {s}" for r, s in zip(REGISTERS[to], itertools.cycle(fine), strict=False)]
        lines += [f"{mnemonic} {REGISTERS[to][1]}, {m}" for m in _some_memory(of, n)]
    return lines


def _strings(stem: str, prefixes: tuple[str, ...]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for prefix in prefixes:
        for suffix in "bwdq":
            name = f"{prefix} {stem}{suffix}".strip()
            table[name] = [name]
    return table


def _moves() -> list[str]:
    lines = _binary("mov")
    for size in SIZES:
        lines += [f"mov {r}, {m}" for r in REGISTERS[size][:2] for m in _memory(size)]
        lines += [f"mov {m}, {r}" for r in REGISTERS[size][:2] for m in _memory(size)]
    lines += ["mov rsp, rax", "mov rdi, rsp", "mov rsp, qword ptr [rsp+0x18]", "mov eax, eax", "mov esp, ebx"]
    return lines


def _stack() -> dict[str, list[str]]:
    places = [f"qword ptr {m}" for m in MEMORY]
    registers = [*REGISTERS[64], *OTHERS[64], "rsp", "r15"]
    return {
        "push": [f"push {o}" for o in (*registers, *places, "1", "-1", "0x12345678", "fs", "gs", "ax", "r9w")]
        + [f"push {m}" for m in _some_memory(16, 0)]
        + [".byte 0x66, 0x68, 0x34, 0x92", ".byte 0x66, 0x6a, 0x80"],
        "pop": [f"pop {o}" for o in (*registers, *places, "ax", "r9w", *_some_memory(16, 0))],
        "leave": ["leave"],
        "ret": ["ret", "ret 8", "ret 0xfff8"],
        "repz ret": ["rep ret"],
        "call": ["call .+5", "call .+0x1000", "call .-0x100", *(f"call {o}" for o in (*registers, *places))],
        "jmp": ["jmp .+2", "jmp .+0x1000", "jmp .-0x10", *(f"jmp {o}" for o in (*registers, *places))],
        "lea": [
            f"lea {r}, {m}"
            for r in ("rax", "r13", "ecx", "si", "rsp")
            for m in (*MEMORY, "[rsp-8]")
            if ":" not in m
        ],
    }


def _locked() -> dict[str, list[str]]:
    table = {}
    for mnemonic in ("add", "sub", "and", "or", "xor", "adc", "sbb"):
        lines = [f"lock {mnemonic} {m}, {s}" for size in SIZES for m in _memory(size)[:2]
                 for s in (REGISTERS[size][0], "1")]  # fmt: skip
        table[f"lock {mnemonic}"] = lines
    for mnemonic in ("inc", "dec", "neg", "not"):
        table[f"lock {mnemonic}"] = [f"lock {mnemonic} {m}" for size in SIZES for m in _memory(size)[:2]]
    for mnemonic in ("bts", "btr", "btc"):
        table[f"lock {mnemonic}"] = [
            f"lock {mnemonic} qword ptr [rbx], {s}" for s in ("rax", "5")
        ] + [f"lock {mnemonic} dword ptr gs:[0x1008], eax"]  # fmt: skip
    return table


def _table() -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for name in ("add", "adc", "sub", "sbb", "and", "or", "xor", "cmp"):
        table[name] = _binary(name)
    table["test"] = _binary("test", load=False)
    table["mov"] = _moves()
    table["movabs"] = [f"movabs {r}, 0x123456789abcdef0" for r in ("rax", "r9", "rsp")]
    table |= {name: _unary(name) for name in ("inc", "dec", "neg", "not", "mul")}
    table |= {name: _shift(name) for name in ("shl", "shr", "sar", "rol", "ror")}
    table |= {name: _double_shift(name) for name in ("shld", "shrd")}
    table |= {name: _bits(name) for name in ("bt", "bts", "btr", "btc")}
    table |= {name: _source(name) for name in ("bsf", "bsr", "tzcnt", "popcnt")}
    table["imul"] = _unary("imul") + _source("imul")
    for size in WIDE:
        table["imul"] += [f"imul {pair}, {i}" for pair in _pairs(size) for i in ("3", "0x1234")]
    table |= {f"cmov{c}": _source(f"cmov{c}") for c in CONDITIONS}
    table |= {f"set{c}": [f"set{c} {o}" for o in (*REGISTERS[8], *_some_memory(8, 1))] for c in CONDITIONS}
    table |= {f"j{c}": [f"j{c} .+2", f"j{c} .+0x40", f"j{c} .-0x1000"] for c in CONDITIONS}
    counted = ("jrcxz", "jecxz", "loop", "loope", "loopne")
    table |= {name: [f"{name} .+2", f"{name} .-0x10"] for name in counted}
    table["movzx"] = _extend("movzx", ((16, 8), (32, 8), (64, 8), (32, 16), (64, 16)))
    table["movsx"] = _extend("movsx", ((16, 8), (32, 8), (64, 8), (32, 16), (64, 16)))
    table["movsxd"] = _extend("movsxd", ((64, 32),))
    table["xchg"] = [f"xchg {pair}" for size in SIZES for pair in _pairs(size)]
    table["xchg"] += [f"xchg {m}, {REGISTERS[size][0]}" for size in SIZES for m in _some_memory(size, size)]
    table["bswap"] = [f"bswap {r}" for size in (32, 64) for r in REGISTERS[size]]
    single = (
        "cbw", "cwde", "cdqe", "cwd", "cdq", "cqo", "cld", "std", "clc", "stc", "cmc", "lahf", "sahf", "nop",
        "endbr64", "pause", "lfence", "mfence", "sfence",
    )  # fmt: skip
    table |= {name: [name] for name in single}
    table["nop"] += ["nop word ptr [rax+rax]", "nop dword ptr [rbx+8]", "nop dword ptr [r8+r8*8+0x12345678]"]
    table |= _strings("movs", ("", "rep")) | _strings("stos", ("", "rep")) | _strings("lods", ("",))
    table |= _strings("cmps", ("", "repe", "repne")) | _strings("scas", ("", "repe", "repne"))
    return table | _stack() | _locked()


TABLE = _table()
"""capstone's mnemonic -> assembly lines."""


def assemble(lines: list[str]) -> list[bytes]:
    """The bytes of each line, by the system's assembler."""
    aligned = "".join(f".balign 16, 0xcc\n{line}\n" for line in lines)
    text = f".intel_syntax noprefix\n{aligned}.balign 16, 0xcc\n"
    with tempfile.TemporaryDirectory() as work:
        source, binary = Path(work, "a.o"), Path(work, "a.bin")
        done = subprocess.run(
            ["as", "--64", "-o", source, "-"], input=text, text=True, capture_output=True, check=False
        )
        assert not done.returncode, done.stderr
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", source, binary], check=True)
        code = binary.read_bytes()
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    sizes = [next(decoder.disasm(code[at : at + 16], 0, 1)).size for at in range(0, 16 * len(lines), 16)]
    return [code[16 * n : 16 * n + size] for n, size in enumerate(sizes)]


@functools.cache
def encodings() -> dict[str, tuple[bytes, ...]]:
    """capstone's mnemonic -> the encodings of its lines in `TABLE`, each once."""
    lines = [line for group in TABLE.values() for line in group]
    codes = iter(assemble(lines))
    return {name: tuple(dict.fromkeys(next(codes) for _ in group)) for name, group in TABLE.items()}


REFUSED = (
    "lzcnt eax, eax", "xadd dword ptr [rbx], ebx", "lock xadd qword ptr [rbx], rax", "cmpxchg ebx, ecx",
    "lock cmpxchg qword ptr [rbx], rcx", "cmpxchg16b xmmword ptr [rbx]", "rcl rax, 3", "rcr rax, 1",
    "div rcx",
    "idiv ecx", "mov ds, ax", "mov fs, eax", "pop fs", "pop gs", "lss eax, [rbx]", "retf", "retfq",
    "int 0x80",
    "syscall", "sysenter", ".byte 0x0f, 0x07", "iretd", "int3", "in al, dx", "rep outsb", "cpuid", "rdtsc",
    "rdpmc",
    "xgetbv", "wbinvd", "invd", "invlpg [rax]", "lgdt [rax]", "lidt [rax]", "ltr ax", "lldt ax", "str eax",
    "sldt eax", "sgdt [rax]", "smsw eax", "lmsw ax", "mov rax, cr8", "mov cr8, rax", "mov rax, dr0",
    "mov dr3, rax",
    ".byte 0x66, 0x0f, 0xc8", "rep movsb byte ptr [rdi], byte ptr gs:[rsi]",
    ".byte 0xf2, 0x66, 0x44, 0x0f, 0xad, 0x64, 0x20, 8",
    "mov rax, [ecx]", "lea rax, [esp+r12d+8]", "addr32 rep movsb", "addr32 loop .+4",
    ".byte 0x66, 0x66, 0x01, 0xd8",
    ".byte 0x26, 0x65, 0x8b, 0x00", "data16 jmp .+0x40", ".byte 0xf3, 0xe2, 0x00", ".byte 0xff, 0x18",
    ".byte 0xf2, 0x4c, 0x0f, 0xae, 0xf8", ".byte 0xf3, 0x0f, 0x01, 0xf8",
    ".byte 0x65, 0xff, 0x28", "popfw", "pushfw", "enter 16, 0", "xlat", "movaps xmm0, xmm1", "fld1",
    "fxsave [rax]", "xsave [rax]",
    "vmcall", "vmlaunch", "monitor", "mwait", "rdrand eax", "rdseed eax", "xbegin .+6", "andn eax, ebx, ecx",
    "pdep eax, ebx, ecx", "movbe eax, [rbx]", "adcx eax, ebx", "crc32 eax, bl",
)  # fmt: skip
"""Instructions outside the model: the lifter must say so."""
