# SPDX-License-Identifier: GPL-2.0-only
"""Draws stacks as they were at one step: a line a word, the top above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from atomicist.report.history import WORD, History
from atomicist.report.text import Line, clean, name, wrap
from atomicist.report.values import Values

WIDE: Final = 68
"""Columns from which what a value is, and who wrote it, stand beside it."""

_MEANING: Final = 24


@dataclass(frozen=True, slots=True)
class Signs:
    """What a stack is drawn with."""

    bar: str
    over: str
    under: str
    arrow: str


ASCII: Final = Signs("|", f"+{'-' * 28}+", f"+{'-' * 28}+", "<--")
BOX: Final = Signs(
    "\N{BOX DRAWINGS LIGHT VERTICAL}",
    "\N{BOX DRAWINGS LIGHT DOWN AND RIGHT}"
    + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 28
    + "\N{BOX DRAWINGS LIGHT DOWN AND LEFT}",
    "\N{BOX DRAWINGS LIGHT UP AND RIGHT}"
    + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 28
    + "\N{BOX DRAWINGS LIGHT UP AND LEFT}",
    "\N{BLACK LEFT-POINTING POINTER}" + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 2,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """The words at ``slots`` (address -> name) after ``step``, under a ``title``; ``marks``
    says a word about some of them, ``pointers`` is what points to where."""

    title: str
    step: int
    slots: Mapping[int, str]
    marks: Mapping[int, str] = field(default_factory=dict)
    pointers: Mapping[int, str] = field(default_factory=dict)


def draw(picture: Picture, history: History, values: Values, width: int, *, ascii_only: bool) -> list[Line]:
    """The picture in lines of at most ``width`` where that is possible."""
    addresses = sorted(picture.slots, reverse=True)
    if not addresses:
        return []
    target = history.replay.target
    region = target.region(addresses[-1])
    top = region.top if region else addresses[0] + WORD
    where = name(region.name) if region else "memory"
    sign = ASCII if ascii_only else BOX
    room = max(len(values.short(history.value(a, picture.step), s)) for a, s in picture.slots.items())
    columns = (width, min(room, _MEANING))
    offset = max(7, max(len(f"{top - a:#x}") for a in addresses) + 1)
    pad = " " * (offset + 3)
    lines = [Line(line, "bold") for line in wrap(picture.title, width, 2)]
    lines.append(Line(f"  {where}, top at {top:#x}", "dim"))
    lines.append(Line(pad + sign.over))
    before = addresses[0] + WORD
    for address in addresses:
        if address + WORD != before:
            lines.append(Line(f"{pad}{sign.bar} {'...':<26} {sign.bar}"))
        before = address
        where = f"{f'-{top - address:#x}':>{offset + 2}}"
        lines += _row(picture, address, where, sign, history, values, columns)
    lines.append(Line(pad + sign.under))
    return lines


def _row(
    picture: Picture, address: int, offset: str, sign: Signs, history: History, values: Values,
    columns: tuple[int, int],
) -> list[Line]:  # fmt: skip
    width, room = columns
    slot = picture.slots[address]
    value = history.value(address, picture.step)
    number = "?" if value is None else f"{value:#x}"
    mark, pointer = picture.marks.get(address, ""), picture.pointers.get(address, "")
    style = "bold red" if mark else ""
    cell = f"{offset} {sign.bar} {slot[:7]:<7} {number:>18} {sign.bar}"
    said = [f"{sign.arrow} {clean(text)}" for text in (mark, pointer) if text]
    if width < WIDE:
        return [Line(cell, style), *(Line(f"{' ' * len(offset)}   {text}", style) for text in said)]
    text = f"{cell} {_cut(values.short(value, slot), room):<{room}}  "
    by = writer(history, address, picture.step)
    if said and len(text) + len(by) + 2 + len(said[0]) > width >= len(text) + len(said[0]):
        text += said.pop(0)  # instead of the writer, who is in the title or in the text above
    else:
        text = (text + _cut(by, width - len(text))).rstrip()
    below: list[Line] = []
    for part in said:
        if not below and len(text) + 2 + len(part) <= width:
            text += f"  {part}"
        else:
            below.append(Line(f"{' ' * len(offset)}   {part}", style))
    return [Line(text, style), *below]


def _cut(text: str, room: int) -> str:
    """The end of ``text``, which tells more than its beginning."""
    return text if len(text) <= room else ".." + text[len(text) - max(0, room - 2) :]


def writer(history: History, address: int, step: int) -> str:
    """Who wrote the word last, in a few words."""
    write = history.last_write(address, step)
    if write is None:
        return ""
    owner = history.owner(write)
    who = owner.who.removeprefix("the ") if owner else ""
    if write.by == "delivery":
        return f"hw, {who}"
    if write.by == "freed":
        return "free"
    return f"{name(history.replay.target.symbolize(write.rip))}"


def beside(left: Sequence[Line], right: Sequence[Line], width: int) -> list[Line] | None:
    """Two pictures next to each other, None where there is no room."""
    wide = max((len(line.text) for line in left), default=0)
    if wide + 3 + max((len(line.text) for line in right), default=0) > width:
        return None
    pairs = zip_longest(left, right, fillvalue=Line())
    return [
        Line(f"{a.text:<{wide}}   {b.text}".rstrip(), a.style if a.style == b.style else "") for a, b in pairs
    ]
