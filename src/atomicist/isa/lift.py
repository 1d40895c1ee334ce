# SPDX-License-Identifier: GPL-2.0-only
"""Machine code -> IR: ordinary instructions by p-code, the rest by microcode.

What SLEIGH's x86 specification gets wrong or leaves out is put right here, so
that nobody downstream needs to know:

* AF is not computed by ADD, SUB and their kin; it is added (SDM vol. 1, 3.4.3.1);
* OF of a SHR by one is the operand's top bit, not zero (SDM vol. 2B, SAL/SAR/SHL/SHR);
* a 32-bit result that is left without its zero extension (LODSD) gets it;
* the last iteration of a repeated string instruction ends the instruction (SDM vol. 2B,
  REP), where SLEIGH goes round once more to see that RCX is zero;
* LOCK is no operation: there is one processor, and events come between instructions;
* system instructions are replaced by `system` microcode;
* a direct reference to memory (a `ram` varnode) becomes LOAD or STORE;
* anything left over - a user-defined operation, a vector register, a wide
  temporary that overlaps another - becomes UNKNOWN, with its name.

P-code is believed only for what `ordinary` lists.
"""

from __future__ import annotations

from typing import Any, Final

import capstone
import pypcode

from atomicist.isa.arithmetic import PURE
from atomicist.isa.ir import Access, Code, Flow, Insn, Op, Space, Var, const, reg
from atomicist.isa.ordinary import STRINGS, plain, refusal
from atomicist.isa.registers import GPRS, REGISTERS, SLEIGH_NAME, SLOT
from atomicist.isa.system import system_ops

MAX_INSN: Final = 15
"""No x86 instruction is longer (SDM vol. 2, 2.3.11)."""

_FLOWS: Final = {
    "BRANCH": Flow.JUMP,
    "CBRANCH": Flow.BRANCH,
    "CALL": Flow.CALL,
    "RETURN": Flow.RET,
    "BRANCHIND": Flow.INDIRECT,
    "CALLIND": Flow.INDIRECT_CALL,
}

_WRITABLE: Final = frozenset(
    REGISTERS[name].offset for name in (*GPRS, "RIP", "CF", "PF", "AF", "ZF", "SF", "DF", "OF", "AC")
)
"""The slots that an ordinary instruction may write; the others are microcode's."""

_WITH_AF: Final = ("INT_SCARRY", "INT_SBORROW")
"""The overflow operations, which name the operands that AF comes from."""

_SLEIGH_ERRORS: Final = (
    pypcode.LowlevelError, pypcode.BadDataError, pypcode.UnimplError, pypcode.DecoderError,
    IndexError,  # bytes that go round the end of the address space
)  # fmt: skip


class _Unsupported(Exception):  # noqa: N818 - said of the instruction
    """Something in an instruction's p-code has no place in the model."""


class Lifter:
    """Lifts single instructions; keeps the SLEIGH context, which is slow to make."""

    def __init__(self) -> None:
        self._pcode = pypcode.Context("x86:LE:64:default")
        self._text = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._text.detail = True
        self._registers = self._register_map()

    def _register_map(self) -> dict[int, tuple[int, int]]:
        """SLEIGH byte offset of a register -> (our byte offset, size)."""
        known = self._pcode.registers
        table = {}
        for ours, theirs in SLEIGH_NAME.items():
            table[known[theirs].offset] = (REGISTERS[ours].offset, known[theirs].size)
        return table

    def lift(self, va: int, code: bytes) -> Insn:
        """The instruction at ``va`` whose bytes ``code`` starts with.

        Bytes that are no instruction, or one outside the model, give an Insn
        whose only operation is UNKNOWN with the reason."""
        decoded = next(self._text.disasm(code[:MAX_INSN], va, 1), None)
        if decoded is None:
            raw = bytes(code[:MAX_INSN])
            text = f"(bad) {raw[:4].hex(' ')}"
            return self._unknown(va, 1, text, raw[:1], f"bytes that are no instruction: {text}")
        raw = bytes(decoded.bytes)
        text = f"{decoded.mnemonic} {decoded.op_str}".strip()
        system = system_ops(decoded.mnemonic, decoded) if plain(raw, decoded.mnemonic) else None
        if system is not None:
            return Insn(va, decoded.size, text, system[0], system[1], None, raw)
        try:
            ops, flow, target = self._translate(va, raw, decoded)
        except (_Unsupported, *_SLEIGH_ERRORS) as e:
            return self._unknown(va, decoded.size, text, raw, f"instruction not modelled: {text} ({e})")
        return Insn(va, decoded.size, text, ops, flow, target, raw)

    @staticmethod
    def _unknown(va: int, size: int, text: str, raw: bytes, why: str) -> Insn:
        return Insn(va, size, text, (Op(Code.UNKNOWN, None, (const(1, 1),), why),), Flow.STOP, None, raw)

    def _translate(self, va: int, raw: bytes, decoded: Any) -> tuple[tuple[Op, ...], Flow, int | None]:
        why = refusal(raw, decoded)
        if why:
            raise _Unsupported(why)
        stem = decoded.mnemonic.rpartition(" ")[2]
        source: list[Any] = list(self._pcode.translate(raw, va).ops)
        marks = [o.inputs[0] for o in source if o.opcode.name == "IMARK"]
        if [(m.offset, m.size) for m in marks] != [(va, len(raw))]:
            raise _Unsupported("SLEIGH sees other instructions in its bytes")
        source = [o for o in source if o.opcode.name != "IMARK"]
        bases = {decoded.reg_name(o.mem.base) for o in decoded.operands if o.type == capstone.x86.X86_OP_MEM}
        by_rbp = "rbp" in bases or stem == "leave"
        return _Translation(self._registers, va, len(raw), source, stem, by_rbp).result()


class _Translation:
    """Turns the p-code of one instruction into IR operations."""

    def __init__(
        self,
        registers: dict[int, tuple[int, int]],
        va: int,
        size: int,
        source: list[Any],
        stem: str,
        by_rbp: bool,
    ) -> None:
        self._registers = registers
        self._va = va
        self._size = size
        self._source = source
        self._stem = stem
        # RBP means the stack where it is the base, not where it is the index (SDM vol. 1, 3.7.4).
        self._stack = {reg("RSP"), reg("RBP")} if by_rbp else {reg("RSP")}
        self._ops: list[Op] = []
        self._starts: list[int] = []
        self._temps: dict[int, tuple[int, int]] = {}
        self._next_temp = 0
        self._origin: dict[Var, Access] = {}
        self._carries: dict[Var, Var] = {}
        self._flow = Flow.FALL
        self._target: int | None = None

    def result(self) -> tuple[tuple[Op, ...], Flow, int | None]:
        for item in self._source:
            self._starts.append(len(self._ops))
            self._one(item)
        self._starts.append(len(self._ops))
        self._extend()
        self._widen()
        return tuple(self._relocate(op) for op in self._ops), self._flow, self._target

    def _extend(self) -> None:
        """A 32-bit result is zero-extended (SDM vol. 1, 3.4.1.1) also where SLEIGH forgets it."""
        for op in list(self._ops):
            low = op.out
            if low is None or low.space is not Space.REG:
                continue
            if low.off // SLOT * SLOT not in _WRITABLE:
                raise _Unsupported("writes a register that is not for ordinary instructions")
            if low.size == 4:
                widened = Op(Code.INT_ZEXT, Var(Space.REG, low.off, SLOT), (low,))
                if widened in self._ops:  # CMOV extends first, whether it moves or not
                    continue
                if any(o.code in (Code.JUMP, Code.CJUMP, Code.CBRANCH) for o in self._ops):
                    raise _Unsupported("a 32-bit result is not extended")
                self._ops.append(widened)

    def _widen(self) -> None:
        """A 32-bit result is zero-extended into its register (SDM vol. 1, 3.4.1.1),
        which SLEIGH writes as two steps.  Let the first go to a temporary, so
        that no step leaves half a register behind."""
        for i, op in enumerate(self._ops):
            low = op.out
            if low is None or low.space is not Space.REG or low.size != 4:
                continue
            full = Var(Space.REG, low.off, SLOT)
            widened = Op(Code.INT_ZEXT, full, (low,))
            try:
                end = self._ops.index(widened, i + 1)
            except ValueError:
                continue
            between = self._ops[i + 1 : end]
            if any(o.code in (Code.JUMP, Code.CJUMP, Code.CBRANCH) or o.out in (low, full) for o in between):
                continue
            value = self._fresh(4)
            self._ops[i] = Op(op.code, value, op.ins, op.text)
            for k in range(i + 1, end + 1):
                later = self._ops[k]
                self._ops[k] = Op(
                    later.code, later.out, tuple(value if v == low else v for v in later.ins), later.text
                )

    def _relocate(self, op: Op) -> Op:
        """p-code counts relative jumps in its operations, we in ours."""
        if op.code not in (Code.JUMP, Code.CJUMP):
            return op
        index = op.ins[0].off
        if not 0 <= index < len(self._starts):
            raise _Unsupported("jump outside the instruction")
        return Op(op.code, None, (const(self._starts[index], 4), *op.ins[1:]))

    def _fresh(self, size: int) -> Var:
        self._next_temp += 1
        return Var(Space.TMP, self._next_temp, size)

    def _place(self, node: Any) -> Var:
        space = node.space.name
        if space == "const":
            return const(node.offset, node.size)
        if space == "unique":
            return self._temporary(node.offset, node.size)
        if space == "register":
            return self._register(node.offset, node.size)
        raise _Unsupported(f"address space {space}")

    def _register(self, offset: int, size: int) -> Var:
        for start in (offset, offset - 1):
            found = self._registers.get(start)
            if found is not None and offset + size <= start + found[1]:
                return Var(Space.REG, found[0] + offset - start, size)
        raise _Unsupported(f"register at SLEIGH offset {offset:#x}")

    def _temporary(self, offset: int, size: int) -> Var:
        known = self._temps.get(offset)
        if known is None:
            for other, (_, extent) in self._temps.items():
                if other < offset + size and offset < other + extent:
                    raise _Unsupported("overlapping temporaries")
            self._next_temp += 1
            known = (self._next_temp, size)
            self._temps[offset] = known
        if size > known[1]:
            raise _Unsupported("temporary read wider than written")
        return Var(Space.TMP, known[0], size)

    def _input(self, node: Any) -> Var:
        if node.space.name != "ram":
            return self._place(node)
        value = self._fresh(node.size)
        self._ops.append(Op(Code.LOAD, value, (const(node.offset), const(Access.DATA, 1))))
        return value

    def _one(self, item: Any) -> None:
        name = item.opcode.name
        if name in _FLOWS:
            self._branch(name, item)
        elif name == "LOAD":
            address = self._place(item.inputs[1])
            self._ops.append(Op(Code.LOAD, self._place(item.output), (address, self._access(address))))
        elif name == "STORE":
            address, value = self._place(item.inputs[1]), self._input(item.inputs[2])
            self._ops.append(Op(Code.STORE, None, (address, value, self._access(address))))
        elif name in Code.__members__ and Code[name] in PURE:
            self._pure(Code[name], item)
        elif name == "CALLOTHER" and item.inputs[0].getUserDefinedOpName() in ("LOCK", "UNLOCK"):
            pass
        else:
            raise _Unsupported(f"p-code {name}")

    def _pure(self, code: Code, item: Any) -> None:
        ins = tuple(self._input(i) for i in item.inputs)
        if item.output.space.name == "ram":
            value = self._fresh(item.output.size)
            self._ops.append(Op(code, value, ins))
            self._ops.append(Op(Code.STORE, None, (const(item.output.offset), value, const(Access.DATA, 1))))
            return
        out = self._place(item.output)
        if self._stem == "shr" and code is Code.COPY and out == reg("OF") and ins == (const(0, 1),):
            operand = self._shifted()
            code, ins = Code.INT_SLESS, (operand, const(0, operand.size))
        self._ops.append(Op(code, out, ins))
        self._trace_origin(out, ins)
        if code.value in _WITH_AF:
            arithmetic = Code.INT_ADD if code is Code.INT_SCARRY else Code.INT_SUB
            if out == reg("OF"):
                self._adjust_flag(arithmetic, ins, reg("AF"))
            else:
                self._carries[out] = self._adjust_flag(arithmetic, ins, self._fresh(1))
        elif code is Code.BOOL_XOR and out == reg("OF") and ins[1] in self._carries:
            # ADC and SBB add twice; at most one of the two carries out of bit 3.
            self._ops.append(Op(Code.BOOL_OR, reg("AF"), (reg("AF"), self._carries[ins[1]])))

    def _shifted(self) -> Var:
        """What the instruction shifts right."""
        for item in self._source[len(self._starts) - 1 :]:
            if item.opcode.name == "INT_RIGHT" and item.inputs[0].space.name != "ram":
                return self._place(item.inputs[0])
        raise _Unsupported("SHR without a shift")

    def _adjust_flag(self, arithmetic: Code, ins: tuple[Var, ...], target: Var) -> Var:
        """``target`` := carry or borrow out of bit 3, seen as (a ^ b ^ result) bit 4."""
        a, b = ins
        total, mixed, bit = self._fresh(a.size), self._fresh(a.size), self._fresh(a.size)
        self._ops.append(Op(arithmetic, total, (a, b)))
        self._ops.append(Op(Code.INT_XOR, mixed, (a, b)))
        self._ops.append(Op(Code.INT_XOR, mixed, (mixed, total)))
        self._ops.append(Op(Code.INT_AND, bit, (mixed, const(0x10, a.size))))
        self._ops.append(Op(Code.INT_NOTEQUAL, target, (bit, const(0, a.size))))
        return target

    def _trace_origin(self, out: Var, ins: tuple[Var, ...]) -> None:
        origins = [self._kind(v) for v in ins]
        self._origin[out] = max(origins, default=Access.DATA)

    def _kind(self, v: Var) -> Access:
        if v == reg("GSBASE"):
            return Access.GS
        if v in self._stack:
            return Access.STACK
        return self._origin.get(v, Access.DATA) if v.space is Space.TMP else Access.DATA

    def _access(self, address: Var) -> Var:
        return const(self._kind(address), 1)

    def _branch(self, name: str, item: Any) -> None:
        target, rest = item.inputs[0], tuple(self._place(i) for i in item.inputs[1:])
        if name in ("BRANCH", "CBRANCH") and target.space.name == "const":
            step = target.offset - (1 << 32) if target.offset >> 31 else target.offset
            index = len(self._starts) - 1 + step
            self._ops.append(Op(Code.CJUMP if rest else Code.JUMP, None, (const(index, 4), *rest)))
            return
        if target.space.name == "ram" and name in ("BRANCH", "CBRANCH", "CALL"):
            where = const(target.offset)
            if target.offset == self._va and self._stem in STRINGS:
                self._ops.append(self._next_iteration(where, rest))
                return
            inner = target.offset in (self._va, self._va + self._size)
            self._ops.append(Op(Code.CBRANCH if name == "CBRANCH" else Code.BRANCH, None, (where, *rest)))
            if inner and name != "CALL":
                return
            self._target = target.offset
        else:
            self._ops.append(Op(Code.BRANCHIND, None, (self._input(target),)))
        self._flow = _FLOWS[name]

    def _next_iteration(self, where: Var, rest: tuple[Var, ...]) -> Op:
        """Go on with a repeated string instruction, unless RCX, or the flag in ``rest``, ends it."""
        more = self._fresh(1)
        self._ops.append(Op(Code.INT_NOTEQUAL, more, (reg("RCX"), const(0))))
        for condition in rest:
            self._ops.append(Op(Code.BOOL_AND, more, (more, condition)))
        return Op(Code.CBRANCH, None, (where, more))


assert SLOT == 8, "SLEIGH's 8-byte registers fill a slot"  # noqa: S101 - two tables that must agree
