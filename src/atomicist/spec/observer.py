# SPDX-License-Identifier: GPL-2.0-only
"""The observer: judges a run by what hardware and handlers can see.

It keeps the events that were delivered and are not done with, each with the
context it interrupted, and judges three moments:

* a handler is entered: it must be shown the context that its event interrupted,
  in a sound environment.  One exception: an event that hit an entry which had
  not reached its own handler may be shown another context *of the entry code*,
  because such an entry may be resumed elsewhere, as long as all that follows is
  right;
* IRET or SYSRET is executed: the state must be that of an interrupted context,
  in every register; a return into entry code at a place where nobody was
  interrupted is the entry's own business; any other return is a loss;
* the first context runs again: no event may be left unhandled.

This is the definition; native/runtime/observe.c states the same for speed, and
every finding of the native model is replayed here before it is shown.
"""

from __future__ import annotations

from typing import Final

from atomicist.isa.delivery import MCIP, VECTORS
from atomicist.isa.predictions import EVERYTHING
from atomicist.isa.registers import BY_SLOT, FLAG_BITS, GPRS, REGISTERS, RFLAGS_FIXED
from atomicist.machine.interpreter import Machine
from atomicist.machine.memory import PageFlag, Region, RegionKind
from atomicist.machine.target import Place
from atomicist.native.tables import CR3_COMPARED, CR3_PCID, CR3_USER_PCID, PT_REGS
from atomicist.spec.events import ERROR_TOKEN, EVENTS, MASKED_BY_ENTRY
from atomicist.spec.instance import POISON, Instance

NOT_COMPARED: Final = frozenset({"NMI_BLOCKED", "MCG_STATUS", "SHADOW", "EXPOSED"})
"""What a nested event may change for the context that it interrupted."""

_CALLER_SAVED: Final = ("RAX", "RCX", "RDX", "RSI", "RDI", "R8", "R9", "R10", "R11")
_ARITHMETIC: Final = ("CF", "PF", "AF", "ZF", "SF", "OF")
_CLEAR_AT_COMMIT: Final = ("IF", "TF", "NT", "AC", "DF")
_LIVE_KINDS: Final = (RegionKind.TASK_STACK, RegionKind.ENTRY_STACK, RegionKind.IRQ_STACK)
CALL_SLACK: Final = 32
"""Bytes of the handler's reserve that the call and its alignment may use."""


class Violation(Exception):  # noqa: N818 - a verdict, not an error of the program
    """A property is violated: its ``key``, the register or address concerned, and
    what was ``expected`` and ``found`` there."""

    def __init__(self, key: str, subject: str, expected: int | None = None, found: int | None = None) -> None:
        super().__init__(f"{key}: {subject}")
        self.key = key
        self.subject = subject
        self.expected = expected
        self.found = found


class Done(Exception):  # noqa: N818 - the end of a run
    """The first context runs again, unchanged, and every event was handled."""


class DoubleFault(Exception):  # noqa: N818 - the end of a run
    """The entry gave up deliberately, and had cause to."""


def pack_flags(registers: dict[str, int]) -> int:
    """The RFLAGS image of a context."""
    value = RFLAGS_FIXED
    for name, (bit, _) in FLAG_BITS.items():
        value |= registers[name] << bit
    return value


_NOWHERE: Final = Place(0)


class Observer:
    """Watches a reference machine; `push`, `handler`, `returned` are the moments."""

    def __init__(self, machine: Machine, *, expect_df: bool, no_stack: bool) -> None:
        self.machine = machine
        self.target = machine.target
        self.claims = machine.target.claims
        self.expect_df = expect_df
        self.no_stack = no_stack
        self.instances: list[Instance] = []
        self.owed: dict[str, int] = dict.fromkeys(EVENTS, 0)
        self.spare = 0
        self.early = False
        self.masked: set[str] = set()
        self._live: dict[str, int] = {}
        self._saved_live: list[tuple[str, int] | None] = []
        self._start_live()

    def context(self) -> dict[str, int]:
        """The present registers by name."""
        return dict(zip(BY_SLOT, self.machine.registers, strict=True))

    def _user(self) -> bool:
        return bool(self.machine["CS"] & 3)

    def place(self) -> Place:
        """The marks at RIP."""
        return self.target.places.get(self.machine["RIP"], _NOWHERE)

    def marked(self, wanted: Place) -> bool:
        """Whether RIP has one of the marks; asked at each step, so in plain numbers."""
        return bool(int(self.place()) & int(wanted))

    def _start_live(self) -> None:
        rsp, user = self.machine["RSP"], self._user()
        # what the first context will not see again: see `Instance.finish`
        popped = (16 if self.marked(Place.LEA_LEFT) else 8) if self._unfinished() else 0
        for region in self.target.regions:
            here = not user and not self.no_stack and region.bottom <= rsp <= region.top
            live = region.top
            if region.kind in _LIVE_KINDS:
                # in the SYSCALL gap the entry stack is empty: nobody comes or goes by it
                gap = self.no_stack and region.kind is RegionKind.ENTRY_STACK
                free = gap or (user and region.kind is not RegionKind.IRQ_STACK)
                live = rsp + popped if here else region.top if free else region.bottom
            elif region.kind is RegionKind.MAIN_STACK and here:
                live = rsp + popped
            self._live[region.name] = live

    def store(self, address: int, size: int, value: int) -> None:
        """Judge a store, before it happens."""
        region = self.target.region(address)
        if region is not None and address + size > self._live[region.name]:
            raise Violation("LIVE_OVERWRITTEN", f"{region.name} at {address:#x}")
        if self.early and not self.machine.scratch(address):
            raise Violation("WRITE_OUTSIDE", f"{address:#x}")
        flags = self.machine.memory.flags(address)
        constant = flags is not None and int(flags) & int(PageFlag.CONSTANT) and self.claims
        if constant and self.machine.memory.peek(address, size) != value:
            raise Violation(
                "CONSTANT_CHANGED", f"{address:#x}", self.machine.memory.peek(address, size), value
            )

    def gate_open(self, vector: str) -> bool:
        """Whether hardware could deliver ``vector`` here (see `spec.events`)."""
        machine = self.machine
        if vector not in self.target.gates or (machine["SHADOW"] and vector != "MC"):
            return False
        if vector == "NMI" and machine["NMI_BLOCKED"]:
            return False
        if vector == "MC" and machine["MCG_STATUS"] & MCIP:
            return False
        if not self.claims and vector in MASKED_BY_ENTRY:
            # without a commit label, an entry ends where its event's context runs again
            return all(i.vector != vector for i in self.instances)
        return vector not in self.masked

    def push(self, vector: str) -> Instance:
        """An event is about to be delivered: note the context it interrupts."""
        context = self.context()
        if VECTORS[vector].fault_class:
            context["RF"] = 1
        in_entry = self.marked(Place.ENTRY) and not self._user()
        instance = Instance(vector, context, in_entry)
        if self._unfinished() and not instance.finish(
            self.machine.memory, lea_left=self.marked(Place.LEA_LEFT)
        ):
            raise Violation("UNMAPPED", f"{instance.rsp:#x}")
        region = self.target.region(self.machine["RSP"])
        saved = None
        movable = region is not None and region.kind not in (RegionKind.OTHER, RegionKind.IST_STACK)
        ours = self.instances and region is not None and movable and not self._user()
        if ours and region is not None and self._live[region.name] > context["RSP"]:
            saved = (region.name, self._live[region.name])
            self._live[region.name] = context["RSP"]
        self._saved_live.append(saved)
        self.instances.append(instance)
        if vector in MASKED_BY_ENTRY:
            self.masked.add(vector)
        self.early = self.claims
        return instance

    def _unfinished(self) -> bool:
        return self.marked(Place.RET_LEFT | Place.LEA_LEFT) and not self._user()

    def committed(self) -> list[Region]:
        """A commit label was reached: the IST stacks that are free from here."""
        main = self.target.main_stack()
        if main is None or not main.holds(self.machine["RSP"]):
            raise Violation("CLAIM", "RSP", None, self.machine["RSP"])
        self.early = False
        self.masked.clear()
        free = [r for r in self.target.regions if r.kind is RegionKind.IST_STACK]
        for instance in self.instances[1:]:
            if any(r.holds(instance.rsp) for r in free):
                instance.abandoned = True
                # it is nowhere any more, so nothing can return to it
                instance.context = dict.fromkeys(instance.context, 0)
        return free

    def at_label(self) -> None:
        """A commit label was reached, by the commit or by IRET: judge what it claims."""
        wanted = dict.fromkeys((*GPRS, *_CLEAR_AT_COMMIT), 0) | {"RAX": self.machine["RSP"]}
        for name, expected in wanted.items():
            if name != "RSP" and self.machine[name] != expected:
                raise Violation("COMMITTED_STATE", name, expected, self.machine[name])

    def handler(self, vector: str) -> None:
        """A handler is entered: judge what it sees."""
        instance = next((i for i in reversed(self.instances) if i.vector == vector and not i.handled), None)
        if instance is not None and vector == "NMI":
            # NMIs coalesce: a handler that starts later serves all before, and may run for each
            self.spare += self.owed[vector]
            self.owed[vector] = 0
        if instance is None and (self.owed[vector] or (vector == "NMI" and self.spare)):
            if self.owed[vector]:
                self.owed[vector] -= 1
            else:
                self.spare -= 1
            instance = next((i for i in reversed(self.instances) if i.vector == vector), None)
        if self.early:  # with commit labels: whoever calls a handler has committed
            raise Violation("CLAIM", "RIP", None, self.machine["RIP"])
        if instance is None:
            raise Violation("HANDLED_TWICE", vector)
        self._environment(instance)
        self._frame(instance, self.machine["RDI"])
        if VECTORS[vector].has_error_code and self.machine["RSI"] != ERROR_TOKEN:
            raise Violation("HANDLER_CONTEXT", "error code (RSI)", ERROR_TOKEN, self.machine["RSI"])
        instance.handled = True
        self.masked.discard(vector)

    def _environment(self, instance: Instance) -> None:
        machine, target = self.machine, self.target
        wanted = {"GSBASE": target.kernel_gsbase, "CR3": target.kernel_cr3, "AC": 0, "DF": 0}
        if target.mitigation == "ibrs":
            wanted["SPEC_CTRL"] = target.kernel_spec_ctrl
        region = target.region(machine["RSP"])
        if instance.context["CS"] & 3 and region is not None and region.kind is RegionKind.TASK_STACK:
            # Here a handler may change tasks, and the kernel saves as the user's GSBASE what it finds there.
            wanted["KERNEL_GSBASE"] = instance.context["GSBASE"]
        for name, expected in wanted.items():
            kept = CR3_COMPARED if name == "CR3" else (1 << 64) - 1
            if machine[name] & kept != expected & kept:
                raise Violation("ENVIRONMENT", name, expected, machine[name])
        if instance.context["CS"] & 3 and region is not None and region.kind is RegionKind.MAIN_STACK:
            # where it could not change tasks
            raise Violation("ENVIRONMENT", "RSP", None, machine["RSP"])
        # the PCID stays: with another's, what the handler's accesses leave in the TLB is wrong
        pcid = self.instances[0].context["CR3"] & CR3_PCID & ~(CR3_USER_PCID if target.user_root_bit else 0)
        if machine["CR3"] & CR3_PCID != pcid:
            raise Violation("ENVIRONMENT", "CR3", target.kernel_cr3 & CR3_COMPARED | pcid, machine["CR3"])
        if machine["EXPOSED"] & EVERYTHING:  # whatever it calls will return
            raise Violation("PREDICTED", "handler", 0, machine["EXPOSED"])
        rsp = machine["RSP"]
        if rsp + 8 & target.call_alignment - 1 or region is None:  # Linux's -mpreferred-stack-boundary=3
            raise Violation("ENVIRONMENT", "RSP", None, rsp)
        if region.kind is RegionKind.MAIN_STACK and rsp + CALL_SLACK < region.bottom + target.reserve:
            raise Violation("NO_ROOM", "RSP", region.bottom + target.reserve, rsp)

    def _frame(self, instance: Instance, regs: int) -> None:
        shown = {name: self.machine.memory.word(regs + 8 * i) for i, name in enumerate(PT_REGS)}
        if any(value is None for value in shown.values()):
            raise Violation("HANDLER_CONTEXT", "RDI (pt_regs)", None, regs)
        wanted, wrong = instance.context, None
        if instance.hit is not None and shown["RIP"] == instance.hit["RIP"]:
            wanted = wanted | instance.hit  # it may be finished before the handler or behind it
        for name in PT_REGS:
            if name == "ORIG_RAX":
                continue
            expected = pack_flags(wanted) if name == "RFLAGS" else wanted[name]
            if shown[name] != expected and wrong is None:
                wrong = Violation("HANDLER_CONTEXT", name, expected, shown[name])
        open_below = any(not i.handled for i in self.instances[: self.instances.index(instance)])
        to = self.target.places.get(shown["RIP"] or 0, Place(0))
        kernel = not (shown["CS"] or 0) & 3
        replaceable = instance.in_entry or instance.abandoned
        if wrong is not None and open_below and replaceable and kernel and to & Place.ENTRY:
            instance.abandoned = True
            wrong = None
        # of a frame that is wrong altogether the placeholder is not the news
        if wrong is None and shown["ORIG_RAX"] != (1 << 64) - 1:
            wrong = Violation("PLACEHOLDER", "orig_ax", (1 << 64) - 1, shown["ORIG_RAX"])
        if wrong is not None:
            raise wrong

    def adversary(self, vector: str) -> list[Region]:
        """The handler, keeping to the ABI: clobbers, and returns. Gives the stack whose
        free part it overwrites (below RSP)."""
        machine = self.machine
        for name in _CALLER_SAVED:
            machine[name] = POISON | 0xF0F0F0 | REGISTERS[name].slot << 24
        for name in _ARITHMETIC:
            machine[name] = 1
        if vector == "MC":
            machine["MCG_STATUS"] = 0
        region = self.target.region(machine["RSP"])
        back = machine.memory.word(machine["RSP"])
        if back is None:
            raise Violation("NO_CODE", "return address", None, machine["RSP"])
        for_poison = [Region(region.name, region.bottom, machine["RSP"], region.kind)] if region else []
        machine["RSP"] += 8
        machine["RIP"] = back
        return for_poison

    def returned(self) -> None:
        """IRET or SYSRET was executed: judge the state. Raises `Done` at the end."""
        now = self.context()
        if self._unfinished():
            raise Violation("RESUMED_INSIDE", "RIP", self._first_rip(), now["RIP"])
        where = ("RIP", "RSP", "CS")
        matches = [i for i, x in enumerate(self.instances) if all(x.context[n] == now[n] for n in where)]
        if not matches:
            if not self._user() and self.marked(Place.ENTRY):
                return
            raise Violation("LOST_CONTEXT", "RIP", self._first_rip(), now["RIP"])
        index = matches[-1]
        for name, expected in self.instances[index].context.items():
            if name not in NOT_COMPARED and now[name] != expected:
                raise Violation("RESUMED_CONTEXT", name, expected, now[name])
        # an IRET unblocks NMIs; a way out without one leaves them blocked for good
        if index == 0 and now["NMI_BLOCKED"] and not self.instances[0].context["NMI_BLOCKED"]:
            raise Violation("RESUMED_CONTEXT", "NMI_BLOCKED", 0, now["NMI_BLOCKED"])
        for instance in self.instances[index:]:
            if not instance.handled:
                self.owed[instance.vector] += 1
        for saved in reversed(self._saved_live[index:]):
            if saved is not None:
                self._live[saved[0]] = saved[1]
        del self.instances[index:]
        del self._saved_live[index:]
        if not self.instances:
            lost = next((v for v, n in self.owed.items() if n), None)
            if lost is not None:
                raise Violation("EVENT_LOST", lost)
            if self.expect_df:
                raise Violation("NO_DOUBLE_FAULT", "RIP", None, now["RIP"])
            raise Done

    def _first_rip(self) -> int | None:
        return self.instances[0].context["RIP"] if self.instances else None

    def deliberate(self) -> None:
        """The entry raised a double fault on purpose: raise `DoubleFault` if it had
        cause to, else `Violation`."""
        if any(
            i.in_entry and self.target.places.get(i.context["RIP"], Place(0)) & Place.DELIBERATE
            for i in self.instances
        ):
            self._double_fault()
        cause = self._no_room() if self.place() & Place.NO_ROOM else self.expect_df
        if cause:
            self._double_fault()
        raise Violation("DOUBLE_FAULT", self.target.symbolize(self.machine["RIP"]))

    def _double_fault(self) -> None:
        """Its handler is told where the ongoing entry's registers are."""
        ongoing = self.instances[-1]
        pushed_first = "ORIG_RAX" if VECTORS[ongoing.vector].has_error_code else "RIP"
        regs = ongoing.frame - 8 * PT_REGS.index(pushed_first)
        if self.machine["RDI"] != regs:
            raise Violation("DOUBLE_FAULT_REGS", "RDI", regs, self.machine["RDI"])
        raise DoubleFault

    def _no_room(self) -> bool:
        main = self.target.main_stack()
        if main is None:
            return False
        index = len(self.instances) - 1
        while index > 0:
            context = self.instances[index].context
            region = self.target.region(self.instances[index].rsp)
            if context["CS"] & 3 or region is None or region.kind is not RegionKind.IST_STACK:
                break
            index -= 1
        context, rsp = self.instances[index].context, self.instances[index].rsp
        base = main.top
        if not context["CS"] & 3 and not self.no_stack:
            if main.holds(rsp):
                base = rsp & ~15
            region = self.target.region(rsp)
            if (
                region is not None
                and region.kind is RegionKind.ENTRY_STACK
                and rsp - region.bottom < self.target.exit_bytes
            ):
                return True
        levels = len(self.instances) - index
        return base - levels * self.target.slot_bytes < main.bottom + self.target.reserve
