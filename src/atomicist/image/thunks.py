# SPDX-License-Identifier: GPL-2.0-only
"""Returns that are known jumps: the return-thunk rewrite, when built and when booted.

A C function that is entered by JMP, from one place only, knows where it returns to: at
the one label ``<function>_return``.  Compiled with ``-mfunction-return=thunk-extern`` it
does not return by RET but by ``jmp __x86_return_thunk``, and that jump can be pointed at
the label.  Then no RET, and no prediction of one, is left in it.

*When built*: `rewrite` edits one relocation's symbol in the object file; no byte of code,
no other relocation, no symbol and nothing of the debug information changes.  *When
booted*: `boot_patched` does to a linked image what the kernel does at its
``.return_sites`` (Linux arch/x86/kernel/alternative.c, apply_returns()), from a list of
our own that names the label beside the site; `sites_source` makes that list.

What is refused, because then the jump is not the whole truth about how the function is
left: no or several thunk jumps, a conditional one, CALL, RET, an indirect branch, a jump
into another function, code that runs off the function's end.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import capstone
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from atomicist.image.elf import ElfImage
from atomicist.image.errors import ImageError

THUNK: Final = "__x86_return_thunk"
SUFFIX: Final = "_return"
SITES: Final = ("__atomic_ist_return_sites", "__atomic_ist_return_sites_end")
SITES_SECTION: Final = ".atomic_ist_return_sites"
MAX_SITES: Final = 4096

_PC32, _PLT32 = 2, 4  # psABI, table 4.9
_RELA: Final = struct.Struct("<QQq")
_RECORD: Final = struct.Struct("<ii")
_JMP: Final = 0xE9
_JMP_SIZE: Final = 5
_PADDING: Final = ("int3", "nop")
_OTHER_RETURNS: Final = frozenset(
    {"sysret", "sysretq", "sysexit", "sysexitq", "syscall", "sysenter", "vmrun"}
)


@dataclass(frozen=True, slots=True)
class Site:
    """The one return of ``function``: its jump's ``offset`` in the function, the ``label``
    it is to reach, whether it does so already (``done``), the names of labels by which the
    function is ``also_left``, and where in the file the relocation's symbol number is."""

    function: str
    offset: int
    label: str
    done: bool
    also_left: tuple[str, ...]
    position: int
    symbol: int


@dataclass(frozen=True, slots=True)
class _Reloc:
    name: str
    """Of its symbol; "" for a section's."""
    kind: int
    addend: int
    target: tuple[int, int] | None
    """(section, offset) of a symbol that is defined here."""
    position: int


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: str
    number: int
    section: int
    value: int
    size: int
    function: bool


def find_sites(data: bytes) -> tuple[Site, ...]:
    """The returns of the functions of the object file ``data`` that have a label for it.

    Raises `ImageError` if it is not a whole x86-64 object, has no such function, or one
    of them is not of the kind that can be rewritten."""
    if data[:4] != b"\x7fELF":
        raise ImageError("not an ELF file: give an object file (.o)")
    try:
        return _Object(data).sites()
    except ImageError:
        raise
    except Exception as e:  # noqa: BLE001 - pyelftools reports damage by whatever it stumbled over
        raise ImageError(
            f"the object file is damaged or cut ({type(e).__name__}): compile it again"
        ) from None


def rewrite(data: bytes) -> bytes:
    """The object file ``data`` with each such return a jump to its label; the same bytes
    if that is done already. Raises `ImageError` as `find_sites` does."""
    out = bytearray(data)
    for site in find_sites(data):
        struct.pack_into("<I", out, site.position, site.symbol)
    again = find_sites(bytes(out))
    if not all(site.done for site in again):
        raise ImageError("the rewritten file does not read as intended: two functions share a return")
    return bytes(out)


def sites_source(data: bytes) -> str:
    """The assembler source of the list that `boot_patched` reads, for the object ``data``."""
    lines = [f'\t.section {SITES_SECTION}, "a"', "\t.balign 4"]
    for site in find_sites(data):
        if site.done:
            raise ImageError(f"{site.function} returns to {site.label} already: nothing is left for the boot")
        lines.append(f"\t.long {site.function} + {site.offset:#x} - ., {site.label} - .")
    lines.append('\t.section .note.GNU-stack, "", @progbits')
    return "\n".join(lines) + "\n"


class _Object:
    def __init__(self, data: bytes) -> None:
        elf = ELFFile(io.BytesIO(data))
        if elf.elfclass != 64 or not elf.little_endian or elf["e_machine"] != "EM_X86_64":
            raise ImageError(
                f"the file is for {elf['e_machine']}, {elf.elfclass} bits: give an x86-64 object"
            )
        if elf["e_type"] != "ET_REL":
            raise ImageError("the file is linked already: give an object file (.o), before ld")
        self._sections = list(elf.iter_sections())
        for section in self._sections:
            if section["sh_type"] not in ("SHT_NOBITS", "SHT_NULL"):
                end = section["sh_offset"] + section["sh_size"]
                if end > len(data):
                    raise ImageError(
                        f"the object file is cut: {section.name} ends at {end:#x} of {len(data):#x}"
                    )
        self._data = data
        table = next((s for s in self._sections if isinstance(s, SymbolTableSection)), None)
        if table is None:
            raise ImageError("the object file has no symbols: give it unstripped")
        self._symbols = [self._symbol(n, s) for n, s in enumerate(table.iter_symbols())]

    @staticmethod
    def _symbol(number: int, s: object) -> _Symbol:
        index = s["st_shndx"]  # type: ignore[index]
        return _Symbol(
            s.name,  # type: ignore[attr-defined]
            number, index if isinstance(index, int) else 0,
            s["st_value"], s["st_size"], s["st_info"]["type"] == "STT_FUNC",  # type: ignore[index]
        )  # fmt: skip

    def sites(self) -> tuple[Site, ...]:
        labels: dict[str, list[_Symbol]] = {}
        for symbol in self._symbols:
            labels.setdefault(symbol.name, []).append(symbol)
        functions = [
            s for s in self._symbols if s.function and s.section and s.size and f"{s.name}{SUFFIX}" in labels
        ]
        if not functions:
            raise ImageError(f"no function has a label <function>{SUFFIX}: nothing to rewrite")
        sites = []
        for f in functions:
            found = labels[f"{f.name}{SUFFIX}"]
            if len(found) > 1:
                raise ImageError(f"{f.name}{SUFFIX} is defined {len(found)} times: name the label once")
            sites.append(self._site(f, found[0]))
        return tuple(sites)

    def _relocs(self, section: int) -> dict[int, _Reloc]:
        """By the offset that they change."""
        out = {}
        for s in self._sections:
            if s["sh_type"] == "SHT_REL" and s["sh_info"] == section:
                raise ImageError(f"{s.name} has relocations without addends, which x86-64 does not use")
            if not isinstance(s, RelocationSection) or s["sh_info"] != section:
                continue
            at = s["sh_offset"]
            for position in range(at, at + s["sh_size"] - _RELA.size + 1, _RELA.size):
                offset, info, addend = _RELA.unpack_from(self._data, position)
                symbol = self._symbols[info >> 32]
                target = (symbol.section, symbol.value) if symbol.section else None
                out[offset] = _Reloc(symbol.name, info & 0xFFFF_FFFF, addend, target, position + 12)
        return out

    def _listed(self, f: _Symbol) -> bool:
        """Whether objtool has listed a return of ``f``: the kernel would patch it back."""
        for number, s in enumerate(self._sections):
            if s.name == ".return_sites":
                for reloc in self._relocs(number).values():
                    if reloc.target and reloc.target[0] == f.section:
                        at = reloc.target[1] + reloc.addend
                        if f.value <= at < f.value + f.size:
                            return True
        return False

    def _site(self, f: _Symbol, label: _Symbol) -> Site:
        section = self._sections[f.section]
        if f.value + f.size > section["sh_size"]:
            raise ImageError(f"{f.name} ends outside its section: the object file is damaged")
        if self._listed(f):
            raise ImageError(f"{f.name} is in .return_sites: rewrite before objtool, not after it")
        start = section["sh_offset"] + f.value
        relocs = self._relocs(f.section)
        thunks: list[tuple[int, _Reloc, bool]] = []
        also: list[str] = []
        last = ""
        for insn in _decoded(f, self._data[start : start + f.size]):
            where = f"{f.name}+{insn.address - f.value:#x} ({insn.mnemonic} {insn.op_str})".replace(" )", ")")
            _refuse_branches(insn, where)
            if not any(insn.mnemonic.startswith(word) for word in _PADDING):
                last = insn.mnemonic
            if not insn.group(capstone.CS_GRP_JUMP):
                continue
            reloc = next(
                (relocs[a] for a in range(insn.address, insn.address + insn.size) if a in relocs), None
            )
            if reloc is None:
                if not f.value <= insn.operands[0].imm < f.value + f.size:
                    raise ImageError(f"{where} leaves the function: only its return and labels may")
            elif reloc.name in (THUNK, label.name):
                if insn.bytes[0] != _JMP or reloc.kind not in (_PC32, _PLT32) or reloc.addend != -4:
                    raise ImageError(f"{where} is not a plain jump to {reloc.name}: compile it without")
                thunks.append((insn.address - f.value, reloc, reloc.name == label.name))
            elif reloc.name.startswith("__x86_indirect"):
                raise ImageError(f"{where} is an indirect branch, by {reloc.name}")
            else:
                also.append(self._exit(reloc, where))
        if len(thunks) != 1:
            what = "no jump" if not thunks else f"{len(thunks)} jumps"
            raise ImageError(f"{f.name} has {what} to {THUNK}: exactly one can be rewritten")
        if last not in ("jmp", "ud2"):
            raise ImageError(f"{f.name} does not end with its return but runs on ({last})")
        offset, reloc, done = thunks[0]
        return Site(
            f.name, offset, label.name, done, tuple(dict.fromkeys(also)), reloc.position, label.number
        )

    def _exit(self, reloc: _Reloc, where: str) -> str:
        """The name of a label by which a function is left, besides its return."""
        if reloc.target is None:
            return reloc.name
        section, value = reloc.target
        if not reloc.name:
            value += reloc.addend + 4
        for s in self._symbols:
            if s.function and s.section == section and s.value <= value < s.value + max(s.size, 1):
                raise ImageError(f"{where} jumps into the function {s.name}: it must be inline")
        return reloc.name or "code without a name"


def _decoded(f: _Symbol, code: bytes) -> Iterator[capstone.CsInsn]:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    end = f.value
    for insn in engine.disasm(code, f.value):
        end += insn.size
        yield insn
    if end != f.value + f.size:
        raise ImageError(f"{f.name}+{end - f.value:#x} is no instruction: the object file is damaged")


def _refuse_branches(insn: capstone.CsInsn, where: str) -> None:
    if insn.group(capstone.CS_GRP_CALL):
        raise ImageError(f"{where} is a call: the function may call nothing")
    if insn.group(capstone.CS_GRP_RET) or insn.group(capstone.CS_GRP_IRET):
        raise ImageError(f"{where} is a return: compile it with -mfunction-return=thunk-extern")
    if insn.mnemonic in _OTHER_RETURNS:
        raise ImageError(f"{where} leaves the function")
    if insn.group(capstone.CS_GRP_JUMP) and insn.operands[0].type != capstone.x86.X86_OP_IMM:
        raise ImageError(f"{where} is an indirect branch")


def boot_patched(elf: ElfImage) -> ElfImage:
    """The linked image ``elf`` as it is when it has booted: each site in the list between
    the two symbols of `SITES` a jump to its label.  Without those symbols, ``elf``.

    Raises `ImageError` where a site is no jump to the thunk; the kernel would warn there and leave
    it, and it would be a RET."""
    symbols = {s.name: s.address for s in elf.symbols}
    if SITES[0] not in symbols:
        return elf
    if SITES[1] not in symbols or THUNK not in symbols:
        raise ImageError(f"{SITES[0]} is there, but not {SITES[1]} or {THUNK}: link them too")
    start, size = symbols[SITES[0]], symbols[SITES[1]] - symbols[SITES[0]]
    if size <= 0 or size % _RECORD.size or size > MAX_SITES * _RECORD.size:
        raise ImageError(f"the list at {SITES[0]} has {size} bytes: not records of {_RECORD.size}")
    segments = {s.va: bytearray(s.data) for s in elf.segments}
    for at, record in zip(
        range(start, start + size, _RECORD.size), _RECORD.iter_unpack(elf.read(start, size)), strict=True
    ):
        site, label = at + record[0], at + 4 + record[1]
        segment = elf.segment(site)
        elf.segment(label)
        code = segments[segment.va]
        offset = site - segment.va
        if bytes(code[offset : offset + _JMP_SIZE]) != _jump(site, symbols[THUNK]):
            raise ImageError(f"return site at {site:#x} is no jump to {THUNK}: patched twice, or damaged")
        code[offset : offset + _JMP_SIZE] = _jump(site, label)
    return replace(
        elf, segments=tuple(replace(s, data=memoryview(bytes(segments[s.va]))) for s in elf.segments)
    )


def _jump(at: int, target: int) -> bytes:
    distance = target - at - _JMP_SIZE
    if not -(1 << 31) <= distance < 1 << 31:
        raise ImageError(f"branch at {at:#x} cannot reach {target:#x}: the image is damaged")
    return struct.pack("<Bi", _JMP, distance)
