# SPDX-License-Identifier: GPL-2.0-only
"""Accesses that are refused, against this processor: which exception, where, and what registers are left."""

import pytest

from atomicist.crosscheck.states import ARENA, ARENA_SIZE, FLAGS, State
from atomicist.isa.delivery import GP
from atomicist.isa.registers import GPRS
from atomicist.machine.interpreter import Fault
from tests.isa.compare import difference
from tests.isa.engines import PLACES, host, reference, reference_machine
from tests.isa.ring0 import code

LINES = (
    "mov rax, [rbx]", "mov [rbx], rax", "mov rax, [rsp]", "mov [rsp+rcx], al", "mov rax, [rbp-8]",
    "mov rax, [rcx+rbp]",
    "mov rax, [rbp+rcx]", "push rax", "pop rax", "ret", "call .+16", "leave", "push [rbx]", "pop [rbx]",
    "add [rbx], rax",
    "cmp [rbx], rax", "cmovb rax, [rbx]", "rep movsq", "rep stosb", "lodsq", "scasb", "cmpsq",
    "mov rax, gs:[rbx]",
    "mov gs:[rbp], rax", "xchg [rbp], rax", "bt [rbx], rcx", "lock btr [rbx], rcx",
    "movzx eax, byte ptr [r12]",
    "jmp [rbx]", "call [rbx]", "setb [rbx]", "not qword ptr [rbx]",
)  # fmt: skip
"""Each with all registers that it addresses memory by pointing to one bad place."""

READ_FIRST = ("add [rbx], rax", "xchg [rbp], rax", "lock btr [rbx], rcx", "not qword ptr [rbx]")
"""Read and written: a processor asks for both at once, the model for reading first.  The same accesses are
refused, but the W/R bit of the error code is the read's (SDM vol. 3, 4.7)."""

ONE_BYTE = ("bt [rbx], rcx", "lock btr [rbx], rcx")
"""A bit string is accessed by the byte, where a processor "may access" the whole operand around it (SDM
vol. 2A,
BT): the same bits, but less of the neighbourhood is touched."""

WRITE = 2
PLACES_OF_FAULT = {
    "not canonical": 0x0000_9000_0000_0000,
    "below": ARENA - 4,
    "above": ARENA + ARENA_SIZE - 3,
    "far": 0x4000_0000,
}


@pytest.mark.parametrize("line", ["ret", "jmp rax", "call rax", "jmp [rbx]"])
def test_branch_to_nowhere(line: str) -> None:
    """A processor refuses a branch to an address that is not canonical; the model, the fetch after it."""
    processor = host()
    nowhere = 0x0000_9000_0000_0000
    p, insn = PLACES.get(code(line))
    registers = dict.fromkeys((*GPRS, "FSBASE", "GSBASE", *FLAGS), 0)
    registers |= {"RAX": nowhere, "RBX": ARENA, "RSP": ARENA + 0x1000}
    arena = bytearray(ARENA_SIZE)
    arena[:8] = arena[0x1000:0x1008] = nowhere.to_bytes(8, "little")
    state = State(registers, bytes(arena))
    assert processor.run(p, state).vector == GP.number
    machine = reference_machine(state, insn)
    machine.step()
    assert machine["RIP"] == nowhere
    with pytest.raises(Fault) as e:
        machine.step()
    assert (e.value.vector, e.value.error, e.value.reason) == (GP.number, 0, "fetch")


@pytest.mark.parametrize("where", PLACES_OF_FAULT)
@pytest.mark.parametrize("line", LINES)
def test_fault(line: str, where: str) -> None:
    processor = host()
    bad = PLACES_OF_FAULT[where]
    p, insn = PLACES.get(code(line))
    registers = dict.fromkeys((*GPRS, "FSBASE", "GSBASE", *FLAGS), 0) | {"RCX": 8, "RAX": 0x1234, "CF": 1}
    registers |= dict.fromkeys(("RBX", "RSP", "RBP", "RSI", "RDI", "R12"), bad)
    if line in ("push [rbx]", "pop [rbx]", "call [rbx]"):
        registers["RSP"] = ARENA + 0x1000
    state = State(registers, bytes(ARENA_SIZE))
    if line in ONE_BYTE and where != "not canonical":
        assert reference(state, insn).vector in (14, -1)
        return
    ours, theirs = reference(state, insn), processor.run(p, state)
    assert not difference(p, state, ours, theirs)
    if ours.vector == 14:
        assert ours.address == theirs.address
        # The processor ran it as user: all bits but those of presence and U/S say the same.
        assert line in READ_FIRST or ours.error & WRITE == theirs.error & WRITE
    elif ours.vector >= 0:
        assert ours.error == theirs.error == 0
    assert ours.vector >= 0 or where in ("below", "above")
