# SPDX-License-Identifier: GPL-2.0-only
"""What entry code can execute and touch: every instruction on every path from given entries.

A machine that runs real code must have mapped whatever that code uses.  This walk finds it out from the
code itself: both ways of each branch, into each call, stopping at C handlers that the caller wants to
replace.  What it cannot follow is listed, never skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import capstone
from capstone import x86_const as x86

from atomicist.image.alternatives import PatchedText
from atomicist.image.errors import ImageError

MAX_INSTRUCTIONS = 100_000
_TOP = 1 << 64
_LOWEST_KERNEL = 0xFFFF_8000_0000_0000

CALL, STUB, DATA, TABLE, PERCPU, ADDRESS = "call", "stub", "data", "table", "per-CPU", "address"

_ENDS = ("ret", "iretq", "iretd", "sysretq", "sysretd", "sysret", "sysexitq", "ud2", "ud1", "int3", "hlt")


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction reached: its address, length in bytes, and text as capstone writes it."""

    at: int
    size: int
    text: str


@dataclass(frozen=True, slots=True)
class Reference:
    """The instruction at `at` (`place`: symbol+offset) names `target`, called `symbol`.

    `kind`: CALL; STUB (a call or jump that leaves to a handler); DATA (memory at a fixed address); TABLE (an
    indexed access, `target` is its base); PERCPU (relative to GSBASE, `target` is the offset); ADDRESS (the
    number itself is used).  `size` in bytes and `write` are of the memory access.
    """

    at: int
    place: str
    kind: str
    target: int
    symbol: str
    size: int
    write: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """The result of `walk`.

    `instructions` are keyed and sorted by address; `functions` are the targets of calls, roots included;
    `unknown` says, one line each, what could not be followed: a machine that runs this code will meet it.
    """

    instructions: dict[int, Instruction]
    functions: tuple[str, ...]
    references: tuple[Reference, ...]
    unknown: tuple[str, ...]

    def of(self, kind: str) -> tuple[Reference, ...]:
        """The references of one kind."""
        return tuple(reference for reference in self.references if reference.kind == kind)

    def symbols(self, kind: str) -> tuple[str, ...]:
        """The symbols named by references of one kind, sorted, each once."""
        return tuple(sorted({reference.symbol for reference in self.of(kind)}))


def walk(
    text: PatchedText, roots: Iterable[int], stubs: frozenset[int], no_return: frozenset[int] = frozenset()
) -> Reach:
    """Follow `text` from the addresses `roots`, but not into `stubs`, nor behind a call of a `no_return`.

    Raises ImageError when more than MAX_INSTRUCTIONS are reached: a stub is missing.
    """
    return _Walk(text, stubs, no_return).run(roots)


class _Walk:
    def __init__(self, text: PatchedText, stubs: frozenset[int], no_return: frozenset[int]) -> None:
        self.text = text
        self.no_return = no_return
        self.kernel = text.kernel
        self.stubs = stubs
        self.decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self.decoder.detail = True
        self.instructions: dict[int, Instruction] = {}
        self.functions: set[int] = set()
        self.references: list[Reference] = []
        self.unknown: list[str] = []
        self.todo: list[int] = []

    def run(self, roots: Iterable[int]) -> Reach:
        self.todo = sorted(roots)
        self.functions.update(self.todo)
        while self.todo:
            at: int | None = self.todo.pop()
            while at is not None and at not in self.instructions:
                at = self.step(at)
                if len(self.instructions) > MAX_INSTRUCTIONS:
                    raise ImageError(
                        f"entry code reaches over {MAX_INSTRUCTIONS} instructions: stub more of C"
                    )
        names = tuple(self.kernel.where(function) for function in sorted(self.functions))
        ordered = tuple(sorted(self.references, key=lambda reference: (reference.at, reference.kind)))
        return Reach(dict(sorted(self.instructions.items())), names, ordered, tuple(sorted(self.unknown)))

    def fetch(self, at: int) -> capstone.CsInsn | None:
        segment = self.kernel.elf.segment(at)
        window = min(15, segment.va + segment.size - at)
        return next(self.decoder.disasm(self.text.read(at, window), at, 1), None)

    def step(self, at: int) -> int | None:
        """Take note of the instruction at `at`; the address of the next one on this path, or None."""
        place = self.kernel.where(at)
        try:
            insn = self.fetch(at)
        except ImageError:
            insn = None
        if insn is None:
            self.unknown.append(f"{place}: no instruction there")
            return None
        self.instructions[at] = Instruction(at, insn.size, f"{insn.mnemonic} {insn.op_str}".rstrip())
        branch = insn.group(x86.X86_GRP_JUMP) or insn.group(x86.X86_GRP_CALL)
        if branch:
            return self.branch(insn, place)
        self.references.extend(self.operands(insn, place))
        return None if insn.mnemonic in _ENDS else at + insn.size

    def branch(self, insn: capstone.CsInsn, place: str) -> int | None:
        call = insn.group(x86.X86_GRP_CALL)
        after = None if insn.mnemonic == "jmp" else insn.address + insn.size
        operand = insn.operands[0]
        if operand.type != x86.X86_OP_IMM:
            self.references.extend(self.operands(insn, place))
            self.unknown.append(f"{place}: {insn.mnemonic} {insn.op_str} goes where a register says")
            return after if call else None
        target = operand.imm % _TOP
        if target in self.stubs | self.no_return:
            self.references.append(self.reference(insn, STUB, target))
            return None if target in self.no_return else after
        if call:
            self.references.append(self.reference(insn, CALL, target))
            self.functions.add(target)
        self.todo.append(target)
        return after

    def operands(self, insn: capstone.CsInsn, place: str) -> Iterator[Reference]:
        for operand in insn.operands:
            if operand.type == x86.X86_OP_IMM and operand.imm % _TOP >= _LOWEST_KERNEL:
                target = operand.imm % _TOP
                # Small negative numbers are numbers: -1, masks.
                if self.kernel.is_text(target):
                    yield self.reference(insn, ADDRESS, target)
            elif operand.type == x86.X86_OP_MEM:
                yield from self.memory(insn, place, operand)

    def memory(self, insn: capstone.CsInsn, place: str, operand: capstone.x86.X86Op) -> Iterator[Reference]:
        memory = operand.mem
        write = bool(operand.access & capstone.CS_AC_WRITE)
        rip = memory.base == x86.X86_REG_RIP
        target = (memory.disp + (insn.address + insn.size if rip else 0)) % _TOP
        register = (memory.base and not rip) or memory.index
        if insn.mnemonic in ("nop", "endbr64"):
            return
        if memory.segment == x86.X86_REG_GS:
            yield self.reference(insn, PERCPU, target, operand.size, write)
        elif memory.segment == x86.X86_REG_FS:
            self.unknown.append(f"{place}: {insn.mnemonic} {insn.op_str} is relative to FSBASE")
        elif insn.mnemonic == "lea":
            if not register and self.kernel.is_text(target):
                yield self.reference(insn, ADDRESS, target)
        elif not register:
            yield self.reference(insn, DATA, target, operand.size, write)
        elif memory.index and target >= _LOWEST_KERNEL and self.kernel.in_image(target):
            yield self.reference(insn, TABLE, target, operand.size, write)

    def reference(
        self, insn: capstone.CsInsn, kind: str, target: int, size: int = 0, write: bool = False
    ) -> Reference:
        at = insn.address
        return Reference(at, self.kernel.where(at), kind, target, self.kernel.where(target), size, write)
