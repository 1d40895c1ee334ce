# SPDX-License-Identifier: GPL-2.0-only
"""Three engines for one instruction: the reference interpreter, Unicorn, and this machine's processor."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import pytest
import unicorn
from unicorn import x86_const as ux

from atomicist.crosscheck import engines
from atomicist.crosscheck.engines import may_run_on_host
from atomicist.crosscheck.states import (
    ARENA,
    ARENA_SIZE,
    CODE,
    CODE_SIZE,
    FLAGS,
    SLOT,
    Prepared,
    Result,
    State,
    prepare,
    spread,
)
from atomicist.isa.ir import Insn
from atomicist.isa.lift import Lifter
from atomicist.isa.registers import GPRS
from atomicist.machine.interpreter import Fault, Machine
from atomicist.machine.memory import PAGE, Page, PageFlag
from atomicist.machine.target import Target
from atomicist.native.build import BuildError

GENERAL: Final = (*GPRS, "FSBASE", "GSBASE")


@functools.cache
def lifter() -> Lifter:
    """The one lifter of these tests."""
    return Lifter()


def target_of(insns: Mapping[int, Insn], pages: tuple[Page, ...], kernel_gsbase: int, **other: Any) -> Target:
    """A target with nothing but code and memory."""
    fields: dict[str, Any] = {
        "name": "test", "build_id": "", "config": (), "insns": MappingProxyType(dict(insns)), "gates": {},
        "handlers": {}, "places": {}, "pages": pages, "regions": (), "symbols": {}, "user_root_bit": 0,
        "kernel_cr3": 0, "kernel_gsbase": kernel_gsbase, "tr_base": 0, "fsgsbase": True, "reserve": 0,
        "slot_bytes": 0,
    }  # fmt: skip
    return Target(**(fields | other))


def arena_pages(arena: bytes) -> tuple[Page, ...]:
    """The arena as pages of kernel memory."""
    flags = PageFlag.KERNEL_ROOT | PageFlag.WRITABLE
    return tuple(Page(ARENA + at, arena[at : at + PAGE], flags) for at in range(0, ARENA_SIZE, PAGE))


def code_page(va: int) -> Page:
    """The page of the instruction at ``va``, executable; the code itself is in the target."""
    return Page(va & -PAGE, bytes(PAGE), PageFlag.KERNEL_ROOT | PageFlag.EXECUTABLE)


def reference_machine(state: State, insn: Insn) -> Machine:
    """The reference interpreter in ``state``, in ring 0, before ``insn``."""
    machine = Machine(
        target_of({insn.va: insn}, (*arena_pages(state.arena), code_page(insn.va)), state.registers["GSBASE"])
    )
    machine["CS"], machine["SS"], machine["RIP"] = 0x10, 0x18, insn.va
    machine["CR4"] = 1 << 16
    for name, value in state.registers.items():
        machine[name] = value
    return machine


def reference(state: State, insn: Insn, extra: tuple[str, ...] = ()) -> Result:
    """Run ``insn`` in the reference interpreter."""
    machine = reference_machine(state, insn)
    vector, error, address = -1, 0, 0
    try:
        machine.step()
    except Fault as e:
        vector, error, address = e.vector, e.error, e.address
    found = {name: machine[name] for name in (*GENERAL, *FLAGS, "RIP", *extra)}
    arena = b"".join(bytes(machine.memory._data[at // PAGE]) for at in range(ARENA, ARENA + ARENA_SIZE, PAGE))
    return Result(found, arena, vector, error, address)


class Places:
    """Gives each encoding its own place in the code area."""

    def __init__(self) -> None:
        self._made: dict[bytes, tuple[Prepared, Insn]] = {}

    def get(self, raw: bytes) -> tuple[Prepared, Insn]:
        """``raw`` prepared and lifted."""
        found = self._made.get(raw)
        if found is None:
            va = CODE + SLOT * (1 + len(self._made))
            assert va < CODE + CODE_SIZE - SLOT, "the code area is full"
            prepared = prepare(raw, va)
            found = self._made[raw] = prepared, lifter().lift(va, prepared.raw)
        return found


PLACES: Final = Places()


def _ended(p: Prepared, found: dict[str, int]) -> bool:
    """Whether a repeated string instruction is done; Unicorn goes round once more to see it."""
    prefix, _, stem = p.insn.mnemonic.partition(" ")
    by_flag = stem[:4] in ("cmps", "scas") and found["ZF"] == (prefix == "repne")
    return found["RCX"] == 0 or by_flag


class Emulator:
    """Unicorn with the arena mapped, in ring 0 without paging.

    Only count=1 is used to stop: mixed with `until` it is not safe.  All code is written to places of its
    own before it first runs, so translated blocks never go stale."""

    def __init__(self) -> None:
        self.engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.engine.ctl_set_cpu_model(ux.UC_CPU_X86_ICELAKE_SERVER)
        self.engine.mem_map(CODE, CODE_SIZE)
        self.engine.mem_write(CODE, b"\x90" * CODE_SIZE)
        self.engine.mem_map(ARENA, ARENA_SIZE)
        names = {"FSBASE": "FS_BASE", "GSBASE": "GS_BASE"}
        self._ids = {name: getattr(ux, f"UC_X86_REG_{names.get(name, name)}") for name in (*GENERAL, "RIP")}
        self._written: set[int] = set()

    def run(self, p: Prepared, state: State) -> Result:
        """Execute the instruction. Raises `unicorn.UcError` for an exception, but not for where it leads."""
        if p.va not in self._written:
            self.engine.mem_write(p.va, p.raw)
            # It may have been translated before, as where another instruction leads.
            self.engine.ctl_remove_cache(p.va, p.va + SLOT)
            self._written.add(p.va)
        self.engine.mem_write(ARENA, state.arena)
        self.engine.reg_write_batch([(self._ids[name], state.registers[name]) for name in GENERAL])
        self.engine.reg_write(ux.UC_X86_REG_EFLAGS, state.rflags)
        found = self._step(p.va)
        if p.insn.mnemonic.startswith("rep") and found["RIP"] == p.va and _ended(p, found):
            found = self._step(p.va)
        return Result(found, bytes(self.engine.mem_read(ARENA, ARENA_SIZE)))

    def _step(self, va: int) -> dict[str, int]:
        try:
            self.engine.emu_start(va, 0, count=1)
        except unicorn.UcError as e:
            if e.errno not in (unicorn.UC_ERR_FETCH_UNMAPPED, unicorn.UC_ERR_FETCH_PROT):
                raise
        values = self.engine.reg_read_batch(list(self._ids.values()))
        found = dict(zip(self._ids, values, strict=True))
        return found | spread(self.engine.reg_read(ux.UC_X86_REG_EFLAGS))


@functools.cache
def emulator() -> Emulator:
    """The one Unicorn of these tests."""
    return Emulator()


class Host:
    """The helper process, which runs one instruction at a time on the processor."""

    def __init__(self) -> None:
        self._host = engines.Host()
        atexit.register(self._host.close)

    def run(self, p: Prepared, state: State) -> Result:
        """Execute the instruction."""
        assert may_run_on_host(p), p.text
        values = {name: state.registers[name] for name in (*GPRS, "GSBASE")}
        found, arena = self._host.one(p, values, state.rflags, state.arena)
        vector, error, address = (found.pop(name) for name in ("vector", "error", "address"))
        rflags = found.pop("rflags")
        found |= {name: spread(rflags)[name] for name in FLAGS}
        # Vector 1: the single step, so all went well.
        return Result(found, arena, -1 if vector == 1 else vector, error, address)


@functools.cache
def host_or_reason() -> Host | str:
    """The helper, or why it cannot work here."""
    try:
        host = Host()
    except (engines.MissingError, BuildError) as e:
        return str(e)
    # A system that emulates signals may not know TF: see that one step is one step.
    state = State(dict.fromkeys((*GENERAL, *FLAGS), 0), bytes(ARENA_SIZE))
    probe, insn = PLACES.get(bytes.fromhex("48 ff c0"))
    result = host.run(probe, state)
    if (result.vector, result.registers["RAX"], result.registers["RIP"]) != (-1, 1, insn.next):
        return "this system does not single-step as a processor does"
    return host


def host() -> Host:
    """The helper; the test is skipped, with the reason, where it cannot work."""
    found = host_or_reason()
    if isinstance(found, str):
        pytest.skip(found)
    return found
