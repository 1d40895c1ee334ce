# SPDX-License-Identifier: GPL-2.0-only
"""The engines that are asked: the native model, Unicorn, this machine's processor, the reference.

Unicorn is no part of the tool: it is imported here alone, when it is asked.
"""

from __future__ import annotations

import ctypes as c
import mmap
import os
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from atomicist.crosscheck.generate import Drawn
from atomicist.crosscheck.states import (
    ARENA,
    ARENA_SIZE,
    BACKGROUND,
    CODE,
    CODE_SIZE,
    SLOT,
    Prepared,
    prepare,
)
from atomicist.isa.delivery import KERNEL_CS
from atomicist.isa.ir import Insn
from atomicist.isa.lift import Lifter
from atomicist.isa.registers import GPRS, REGISTERS, SLOTS
from atomicist.isa.system import CR4_FSGSBASE
from atomicist.machine.interpreter import Fault, Machine, Unmodelled
from atomicist.machine.memory import PAGE, Page, PageFlag
from atomicist.machine.target import Target
from atomicist.native import codegen
from atomicist.native.build import BuildError, compiler, runtime_sources, shared_object
from atomicist.native.engine import UNITS, Engine
from atomicist.native.tables import render
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES

HERE: Final = Path(__file__).parent
SPOTS: Final = 3
BATCH: Final = 256
MISSING: Final = "unicorn is not installed: pip install 'atomicist[crosscheck]', or use --without-unicorn"

TRY_UNICORN, TRY_HOST, OPEN_MEMORY, SYSTEM_STATE, REPEATS, WHILE_EQUAL, WHILE_UNEQUAL = (
    1 << i for i in range(7)
)
INTERPRETER, UNICORN, HOST = 1, 2, 3
STOPPED: Final = 100
PLACES: Final = {1000: "flags", 1001: "memory", 1002: "status", 1003: "exception"}


class MissingError(Exception):
    """An engine that was asked for is not there; the message says what to do."""


class CSpot(c.Structure):
    _fields_ = [("at", c.c_uint32), ("unused", c.c_uint32), ("bytes", c.c_char * 16)]


class Request(c.Structure):
    _fields_ = [
        ("r", c.c_uint64 * SLOTS), ("open", c.c_uint64), ("va", c.c_uint64), ("index", c.c_uint32),
        ("size", c.c_uint32), ("how", c.c_uint32), ("nspots", c.c_uint32), ("spots", CSpot * SPOTS),
        ("code", c.c_char * 16),
    ]  # fmt: skip


_REQUEST: Final = struct.Struct(f"={SLOTS}QQQ4I{SPOTS * 'I4x16s'}16s")
"""`Request`, to be filled in one call."""

_NO_SPOT: Final = (0, bytes(16)) * SPOTS


class Outcome(c.Structure):
    _fields_ = [
        ("r", c.c_uint64 * SLOTS), ("hash", c.c_uint64), ("ours", c.c_uint64), ("theirs", c.c_uint64),
        ("status", c.c_uint32), ("property", c.c_uint32), ("refused", c.c_uint32), ("engine", c.c_uint32),
        ("place", c.c_uint32), ("asked", c.c_uint32),
    ]  # fmt: skip


class CUnicorn(c.Structure):
    _fields_ = [
        *((name, c.c_void_p) for name in ("engine", "write", "read", "start", "write_one", "read_one")),
        ("arena", c.c_void_p),
        ("id", c.c_int * 20), ("msr", c.c_int), ("cr2", c.c_int), ("cr3", c.c_int),
    ]  # fmt: skip


class HostRequest(c.Structure):
    _fields_ = [
        ("gpr", c.c_uint64 * 16), ("rflags", c.c_uint64), ("gsbase", c.c_uint64), ("rip", c.c_uint64),
        ("code", c.c_char * 16), ("nspots", c.c_uint32), ("unused", c.c_uint32), ("spots", CSpot * SPOTS),
    ]  # fmt: skip


class HostReply(c.Structure):
    _fields_ = [
        ("gpr", c.c_uint64 * 16),
        *((name, c.c_uint64) for name in ("rflags", "gsbase", "rip", "vector", "error", "address", "hash")),
    ]


HOST_MNEMONICS: Final = frozenset(
    """
    adc add and bsf bsr bswap bt btc btr bts call cbw cdq cdqe clc cld cmc cmova cmovae cmovb cmovbe
    cmove cmovg cmovge cmovl cmovle cmovne cmovno cmovnp cmovns cmovo cmovp cmovs cmp cmpsb cmpsd
    cmpsq cmpsw cqo cwd cwde dec imul inc ja jae jb jbe je jecxz jg jge jl jle jmp jne jno jnp jns
    jo jp jrcxz js lahf lea leave lfence lodsb lodsd lodsq lodsw loop loope loopne mfence mov movabs
    movsb movsd movsq movsw movsx movsxd movzx mul neg nop not or pause pop popcnt push rdgsbase ret
    rol ror sahf sar sbb scasb scasd scasq scasw seta setae setb setbe sete setg setge setl setle
    setne setno setnp setns seto setp sets sfence shl shld shr shrd stc std stosb stosd stosq stosw
    sub test tzcnt wrgsbase xchg xor endbr64
    """.split()  # noqa: SIM905 - it reads better
)
"""What may run on this machine's own processor: unprivileged, and without effect but on its operands."""

PREFIXES: Final = frozenset({"", "lock", "rep", "repe", "repne", "repz"})


def may_run_on_host(p: Prepared) -> bool:
    """Whether the instruction is on the white list; segment registers are the ring's, not compared."""
    prefix, _, mnemonic = p.insn.mnemonic.rpartition(" ")
    segments = {"cs", "ss", "ds", "es", "fs", "gs"}
    named = {p.insn.reg_name(o.reg) for o in p.insn.operands if o.type == 1}
    fs = any(m.segment == "FSBASE" for m in p.memory)
    control = any(n[:2] in ("cr", "dr") for n in named)
    return mnemonic in HOST_MNEMONICS and prefix in PREFIXES and not (named & segments or fs or control)


UNICORN_IS_WRONG: Final = {
    "ret 0xfff8": "the 16-bit immediate is taken as signed; the processor and vol. 2B, RET, say unsigned",
    "lock neg": "flags are those of some other value; the processor, and Unicorn's own NEG, agree with ours",
}
"""Mnemonic, or text, of an instruction -> what Unicorn gets wrong; only the processor is asked then."""

UNICORN_SYSTEM: Final = frozenset(
    """
    pushfq popfq cli sti clac stac swapgs rdgsbase rdfsbase wrgsbase wrfsbase rdmsr wrmsr mov
    lfence mfence sfence pause endbr64 nop
    """.split()  # noqa: SIM905 - it reads better
)
"""System instructions that Unicorn executes as a processor would, in ring 0, where they do not fault."""

NO_OPINION: Final = {
    "iretq": "Unicorn has no descriptor tables to return through; privileged for the processor",
    "sysretq": "Unicorn has no descriptor tables to return through; privileged for the processor",
    "lsl": "the selector's descriptor is Linux's, which neither has",
    "rdpid": "Unicorn's processors lack it; what this one has in TSC_AUX is its system's",
    "verw": "the selector's descriptor is Linux's, which neither has",
    "hlt": "it waits, which the model refuses",
    "int3": "refused: to run into padding is a finding",
    "(bad)": "refused: bytes that are no instruction",
    "ud2": "it raises #UD, which Unicorn does not deliver",
}
"""Mnemonic -> why nobody but the model itself is asked."""

UNICORN_STATES: Final = {
    "pushfq": (
        "RF",
        "it pushes RF as it is; vol. 2B, PUSHF: VM and RF are cleared in the image",
    ),
}
"""Mnemonic -> the flag that, if set, Unicorn treats otherwise than the manual; then it is not asked."""

_BASES: Final = (0xC000_0100, 0xC000_0101, 0xC000_0102)


def may_ask_unicorn(p: Prepared, drawn: Drawn) -> bool:
    """Whether Unicorn has an opinion on the instruction in this state."""
    if p.mnemonic in UNICORN_IS_WRONG or p.text.rpartition(" [")[0] in UNICORN_IS_WRONG:
        return False
    if not drawn.system:
        return True
    stem, file = p.mnemonic.rpartition(" ")[2], drawn.file
    ring0 = file[_CS] == KERNEL_CS and file[_CR4] == CR4_FSGSBASE
    if stem in UNICORN_STATES and file[REGISTERS[UNICORN_STATES[stem][0]].slot]:
        return False
    msr = stem not in ("rdmsr", "wrmsr") or file[_RCX] & 0xFFFF_FFFF in _BASES
    # it keeps the reserved bits of CR3, and bit 63, which says not to flush (vol. 3, 4.10.4.1)
    source = p.operands[1].register if stem == "mov" else ""
    wide = bool(source) and file[REGISTERS[source].slot] >> 40
    return stem in UNICORN_SYSTEM and ring0 and msr and not wide


_CS, _CR4, _RCX, _GSBASE = (REGISTERS[name].slot for name in ("CS", "CR4", "RCX", "GSBASE"))


def code_target(insns: Mapping[int, Insn], kernel_gsbase: int = 0) -> Target:
    """Nothing but the arena and code."""
    flags = PageFlag.KERNEL_ROOT | PageFlag.WRITABLE
    arena = tuple(Page(ARENA + at, BACKGROUND[at : at + PAGE], flags) for at in range(0, ARENA_SIZE, PAGE))
    runs = PageFlag.KERNEL_ROOT | PageFlag.EXECUTABLE
    code = tuple(Page(va, bytes(PAGE), runs) for va in sorted({va & -PAGE for va in insns}))
    return Target(
        name="", build_id="", config=(), insns=MappingProxyType(dict(insns)), gates={}, handlers={},
        places={}, pages=(*arena, *code), regions=(), symbols={}, user_root_bit=0, kernel_cr3=0,
        kernel_gsbase=kernel_gsbase, tr_base=0, fsgsbase=True, reserve=0, slot_bytes=0,
    )  # fmt: skip


class Native(Engine):
    """The native model with ``encodings`` compiled one by one, and the others beside it."""

    def __init__(self, lifter: Lifter, encodings: Sequence[bytes]) -> None:
        """Raises `BuildError`."""
        self.prepared: list[tuple[Prepared, Insn]] = []
        for n, raw in enumerate(encodings):
            va = CODE + SLOT * (1 + n)
            if va >= CODE + CODE_SIZE - SLOT:
                raise ValueError("more encodings than there is room for")
            p = prepare(raw, va)
            self.prepared.append((p, lifter.lift(va, p.raw)))
        target = code_target({insn.va: insn for _, insn in self.prepared})
        super().__init__(target, CODES, EVENTS, ERROR_TOKEN, 1)
        self.reference = Reference(target)
        self._code = codegen.compiled(target, CODES, EVENTS, ERROR_TOKEN)
        sources = runtime_sources() | {"tables.h": render(CODES, EVENTS, ERROR_TOKEN)}
        sources |= {name: (HERE / name).read_text() for name in ("compare.c", "host.h")}
        sources["compare.c"] = _defines() + sources["compare.c"]
        library = c.CDLL(str(shared_object(sources, (*UNITS, "compare.c"))))
        library.crosscheck_new.restype = library.crosscheck_unicorn.restype = c.c_void_p
        library.crosscheck_hash.restype = c.c_uint64
        self._compare = library
        self._driver = c.c_void_p(
            library.crosscheck_new(c.byref(self._image), BACKGROUND, self._code.address)
        )
        if self._driver.value is None:
            raise MemoryError("the native runtime could not allocate its tables")
        self.requests, self.outcomes = (Request * BATCH)(), (Outcome * BATCH)()
        self._others: list[object] = []

    def ask_unicorn(self) -> None:
        """Let Unicorn give its opinion. Raises `MissingError`."""
        uc, ux, raw = import_unicorn()
        machine: Any = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_64)
        machine.ctl_set_cpu_model(ux.UC_CPU_X86_ICELAKE_SERVER)
        machine.mem_map(CODE, CODE_SIZE)
        machine.mem_write(CODE, b"\x90" * CODE_SIZE)
        for p, _ in self.prepared:
            machine.mem_write(p.va, p.raw)
        area = mmap.mmap(-1, ARENA_SIZE)
        arena = c.addressof(c.c_char.from_buffer(area))
        machine.mem_map_ptr(ARENA, ARENA_SIZE, uc.UC_PROT_ALL, arena)
        cr4 = machine.reg_read(ux.UC_X86_REG_CR4)
        # FSGSBASE, SMAP
        machine.reg_write(ux.UC_X86_REG_CR4, cr4 | CR4_FSGSBASE | 1 << 21)
        names = [*GPRS, "FS_BASE", "GS_BASE", "EFLAGS", "RIP"]
        ids = [getattr(ux, f"UC_X86_REG_{name}") for name in names]
        functions = ("uc_reg_write_batch", "uc_reg_read_batch", "uc_emu_start", "uc_reg_write", "uc_reg_read")
        addresses = [c.cast(getattr(raw.uclib, name), c.c_void_p).value for name in functions]
        handle = machine._uch  # noqa: SLF001 - for the raw calls
        table = CUnicorn.from_address(self._compare.crosscheck_unicorn(self._driver))
        table.engine, table.arena = handle.value, arena
        table.write, table.read, table.start, table.write_one, table.read_one = addresses
        table.id[:] = ids
        table.msr, table.cr2, table.cr3 = ux.UC_X86_REG_MSR, ux.UC_X86_REG_CR2, ux.UC_X86_REG_CR3
        self._others += [machine, area]

    def ask_host(self, host: Host) -> None:
        """Let the processor give its opinion."""
        self._compare.crosscheck_host(self._driver, c.c_void_p(host.address), host.to, host.from_)
        self._others.append(host)

    def fill(self, at: int, number: int, drawn: Drawn, how: int) -> None:
        """Make request ``at`` of the next batch: encoding ``number`` in the state ``drawn``."""
        p, insn = self.prepared[number]
        spots = [part for place, content in drawn.spots for part in (place, content)]
        _REQUEST.pack_into(
            self.requests, at * _REQUEST.size, *drawn.file, drawn.open_, p.va, number, insn.size, how,
            len(drawn.spots), *spots, *_NO_SPOT[len(spots) :], p.raw.ljust(16, b"\x90"),
        )  # fmt: skip

    def run(self, count: int) -> None:
        """Execute the first ``count`` requests in all engines. Raises `MissingError` if the helper died."""
        if not self._compare.crosscheck_run(self._driver, self.requests, self.outcomes, count):
            raise MissingError("the process that runs instructions on the processor died; leave out --host")

    def hash(self, arena: bytes) -> int:
        """What `Outcome.hash` is for ``arena``."""
        return int(self._compare.crosscheck_hash(arena))


def _defines() -> str:
    area = {"CODE": CODE, "CODE_SIZE": CODE_SIZE, "ARENA": ARENA, "ARENA_SIZE": ARENA_SIZE}
    return "#include <stdlib.h>\n" + "".join(f"#define {name} {value}ull\n" for name, value in area.items())


def import_unicorn() -> tuple[Any, Any, Any]:
    """unicorn, its constants, its library. Raises `MissingError`."""
    try:
        import unicorn  # noqa: PLC0415 - an extra
        from unicorn import x86_const  # noqa: PLC0415
        from unicorn.unicorn_py3 import unicorn as raw  # noqa: PLC0415
    except ImportError as e:
        raise MissingError(MISSING) from e
    return unicorn, x86_const, raw


class Host:
    """The helper process that runs one instruction at a time on the processor."""

    def __init__(self) -> None:
        """Raises `MissingError` where this machine or system cannot do it."""
        if os.uname().machine != "x86_64":
            raise MissingError(f"--host needs an x86-64 machine; this one is {os.uname().machine}")
        area = {"CODE": CODE, "CODE_SIZE": CODE_SIZE, "ARENA": ARENA, "ARENA_SIZE": ARENA_SIZE}
        defines = [f"-D{name}={value}ull" for name, value in area.items()]
        self._work = tempfile.TemporaryDirectory(prefix="atomicist-host-")
        helper = Path(self._work.name, "helper")
        command: list[str | Path] = [compiler(), "-O1", *defines, "-o", helper, HERE / "host.c"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{compiler()} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")
        size = 2 * ARENA_SIZE + BATCH * 512
        shared = os.memfd_create("atomicist-host")
        os.ftruncate(shared, size)
        self._memory = mmap.mmap(shared, size)
        self.address = c.addressof(c.c_char.from_buffer(self._memory))
        self._process = subprocess.Popen(
            [helper, str(shared)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(shared,)
        )
        os.close(shared)
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self.to, self.from_ = self._process.stdin.fileno(), self._process.stdout.fileno()

    def one(
        self, p: Prepared, values: Mapping[str, int], rflags: int, arena: bytes
    ) -> tuple[dict[str, int], bytes]:
        """One instruction: registers, rflags, vector (1: all went well), error and address; the arena."""
        base, size = self.address, ARENA_SIZE
        c.memmove(base, arena, size)
        request = HostRequest.from_address(base + 2 * size)
        request.gpr[:] = [values[name] for name in GPRS]
        request.rflags, request.gsbase, request.rip, request.nspots = rflags, values["GSBASE"], p.va, 0
        c.memmove(c.addressof(request) + HostRequest.code.offset, p.raw.ljust(16, b"\x90"), 16)
        os.write(self.to, (1).to_bytes(4, "little"))
        if len(os.read(self.from_, 4)) != 4:
            raise MissingError(f"the process that runs instructions on the processor died of {p.text}")
        reply = HostReply.from_address(base + 2 * size + BATCH * c.sizeof(HostRequest))
        names = ("rflags", "vector", "error", "address")
        found = dict(zip(GPRS, reply.gpr, strict=True)) | {"GSBASE": reply.gsbase, "RIP": reply.rip}
        return found | {name: getattr(reply, name) for name in names}, c.string_at(base + size, size)

    def close(self) -> None:
        """End the helper."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._work.cleanup()


class Reference:
    """The reference interpreter on the code of one target."""

    def __init__(self, target: Target) -> None:
        self._machine = Machine(target)
        self._target = target

    def __call__(self, drawn: Drawn) -> tuple[str, list[int], bytes]:
        """One instruction: "" or what stopped it, the registers, the arena."""
        machine, gsbase = self._machine, drawn.file[_GSBASE]
        if machine.target.kernel_gsbase != gsbase:
            machine.target = replace(self._target, kernel_gsbase=gsbase)
        machine.registers[:] = drawn.file
        machine.memory.write(ARENA, BACKGROUND)
        for at, content in drawn.spots:
            machine.memory.write(ARENA + at, content)
        why = ""
        try:
            machine.step()
        except Fault:
            why = "fault"
        except Unmodelled:
            why = "unknown"
        return why, machine.registers, machine.memory.read(ARENA, ARENA_SIZE)
