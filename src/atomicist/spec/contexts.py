# SPDX-License-Identifier: GPL-2.0-only
"""Start contexts: what an event can interrupt, as a table.

What user mode and kernel mode are made of is in `modes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from atomicist.image import safe_ret
from atomicist.isa.delivery import KERNEL_CS, KERNEL_DS, VECTORS
from atomicist.isa.registers import REGISTERS
from atomicist.machine.memory import WORD, RegionKind
from atomicist.machine.target import Place, Target
from atomicist.spec.events import EVENTS
from atomicist.spec.modes import USER_GSBASE, at_the_border, kernel_mode, register_file, user_mode

OTHER_PCID: Final = 6
"""Linux uses 1 to 6 (TLB_NR_DYN_ASIDS); 1, the kernel's of the other contexts, and 6 differ in each of the bits."""
VARIED: Final = re.compile(r"\+(rsp|rip|gsbase)\.([0-9a-f]{1,16})\Z")  # what `varied` has set, in a name


@dataclass(frozen=True, slots=True)
class Context:
    """A context that can be interrupted.

    ``registers`` is a whole register file.  ``expect_df``: it contradicts
    itself, so the only right answer is a double fault.  ``no_stack``: its RSP
    is not a kernel stack's although it runs in ring 0 (the SYSCALL gap).  ``only``: the
    one vector that it is about, "" for all."""

    name: str
    about: str
    registers: tuple[int, ...]
    expect_df: bool = False
    no_stack: bool = False
    only: str = ""

    @property
    def plain(self) -> bool:
        """Whether RSP is what it usually is: the user's, in user memory, or a kernel stack's."""
        return not self.name.endswith(("-hostile", "-wild", "-main", "-main-low"))


def contexts(target: Target) -> tuple[Context, ...]:
    """All start contexts of ``target``, in a fixed order."""
    plain = tuple(
        Context(name, about, register_file(values), name.startswith("contradiction"), "gap" in name)
        for name, about, values in _rows(target)
    )
    return (*plain, *_twice(target), *_edges(target)) if target.claims else plain


def _rows(target: Target) -> Iterator[tuple[str, str, dict[str, int]]]:
    yield from _user_rows(target)
    yield from _kernel_rows(target)
    yield from _gap_rows(target)
    yield from _exit_rows(target)
    if target.claims:
        yield from _contradictions(target)


def _user_rows(target: Target) -> Iterator[tuple[str, str, dict[str, int]]]:
    user = user_mode(target)
    yield "user", "user mode, nothing unusual", user
    flags = dict.fromkeys(("DF", "AC", "NT", "TF", "OF", "SF"), 1)
    yield "user-flags", "user mode with DF, AC, NT and TF set", user | flags
    if target.fsgsbase:
        yield (
            "user-gs-kernel",
            "user mode, GSBASE set to the kernel's own",
            user | {"GSBASE": target.kernel_gsbase},
        )
        yield "user-gs-odd", "user mode, an odd GSBASE", user | {"GSBASE": USER_GSBASE | 1}
        yield (
            "user-gs-negative",
            "user mode, GSBASE in the kernel half",
            user | {"GSBASE": 0xFFFF_FFFF_8000_0000},
        )
    for region in target.regions:
        if region.kind in (RegionKind.IST_STACK, RegionKind.MAIN_STACK):
            hostile = {"RSP": region.top - 0x100}
            yield f"user-rsp-{region.name}", f"user mode, RSP pointing into {region.name}", user | hostile

    for bits, names in ((2, "STIBP"), (4, "SSBD"), (6, "STIBP and SSBD")):
        # with IBRS the kernel says what the user's is, and restores that
        if target.mitigation != "ibrs":
            yield (
                f"user-spec-ctrl-{bits}",
                f"user mode with {names} set in SPEC_CTRL",
                user | {"SPEC_CTRL": bits},
            )
    pcid = target.kernel_cr3 & 0xFFF
    if pcid:
        other = {"CR3": user["CR3"] ^ pcid | OTHER_PCID}
        yield "user-pcid-6", "user mode with the kernel's PCID being 6", user | other
    main = target.main_stack()
    if main is not None:
        low = {"RSP": main.bottom + 0x40}
        yield "user-rsp-main-low", "user mode, RSP pointing to the bottom of the main stack", user | low


def _kernel_rows(target: Target) -> Iterator[tuple[str, str, dict[str, int]]]:
    for name, kind in (
        ("task", RegionKind.TASK_STACK),
        ("irq", RegionKind.IRQ_STACK),
        ("entry", RegionKind.ENTRY_STACK),
    ):
        region = next((r for r in target.regions if r.kind is kind), None)
        if region is None:
            continue
        # there the kernel has just come, or is about to go
        between = at_the_border(target) if kind is RegionKind.ENTRY_STACK else {}
        for below, suffix in ((0x208, ""), (0x200, "-aligned"), (0, "-empty")):
            yield (
                f"kernel-{name}{suffix}",
                f"kernel mode on the {name} stack, {below:#x} bytes in use",
                kernel_mode(target, region.top - below) | between,
            )
        if name == "task":
            yield from _near_rows(target, region.top - 0x208)
            for suffix, whose, aux in (
                ("own", "Linux's own", target.cpunode),
                ("ones", "all ones", 0xFFFF_FFFF),
            ):
                values = kernel_mode(target, region.top - 0x208) | {"TSC_AUX": aux}
                yield f"kernel-task-tsc-aux-{suffix}", f"kernel mode with TSC_AUX {whose}", values
            yield from _unfinished_rows(target, region.top - safe_ret.BELOW)
            pcid = target.kernel_cr3 & 0xFFF
            if pcid and target.user_root_bit:
                other = {"CR3": target.kernel_cr3 ^ pcid | 2}
                yield (
                    "kernel-task-pcid-2",
                    "kernel mode with PCID 2",
                    kernel_mode(target, region.top - 0x208) | other,
                )
    yield from _half_kernel_rows(target)
    main = target.main_stack()
    if main is None:
        return
    size = main.top - main.bottom
    for below in (8, 0xB0, 0xB8, 0x165, size // 2, size - target.reserve - 0xB0 * 4):
        yield (
            f"kernel-main-{below:#x}",
            f"kernel mode on the main stack, {below:#x} bytes in use",
            kernel_mode(target, main.top - below),
        )
    for below in (
        size - target.reserve - 0xB0 * 2,
        size - target.reserve - 0xB0,
        size - target.reserve,
        size - 8,
    ):
        yield (
            f"kernel-main-full-{below:#x}",
            f"kernel mode on the main stack with {size - below:#x} bytes left: some nestings have no room",
            kernel_mode(target, main.top - below),
        )


def _near_rows(target: Target, rsp: int) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Right before and right behind the atomic entries' text."""
    for end, where, before in (("start", "before", 1), ("end", "behind", 0)):
        at = target.symbols.get(f"__atomic_ist_text_{end}")
        if at is not None:
            values = kernel_mode(target, rsp) | {"RIP": at - before}
            yield f"kernel-task-{where}", f"kernel mode, RIP right {where} the atomic entries' text", values


def _unfinished_rows(target: Target, rsp: int) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Within each sequence that must not be resumed; the image has the return addresses at ``rsp``."""
    for va in sorted(target.places):
        if int(target.places[va]) & int(Place.LEA_LEFT | Place.RET_LEFT):
            where = target.symbolize(va)
            about = f"kernel mode in a safe-RET, at {where} ({target.insns[va].text})"
            yield f"kernel-task-{where}", about, kernel_mode(target, rsp) | {"RIP": va}


def _half_kernel_rows(target: Target) -> Iterator[tuple[str, str, dict[str, int]]]:
    """On the entry stack, with CR3, GSBASE and SPEC_CTRL each the kernel's or the user's: on
    the way from user mode, by an exception, and back."""
    entry = next((r for r in target.regions if r.kind is RegionKind.ENTRY_STACK), None)
    if entry is None:
        return
    user = user_mode(target)
    kernel = kernel_mode(target, entry.top - 0x40) | at_the_border(target)
    pcid = target.kernel_cr3 & 0xFFF
    sides = (
        {"CR3": user["CR3"] ^ pcid | OTHER_PCID if pcid else user["CR3"]},
        {"GSBASE": user["GSBASE"], "KERNEL_GSBASE": target.kernel_gsbase},
    )
    specs = {user["SPEC_CTRL"], kernel["SPEC_CTRL"]}
    for cr3 in range(2):
        for gs in range(2):
            for spec in sorted(specs):
                values = kernel | (sides[0] if cr3 else {}) | (sides[1] if gs else {}) | {"SPEC_CTRL": spec}
                names = [n for n, on in (("cr3", cr3), ("gs", gs), (f"spec{spec}", len(specs) > 1)) if on]
                if cr3 or gs or spec != kernel["SPEC_CTRL"]:
                    where = "-".join(names)
                    yield (
                        f"entry-user-{where}",
                        f"on the entry stack with the user's {' '.join(names)}",
                        values,
                    )


GAPS: Final = (
    ("entry_SYSCALL_64", "entry_SYSCALL_64_safe_stack"),
    ("entry_SYSRETQ_unsafe_stack", "entry_SYSRETQ_end"),
)
"""Ranges of code that run in ring 0 on the user's RSP (Linux entry_64.S)."""


def _gap_rows(target: Target) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Each instruction of each gap, with the CR3 and GSBASE in force there, and with
    RSP in user memory, in a stack of ours, and not canonical."""
    user = user_mode(target)
    nmi = next((r for r in target.regions if r.kind is RegionKind.IST_STACK), None)
    stacks = {"": user["RSP"], "-hostile": nmi.top - 0x100 if nmi else 0, "-wild": 0x8000_0000_0000_0000}
    main = target.main_stack()
    if main is not None:
        stacks |= {"-main": main.top - 0x100, "-main-low": main.bottom + 0x40}
    for start, end in GAPS:
        if start not in target.symbols or end not in target.symbols:
            continue
        state = {"CS": KERNEL_CS, "SS": KERNEL_DS, "IF": 0}
        if start != GAPS[0][0]:
            state |= {"GSBASE": target.kernel_gsbase, "KERNEL_GSBASE": USER_GSBASE}
        va = target.symbols[start]
        while va < target.symbols[end]:
            insn = target.insns.get(va)
            if insn is None:
                break
            for suffix, rsp in stacks.items():
                where = target.symbolize(va)
                about = f"SYSCALL gap at {where} ({insn.text}), user RSP{suffix.replace('-', ' ')}"
                yield f"gap-{where}{suffix}", about, user | state | {"RIP": va, "RSP": rsp}
            if insn.text == "swapgs":
                now = user | state
                state |= {"GSBASE": now["KERNEL_GSBASE"], "KERNEL_GSBASE": now["GSBASE"]}
            if ", cr3" not in insn.text and insn.text.startswith("mov cr3"):
                state["CR3"] = target.kernel_cr3
            va = insn.next


def _exit_rows(target: Target) -> Iterator[tuple[str, str, dict[str, int]]]:
    """A bad IRET: #GP raised by the return to user mode, in ring 0, with the user's
    CR3 and GSBASE, on the entry stack."""
    entry = next((r for r in target.regions if r.kind is RegionKind.ENTRY_STACK), None)
    stub = target.symbols.get("asm_exc_general_protection")
    if entry is None or stub is None:
        return
    user = user_mode(target)
    bad = {"CS": KERNEL_CS, "SS": KERNEL_DS, "IF": 0, "RIP": stub, "RSP": (entry.top - 40 & ~0xF) - 48}
    yield "bad-iret", "IRET to user mode faulted: #GP's first instruction", user | bad
    yield (
        "bad-iret-gs-kernel",
        "IRET to user mode faulted, and the user's GSBASE is the kernel's own",
        user | bad | ({"GSBASE": target.kernel_gsbase} if target.fsgsbase else {}),
    )


def _contradictions(target: Target) -> Iterator[tuple[str, str, dict[str, int]]]:
    for region in target.regions:
        if region.kind is RegionKind.IST_STACK:
            yield (
                f"contradiction-rsp-{region.name}",
                f"kernel mode with RSP on {region.name} but RIP in no atomic entry",
                kernel_mode(target, region.top - 0x100),
            )
    task = next((r for r in target.regions if r.kind is RegionKind.TASK_STACK), None)
    for vector in EVENTS:
        gate = target.gates.get(vector)
        if task is not None and gate is not None:
            name = target.symbolize(gate.offset)
            yield (
                f"contradiction-rip-{name}",
                f"RIP in the atomic entry {name} but RSP on the task stack",
                kernel_mode(target, task.top - 0x208) | {"RIP": gate.offset},
            )


def _twice(target: Target) -> Iterator[Context]:
    """A vector that arrives inside its own entry, as an NMI may when RSM unmasks it
    (SDM vol. 3, 32.8): the first frame is overwritten, so only a double fault is right."""
    for vector in EVENTS:
        gate = target.gates.get(vector)
        stack = next((r for r in target.regions if r.name == f"{vector.lower()}_stack"), None)
        if gate is None or stack is None:
            continue
        below = 48 if VECTORS[vector].has_error_code else 40
        inside = kernel_mode(target, stack.top - below) | {"RIP": gate.offset, "IF": 0}
        yield Context(
            f"contradiction-twice-{vector.lower()}", f"{vector} at the first instruction of its own entry",
            register_file(inside), expect_df=True, only=vector,
        )  # fmt: skip


def _edges(target: Target) -> Iterator[Context]:
    """Contradictions at the first and the last place where there is one: the words of an IST
    stack, the instructions of an entry up to its commit.  How a place is told from others does
    not depend on the event, but for what lies at either end of all of them."""
    stacks = [r for r in target.regions if r.kind is RegionKind.IST_STACK]
    lowest, highest = min(r.bottom for r in stacks), max(r.top for r in stacks)
    task = next((r for r in target.regions if r.kind is RegionKind.TASK_STACK), None)
    for region in stacks:
        for end, rsp in (("bottom", region.bottom), ("top", region.top - WORD)):
            outer = region.bottom == lowest if end == "bottom" else region.top == highest
            yield Context(
                f"contradiction-rsp-{region.name}-{end}",
                f"kernel mode with RSP at the {end} of {region.name} but RIP in no atomic entry",
                register_file(kernel_mode(target, rsp)), expect_df=True, only="" if outer else EVENTS[0],
            )  # fmt: skip
    known = target.symbols
    names = [(f"__atomic_ist_{v.lower()}_text", f"atomic_ist_committed_{v.lower()}") for v in EVENTS]
    texts = [(known[a], known[b]) for a, b in names if a in known and b in known]
    if task is None:
        return
    for start, behind in texts:
        inside = [va for va in target.insns if start <= va < behind]
        for name, va in (("first", min(inside)), ("last", max(inside))):
            outer = start == min(texts)[0] if name == "first" else behind == max(texts)[1]
            where = target.symbolize(va)
            yield Context(
                f"contradiction-rip-{name}-{where}",
                f"RIP at the {name} instruction of an atomic entry, {where}, but RSP on the task stack",
                register_file(kernel_mode(target, task.top - 0x208) | {"RIP": va}), expect_df=True,
                only="" if outer else EVENTS[0],
            )  # fmt: skip


def varied(base: Context, values: Mapping[str, int]) -> Context:
    """``base`` with other ``values`` in some registers; its name says which."""
    registers = list(base.registers)
    words = []
    for name, value in sorted(values.items()):
        slot = REGISTERS[name].slot
        if registers[slot] != value:
            registers[slot] = value
            words.append(f"+{name.lower()}.{value:x}")
    about = f"{base.about}, and {' '.join(w[1:].replace('.', '=0x') for w in words)}"
    return replace(base, name=base.name + "".join(words), about=about, registers=tuple(registers))


def find(target: Target, name: str) -> Context | None:
    """The start context ``name``, also one that `varied` made; None if there is none."""
    values: dict[str, int] = {}
    # an instruction's name may have a + in it too
    while (match := VARIED.search(name)) is not None:
        values[match[1].upper()] = int(match[2], 16)
        name = name[: match.start()]
    found = next((c for c in contexts(target) if c.name == name), None)
    return varied(found, values) if found is not None and values else found


def from_key(target: Target, name: str, key: Mapping[str, int], rip: int) -> Context:
    """A context met during the search: ``key`` registers, ``rip``, tokens elsewhere."""
    values = kernel_mode(target, 0) | dict(key) | {"RIP": rip, "IF": 0}
    return Context(name, f"interrupted at {target.symbolize(rip)}", register_file(values))
