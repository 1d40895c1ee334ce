# SPDX-License-Identifier: GPL-2.0-only
"""The bare guest in QEMU and the reference interpreter, side by side in the same state."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from atomicist.guest.qemu import Hardware, Vm
from atomicist.isa.delivery import BY_NUMBER, VECTORS, Gate
from atomicist.isa.ir import Insn
from atomicist.isa.lift import Lifter
from atomicist.isa.registers import FLAG_BITS, GPRS, RFLAGS_FIXED
from atomicist.machine.interpreter import Fault, Machine
from atomicist.machine.memory import PAGE, Page, PageFlag
from atomicist.machine.target import Target
from tests.isa.engines import target_of

HERE: Final = Path(__file__).parent
COMMAND: Final = (
    "gcc",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none,--no-warn-rwx-segments,-z,noexecstack",
)
COMPARED: Final = (*GPRS, "RIP", "CS", "SS", "FSBASE", "GSBASE", "KERNEL_GSBASE", "CR0", "CR3", "CR4")
STEPS: Final = 8
"""Single steps in which nothing may happen: the APIC asking for attention takes one for itself."""

CODE: Final = ("go", "program", "shadow", "read_msr", "write_msr")
KERNEL: Final = (0x10, 0x18)
USER: Final = (0x33, 0x2B)
IST: Final = {"NMI": 1, "DB": 2, "MC": 3, "DF": 4}
"""Gates with a stack of their own, as Linux has them; `Bare.gate` changes that."""


@functools.cache
def image() -> Path:
    """The bare guest, built."""
    made = Path(tempfile.mkdtemp(prefix="bare-")) / "bare.elf"
    subprocess.run(
        [*COMMAND, f"-Wl,-T,{HERE / 'bare.lds'}", "-o", str(made), str(HERE / "bare.S")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return made


@functools.cache
def symbols() -> Mapping[str, int]:
    """The labels of the bare guest."""
    with image().open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {s.name: int(s["st_value"]) for s in table.iter_symbols()}


@functools.cache
def instructions() -> Mapping[int, Insn]:
    """All that may execute, lifted: the pieces of code, and the stub of every vector."""
    at = symbols()
    with image().open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        data, base = text.data(), int(text["sh_addr"])
    lifter = Lifter()
    found: dict[int, Insn] = {}
    starts = [(at[name], 16) for name in CODE] + [(at["stubs"] + 16 * v, 11) for v in range(256)]
    for start, length in starts:
        here = start
        while here < start + length:
            insn = lifter.lift(here, data[here - base : here - base + 15])
            found[here] = insn
            here = insn.next
    return found


class Bare:
    """Both engines. What is set or delivered here happens to both; `check` compares them."""

    def __init__(self, vm: Vm) -> None:
        self.vm, self.rsp, self.at = vm, vm.rsp, symbols()
        vm.load("ready")
        self.gates: dict[str, Gate] = {}
        for name, vector in VECTORS.items():
            self.gates[name] = Gate(vector, self.stub(vector.number), 0)
        self._pages = self._memory()
        self.model = Machine(self._target())
        self._take_over()
        for name, ist in IST.items():
            self.gate(name, ist)

    def stub(self, number: int) -> int:
        """Where the handler of vector ``number`` starts."""
        return self.at["stubs"] + 16 * number

    def _memory(self) -> tuple[Page, ...]:
        flags = PageFlag.KERNEL_ROOT | PageFlag.WRITABLE | PageFlag.EXECUTABLE
        low, high = self.at["boot32"] & -PAGE, self.at["data_end"]
        return tuple(Page(a, self.rsp.read(a, PAGE), flags) for a in range(low, high, PAGE))

    def _target(self) -> Target:
        return target_of(
            instructions(), self._pages, 0, tr_base=self.at["tss"], gates=MappingProxyType(self.gates)
        )

    def _take_over(self) -> None:
        now = self.rsp.registers()
        for name in COMPARED:
            self.model[name] = now[name]
        self.model["TR_BASE"] = self.at["tss"]
        for flag, (bit, width) in FLAG_BITS.items():
            self.model[flag] = now["RFLAGS"] >> bit & ((1 << width) - 1)

    # --- the same for both ---

    def gate(self, name: str, ist: int) -> None:
        """Give the gate of ``name`` the IST slot ``ist``."""
        vector = VECTORS[name]
        self.gates[name] = Gate(vector, self.stub(vector.number), ist)
        self.write(self.at["idt"] + 16 * vector.number + 4, bytes([ist]))

    def write(self, address: int, data: bytes) -> None:
        """Put ``data`` into memory."""
        self.rsp.write(address, data)
        for i, byte in enumerate(data):
            self.model.memory.poke(address + i, 1, byte)

    def set(self, **values: int) -> None:
        """Set registers (not segments, not flags)."""
        self.rsp.set(**values)
        for name, value in values.items():
            self.model[name] = value

    def enter(self, rip: int, rsp: int, flags: int, selectors: tuple[int, int], **other: int) -> None:
        """Go on at ``rip`` by IRET, in ring 3 or 0 as ``selectors`` (CS, SS) say."""
        self.frame(rip, selectors[0], flags, rsp, selectors[1])
        self.set(RIP=self.at["go"], RSP=self.at["frames"] + 0x800, **other)
        self.step()

    def frame(self, *words: int) -> None:
        """Put a frame where `enter` and a test's IRET look for it."""
        data = b"".join((w & (1 << 64) - 1).to_bytes(8, "little") for w in words)
        self.write(self.at["frames"] + 0x800, data)

    def step(self) -> str:
        """One instruction in both; the vector that it raised in the model, or ""."""
        self.advance()
        return self.model_step()

    def model_step(self) -> str:
        """One instruction in the model alone."""
        try:
            self.model.step()
        except Fault as e:
            return self.model.raise_fault(e, self.gates)
        return ""

    def advance(self) -> dict[str, int]:
        """One instruction, or one delivery, in QEMU alone; its registers then."""
        before = now = self.rsp.registers()
        for _ in range(STEPS):
            self.rsp.step(10)
            now = self.rsp.registers()
            if now != before:
                return now
        return now

    def deliver(self, vector: str) -> None:
        """An event from outside, in both: NMI or MC."""
        self.pend(vector)
        self.advance()
        self.model.deliver(self.gates[vector])

    def pend(self, vector: str) -> None:
        """Make ``vector`` pending in QEMU."""
        if vector == "NMI":
            self.vm.inject_nmi()
        else:
            self.vm.inject_mce()

    # --- comparing ---

    def differences(self, *, memory: bool = True) -> dict[str, tuple[int, int]]:
        """What is not the same: name -> (QEMU, model)."""
        now = self.rsp.registers()
        found = {n: (now[n], self.model[n]) for n in COMPARED if now[n] != self.model[n]}
        flags = self.flags()
        if now["RFLAGS"] != flags:
            found["RFLAGS"] = now["RFLAGS"], flags
        if memory:
            for page in self._pages:
                got = self.rsp.read(page.base, PAGE)
                want = self.model.memory.peek(page.base, PAGE).to_bytes(PAGE, "little")
                for i in range(0, PAGE, 8):
                    if got[i : i + 8] != want[i : i + 8]:
                        found[self.place(page.base + i)] = (
                            int.from_bytes(got[i : i + 8], "little"),
                            int.from_bytes(want[i : i + 8], "little"),
                        )
        return found

    def flags(self) -> int:
        """The model's RFLAGS as one word."""
        return RFLAGS_FIXED | sum(self.model[f] << bit for f, (bit, _) in FLAG_BITS.items())

    def place(self, address: int) -> str:
        """``address`` as a stack's top minus something, or in hexadecimal."""
        for name, top in self.at.items():
            if name.endswith("_stack_top") and top - PAGE <= address < top:
                return f"{name}-{top - address:#x}"
        return f"{address:#x}"

    def check(self) -> None:
        """Both are in the same state, memory included."""
        assert not {k: tuple(map(hex, v)) for k, v in self.differences().items()}

    def where(self) -> str:
        """The vector at whose handler QEMU stands, or ""."""
        offset = self.rsp["RIP"] - self.at["stubs"]
        if offset % 16 or not 0 <= offset < 16 * 256:
            return ""
        vector = BY_NUMBER.get(offset // 16)
        return vector.name if vector else str(offset // 16)


def start() -> Vm:
    """The bare guest, standing still, with a snapshot "ready"."""
    directory = image().parent
    vm = Vm(Hardware(image(), snapshots=True, paused=True, memory=64), directory / "console.log")
    vm.__enter__()
    try:
        vm.rsp.breakpoint(symbols()["ready"])
        vm.rsp.resume(60)
        vm.rsp.only(set())
        vm.save("ready")
    except BaseException:
        vm.end()
        raise
    return vm
