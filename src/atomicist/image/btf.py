# SPDX-License-Identifier: GPL-2.0-only
"""Layouts of the kernel's structures, from the type information it carries (BTF).

Documentation/bpf/btf.rst: a header, then a run of types, then strings.  Each type is 12 bytes (name, info,
size or type) and a tail whose length its kind decides; types are numbered from 1 in order.  Only what a
layout needs is decoded: structures, unions, arrays, and the names that hide them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from atomicist.image.errors import ImageError

MAX_TYPES = 1 << 20
MAX_MEMBERS = 256
"""Anonymous structures within one; the kernel has less than fifty."""
_DEPTH = 32
"""Typedefs, qualifiers and arrays within each other; C code has less than ten."""

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 8, 9, 10, 11
_FLOAT, _TYPE_TAG, _ENUM64 = 16, 18, 19
_ALIASES = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
_SIZED = (_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64)

# Bytes after the 12: (fixed, per element of vlen).
_TAILS = {
    _INT: (4, 0), _PTR: (0, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12), _ENUM: (0, 8),
    7: (0, 0), _TYPEDEF: (0, 0), _VOLATILE: (0, 0), _CONST: (0, 0), _RESTRICT: (0, 0), 12: (0, 0),
    13: (0, 8), 14: (4, 0), 15: (0, 12), _FLOAT: (0, 0), 17: (4, 0), _TYPE_TAG: (0, 0), _ENUM64: (0, 12),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its byte offset in the outermost structure asked for, its size in bytes, its BTF type."""

    name: str
    offset: int
    size: int
    type_id: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A structure or union: size in bytes and members by name, those of anonymous members included.

    Bit-fields are left out: they have no byte offset.
    """

    name: str
    size: int
    members: dict[str, Member]

    def __getitem__(self, name: str) -> Member:
        if name not in self.members:
            raise ImageError(f"struct {self.name} has no member {name}: not a kernel of the 6.1 kind")
        return self.members[name]


class Btf:
    """The types in one .BTF section; `struct("tss_struct")`, `offset("cpu_entry_area", "tss.x86_tss")`."""

    __slots__ = ("_places", "_strings", "_structs", "_types")

    def __init__(self, data: bytes) -> None:
        """Index `data`; ImageError when it is not BTF, is cut, or has a kind of type we do not know."""
        if len(data) < 24 or data[:3] != b"\x9f\xeb\x01":
            raise ImageError("no BTF where it should be: give a kernel with CONFIG_DEBUG_INFO_BTF")
        header, types, types_size, strings, strings_size = struct.unpack_from("<5I", data, 4)
        if max(header + types + types_size, header + strings + strings_size) > len(data):
            raise ImageError("BTF is cut: the image is damaged, fetch it again")
        self._types = data[header + types : header + types + types_size]
        self._strings = data[header + strings : header + strings + strings_size]
        self._places: list[int] = [0]
        self._structs: dict[str, int] = {}
        self._index()

    def _index(self) -> None:
        place, types = 0, self._types
        while place < len(types):
            if place + 12 > len(types):
                raise ImageError("BTF ends inside a type: the image is damaged")
            name, info = struct.unpack_from("<II", types, place)
            kind = info >> 24 & 31
            if kind not in _TAILS:
                raise ImageError(
                    f"BTF has a type of kind {kind}, which we do not know: kernel too new or damaged"
                )
            fixed, each = _TAILS[kind]
            if kind in (_STRUCT, _UNION) and name:
                self._structs.setdefault(self._string(name), len(self._places))
            self._places.append(place)
            place += 12 + fixed + each * (info & 0xFFFF)
        if place > len(types) or len(self._places) > MAX_TYPES:
            raise ImageError("BTF ends inside a type, or has too many: the image is damaged")

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset, offset + 4096)
        if end < 0:
            raise ImageError(f"BTF has no string at {offset}: the image is damaged")
        return self._strings[offset:end].decode("utf-8", "replace")

    def _type(self, type_id: int) -> tuple[int, int, int, int]:
        """(kind, flags and vlen, size or type, place of the tail) behind qualifiers and typedefs."""
        for _ in range(_DEPTH):
            if not 0 < type_id < len(self._places):
                raise ImageError(f"BTF refers to type {type_id}, which has no size: the image is damaged")
            _name, info, size = struct.unpack_from("<III", self._types, self._places[type_id])
            kind = info >> 24 & 31
            if kind not in _ALIASES:
                return kind, info, size, self._places[type_id] + 12
            type_id = size
        raise ImageError(f"BTF type {type_id} hides behind more than {_DEPTH} names: the image is damaged")

    def size(self, type_id: int) -> int:
        """Bytes in an object of type number `type_id`."""
        count = 1
        for _ in range(_DEPTH):
            kind, _info, size, tail = self._type(type_id)
            if kind == _PTR:
                return 8 * count
            if kind in _SIZED:
                return size * count
            if kind != _ARRAY:
                break
            type_id, _by, number = struct.unpack_from("<III", self._types, tail)
            count *= number
        raise ImageError(f"BTF type {type_id} has no size: the image is damaged")

    def struct(self, name: str) -> Layout:
        """The layout of `struct name` or `union name`; ImageError if the kernel has none."""
        if name not in self._structs:
            raise ImageError(f"BTF has no struct {name}: not a kernel of the 6.1 kind")
        return self._layout(self._structs[name], name)

    def _layout(self, type_id: int, name: str) -> Layout:
        kind, _info, size, _tail = self._type(type_id)
        if kind not in (_STRUCT, _UNION):
            raise ImageError(f"BTF says {name} is no structure: not a kernel of the 6.1 kind")
        members: dict[str, Member] = {}
        todo = [(type_id, 0)]
        for _ in range(MAX_MEMBERS):
            if not todo:
                return Layout(name, size, members)
            if len(todo) > MAX_MEMBERS:
                break
            todo += self._members(*todo.pop(), members)
        raise ImageError(f"BTF has no end of structures within {name}: the image is damaged")

    def _members(self, type_id: int, base: int, members: dict[str, Member]) -> list[tuple[int, int]]:
        """Add the named members of a structure at `base`; the (type, offset) of the anonymous ones."""
        kind, info, _size, tail = self._type(type_id)
        anonymous: list[tuple[int, int]] = []
        if kind not in (_STRUCT, _UNION):
            return anonymous
        for number in range(info & 0xFFFF):
            name, member_type, where = struct.unpack_from("<III", self._types, tail + 12 * number)
            # With the flag, the upper byte is a bit-field's width (btf.rst, BTF_KIND_STRUCT).
            width, bits = (where >> 24, where & 0xFFFFFF) if info >> 31 else (0, where)
            if width or bits % 8:
                continue
            if name:
                text = self._string(name)
                size = self.size(member_type)
                members.setdefault(text, Member(text, base + bits // 8, size, member_type))
            else:
                anonymous.append((member_type, base + bits // 8))
        return anonymous

    def offset(self, struct_name: str, path: str) -> int:
        """Byte offset of `path` ("tss.x86_tss.sp0") in `struct struct_name`."""
        return self.member(struct_name, path).offset

    def member(self, struct_name: str, path: str) -> Member:
        """The member at the end of `path`, its offset counted from the start of `struct struct_name`."""
        layout = self.struct(struct_name)
        base = 0
        first, *rest = path.split(".")
        found = layout[first]
        for name in rest:
            base += found.offset
            found = self._layout(found.type_id, f"{struct_name}.{found.name}")[name]
        return Member(path, base + found.offset, found.size, found.type_id)
