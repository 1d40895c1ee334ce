# SPDX-License-Identifier: GPL-2.0-only
"""Which instructions there are: those that an image's entries reach, by form.

A form is a mnemonic with the kind and size of each operand, and the register itself where it is
special: ``mov mem64gs, reg64``.  What is compared of a form are its encodings in the images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from atomicist.crosscheck.states import decoder
from atomicist.machine.target import Target

_KINDS: Final = {1: "reg", 2: "imm", 3: "mem"}
BAD: Final = "(bad)"
"""The form of bytes that are no instruction."""

_SPECIAL: Final = ("gs", "fs", "ss", "cs", "ds", "es")


@dataclass(frozen=True, slots=True)
class Form:
    """``name``, its ``encodings``, and the ``images`` that have one."""

    name: str
    encodings: tuple[bytes, ...]
    images: tuple[str, ...]


def form_of(raw: bytes) -> str:
    """The form of an encoding; "(bad)" for bytes that are no instruction."""
    insn = next(decoder().disasm(raw, 0, 1), None)
    if insn is None:
        return BAD
    operands = []
    for o in insn.operands:
        name = insn.reg_name(o.reg) if o.type == 1 else insn.reg_name(o.mem.segment) if o.type == 3 else ""
        special = name if name and (name[:2] in ("cr", "dr") or name in _SPECIAL) else ""
        operands.append(f"{_KINDS.get(o.type, 'op')}{8 * o.size}{special}")
    return f"{insn.mnemonic} {', '.join(operands)}".strip()


def forms(images: Iterable[Target]) -> tuple[Form, ...]:
    """The forms of all instructions in ``images``, by name; handlers, which are not executed, have none."""
    encodings: defaultdict[str, dict[bytes, None]] = defaultdict(dict)
    having: defaultdict[str, dict[str, None]] = defaultdict(dict)
    known: dict[bytes, str] = {}
    for target in images:
        for va, insn in target.insns.items():
            if va in target.handlers:
                continue
            name = known.get(insn.raw)
            if name is None:
                name = known[insn.raw] = form_of(insn.raw)
            encodings[name][insn.raw] = None
            having[name][target.name] = None
    return tuple(Form(n, tuple(sorted(encodings[n])), tuple(having[n])) for n in sorted(encodings))


def count_encodings(some: Iterable[Form]) -> int:
    """Encodings in all."""
    return sum(len(form.encodings) for form in some)


def by_image(some: Iterable[Form]) -> Mapping[str, int]:
    """How many forms each image has."""
    found: defaultdict[str, int] = defaultdict(int)
    for form in some:
        for image in form.images:
            found[image] += 1
    return dict(found)
