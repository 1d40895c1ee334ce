# SPDX-License-Identifier: GPL-2.0-only
"""Results and replays made by hand, with the names that a hostile image would choose."""

from collections.abc import Mapping

from atomicist.isa.delivery import KERNEL_CS, KERNEL_DS, NMI, Gate
from atomicist.isa.registers import BY_SLOT, REGISTERS, SLOTS
from atomicist.machine.memory import Region, RegionKind
from atomicist.machine.target import Target
from atomicist.search.replay import Replay, Step, Verdict, Write
from atomicist.search.result import Coverage, Finding, Result
from atomicist.search.schedule import Injection, Schedule
from atomicist.spec.contexts import Context
from atomicist.spec.instance import Instance

HOSTILE = "[red]\x1b[31m\u202e<&\"'>\n#]]>"
"""Markup, a terminal escape, a bidirectional override, XML and a line break."""

FINDING = Finding("IST001", "user:NMI,MC@asm_exc_nmi+0x2b", "RDI", 0xA70A, None, "exc_nmi")
COVERAGE = Coverage(1000, 31_746_014_585, 81_429, 81_429, 1_029_381, 142, 30_545_611)


def result(
    *findings: Finding,
    closed: bool = True,
    because: str = "",
    image: str = "atomic_ist",
    interrupted: bool = False,
) -> Result:
    """A result; with findings it is not closed."""
    return Result(
        image, "0123abcd", ("cc=gcc", "pti"), "native (certificates)", COVERAGE, closed and not findings,
        because, findings, 504, 7688, 12.5, interrupted,
    )  # fmt: skip


TOP = 0xFFFF_FE00_0000_9000
ENTRY = 0xFFFF_FFFF_8100_0000
HANDLER = 0xFFFF_FFFF_8120_0000
INTERRUPTED = 0xFFFF_FFFF_8140_0000


def registers(values: Mapping[str, int]) -> tuple[int, ...]:
    """A register file with ``values`` in it."""
    file = [0] * SLOTS
    for register, value in values.items():
        file[REGISTERS[register].slot] = value
    return tuple(file)


def target(symbol: str = "asm_exc_nmi", stack: str = "nmi_stack") -> Target:
    """A target without code: one stack, one gate, one handler."""
    return Target(
        name="made by hand", build_id="", config=(), insns={}, gates={"NMI": Gate(NMI, ENTRY, 2)},
        handlers={HANDLER: "NMI"}, places={}, pages=(),
        regions=(Region(stack, TOP - 0x1000, TOP, RegionKind.IST_STACK),),
        symbols={symbol: ENTRY, "exc_nmi": HANDLER}, user_root_bit=0, kernel_cr3=0, kernel_gsbase=0,
        tr_base=0, fsgsbase=True, reserve=0, slot_bytes=0,
    )  # fmt: skip


def overwritten(symbol: str = "asm_exc_nmi", stack: str = "nmi_stack", about: str = "kernel mode") -> Replay:
    """An NMI whose frame the next NMI overwrites, after an IRET of who knows whom."""
    start = {"RIP": INTERRUPTED, "RSP": 0xFFFF_8880_0000_3DF8, "CS": KERNEL_CS, "SS": KERNEL_DS, "IF": 1}
    context = Context("kernel-task", about, registers(start))
    made = target(symbol, stack)
    schedule = Schedule(context.name, (Injection("NMI", None), Injection("NMI", ENTRY)))
    wrong = Verdict("IST001", "RIP", INTERRUPTED, ENTRY, HANDLER, "violated")
    replay = Replay(made, context, schedule, wrong)
    texts = (
        ("deliver", INTERRUPTED, "NMI", 0), ("insn", ENTRY + 8, "iretq", 1), ("deliver", ENTRY, "NMI", 1),
        ("handler", HANDLER, f"{symbol}()", 2), ("insn", ENTRY + 8, "iretq", 2),
        ("handler", HANDLER, "exc_nmi()", 1),
    )  # fmt: skip
    replay.steps = [Step(i, kind, rip, text, depth) for i, (kind, rip, text, depth) in enumerate(texts)]
    first = (INTERRUPTED, KERNEL_CS, 0x202, start["RSP"], KERNEL_DS)
    second = (ENTRY, KERNEL_CS, 0x2, TOP - 40, 0)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        replay.writes[TOP - 40 + 8 * i] = [
            Write(0, INTERRUPTED, "NMI", "delivery", a, 0),
            Write(2, ENTRY, "NMI", "delivery", b, a),
        ]
    replay.memory = {address: writes[-1].value for address, writes in replay.writes.items()}
    replay.frames = [("NMI", TOP - 40, 40), ("NMI", TOP - 40, 40)]
    replay.instances = [Instance("NMI", dict(zip(BY_SLOT, context.registers, strict=True)), in_entry=False)]
    replay.registers = dict(zip(BY_SLOT, registers({**start, "RIP": HANDLER}), strict=True))
    return replay
