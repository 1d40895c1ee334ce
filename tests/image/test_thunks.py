# SPDX-License-Identifier: GPL-2.0-only
"""The return-thunk rewrite: what it changes, what it refuses, and that the result runs."""

import contextlib
import io
import json
import re
import subprocess
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.image.elf import read_elf
from atomicist.image.errors import ImageError
from atomicist.image.thunks import SITES_SECTION, THUNK, boot_patched, find_sites, rewrite
from atomicist.isa.lift import MAX_INSN, Lifter
from atomicist.machine.interpreter import Machine
from atomicist.machine.memory import PAGE, Page, PageFlag
from tests.isa.engines import target_of

TEXT = 0xFFFF_FFFF_8100_0000
STACK = 0xFFFF_C900_0000_0000

GOOD = """
    .globl other_place
    long keep(long x) { return x; }
    long f(long x) { if (x == 7) asm volatile("jmp other_place"); return x * 3; }
    long plain(long x) { return x + 1; }
    asm(".globl f_return");
"""
ENTRY = f"""
    .globl _start, f_return, other_place, {THUNK}
    .text
_start: mov $5, %edi
    jmp f
    ud2
f_return: inc %rax
other_place: jmp other_place
{THUNK}: ret
    int3
"""


def compiled(place: Path, source: str, *flags: str, name: str = "f.o") -> Path:
    """An object file of C ``source``, with what is assembler in it left out of C."""
    source = "\n".join(line for line in source.splitlines() if not line.strip().startswith(".globl"))
    (place / "f.c").write_text(source)
    usual = ("-O2", "-g", "-ffreestanding", "-fno-pic", "-mcmodel=kernel", "-fcf-protection=none", "-w")
    thunk = () if "-mfunction-return=keep" in flags else ("-mfunction-return=thunk-extern",)
    command = ["gcc", *usual, *thunk, *flags, "-c", "f.c", "-o", name]
    subprocess.run(command, cwd=place, check=True)
    return place / name


def assembled(place: Path, source: str, name: str) -> Path:
    (place / f"{name}.S").write_text(source)
    subprocess.run(["gcc", "-c", f"{name}.S", "-o", f"{name}.o"], cwd=place, check=True)
    return place / f"{name}.o"


def output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def command(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["thunks", *words])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return compiled(tmp_path, GOOD)


def test_one_symbol_number_changes_and_nothing_else(good: Path) -> None:
    before, code = good.read_bytes(), output("objdump", "-d", str(good))
    relocations, symbols = output("readelf", "-rW", str(good)), output("readelf", "-sW", str(good))
    lines = output("readelf", "--debug-dump=rawline,info", str(good))
    good.chmod(0o640)
    status, out, err = command(str(good))
    assert (status, err) == (0, "")
    assert "now jumps to f_return; also left to other_place" in out
    assert good.stat().st_mode & 0o777 == 0o640
    assert list(good.parent.glob(".f.o*")) == []
    after = good.read_bytes()
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert 1 <= len(changed) <= 4
    assert max(changed) - min(changed) < 4
    assert output("objdump", "-d", str(good)) == code
    assert output("readelf", "-sW", str(good)) == symbols
    assert output("readelf", "--debug-dump=rawline,info", str(good)) == lines
    rows = list(zip(relocations.splitlines(), output("readelf", "-rW", str(good)).splitlines(), strict=True))
    different = [(a, b) for a, b in rows if a != b]
    assert len(different) == 1
    old, new = different[0]
    assert THUNK in old
    assert "f_return" in new
    assert old.split()[0] == new.split()[0]
    assert old.split()[2] == new.split()[2]
    # the two functions without such a label still return by the thunk
    assert output("readelf", "-rW", str(good)).count(THUNK) == 2


def test_twice_is_once(good: Path) -> None:
    assert command(str(good), "--check")[0] == 1
    assert command(str(good))[0] == 0
    once, when = good.read_bytes(), good.stat().st_mtime_ns
    status, out, _ = command(str(good))
    assert status == 0
    assert "already jumps to f_return" in out
    assert (good.read_bytes(), good.stat().st_mtime_ns) == (once, when)
    assert command(str(good), "--check")[0] == 0
    assert rewrite(once) == once


def test_json(good: Path) -> None:
    row = {"function": "f", "label": "f_return", "also_left": ["other_place"]}
    for state, words in (("to do", ("--check",)), ("rewritten", ()), ("already", ())):
        found = json.loads(command(str(good), "--json", *words)[1])
        assert found["functions"][0].items() >= (row | {"state": state}).items()
        assert len(found["functions"]) == 1


def machine_of(image: Path) -> tuple[Machine, dict[str, int]]:
    elf = boot_patched(read_elf(image.read_bytes()))
    symbols = {s.name: s.address for s in elf.symbols}
    segment = next(s for s in elf.segments if s.va <= symbols["_start"] < s.va + s.size)
    insns, lifter = {}, Lifter()
    for va in range(segment.va, segment.va + len(segment.data)):
        code = bytes(segment.data[va - segment.va : va - segment.va + MAX_INSN])
        insns[va] = lifter.lift(va, code)
    kernel = PageFlag.KERNEL_ROOT
    pages = [Page(STACK, bytes(PAGE), kernel | PageFlag.WRITABLE)]
    pages += [
        Page(va, bytes(PAGE), kernel | PageFlag.EXECUTABLE)
        for va in range(segment.va & -PAGE, segment.va + len(segment.data), PAGE)
    ]
    made = Machine(target_of(insns, tuple(pages), symbols["_start"]))
    made["RIP"], made["RSP"], made["CS"] = symbols["_start"], STACK + 0x800, 0x10
    return made, symbols


def linked(place: Path, *objects: Path) -> Path:
    ld = ["ld", "-static", "-nostdlib", "-e", "_start", f"-Ttext={TEXT:#x}", "-o", str(place / "image")]
    script = place / "list.lds"
    script.write_text(
        f"SECTIONS {{ .sites : {{ __atomic_ist_return_sites = .; KEEP(*({SITES_SECTION}))"
        " __atomic_ist_return_sites_end = .; } } INSERT AFTER .text;"
    )
    with_list = ["-T", str(script)] if len(objects) > 2 else []
    subprocess.run([*ld, *with_list, *map(str, objects)], check=True, capture_output=True)
    return place / "image"


def runs_without_ret(image: Path) -> bool:
    """Whether f's result arrives at other_place, by way of f_return; and if so, without a RET."""
    machine, symbols = machine_of(image)
    passed = set()
    for _ in range(20):
        if machine["RIP"] == symbols["other_place"]:
            break
        if machine["RIP"] == symbols[THUNK]:
            return False
        passed.add(machine["RIP"])
        machine.step()
    assert symbols["f_return"] in passed
    assert (machine["RIP"], machine["RAX"]) == (symbols["other_place"], 16)
    return True


def test_built_runs(good: Path, tmp_path: Path) -> None:
    entry = assembled(tmp_path, ENTRY, "entry")
    assert not runs_without_ret(linked(tmp_path, entry, good))
    assert command(str(good))[0] == 0
    assert runs_without_ret(linked(tmp_path, entry, good))


def test_booted_runs(good: Path, tmp_path: Path) -> None:
    before = good.read_bytes()
    status, out, _ = command(str(good), "--sites", str(tmp_path / "sites.S"))
    assert status == 0
    assert "is to jump to f_return" in out
    assert good.read_bytes() == before
    sites = assembled(tmp_path, (tmp_path / "sites.S").read_text(), "sites")
    image = linked(tmp_path, assembled(tmp_path, ENTRY, "entry"), good, sites)
    assert runs_without_ret(image)
    assert command(str(good))[0] == 0
    rewritten = linked(tmp_path, tmp_path / "entry.o", good, sites)
    with pytest.raises(ImageError, match="is no jump to __x86_return_thunk: patched twice"):
        boot_patched(read_elf(rewritten.read_bytes()))
    assert "returns to f_return already" in command(str(good), "--sites", str(tmp_path / "x.S"))[2]
    assert not (tmp_path / "x.S").exists()


RETURNS_TWICE = """
    long f(long x) {
        if (x) { asm volatile("nop"); return 1; }
        asm volatile("cld");
        return 2;
    }
"""
CONDITIONAL = """
    long f(long x) { asm goto("jz __x86_return_thunk" :::: out); return 1; out: return 1; }
"""
INDIRECT = """
    long f(void **p, long x) { if (x) asm volatile("jmp *(%0)" :: "r" (p)); return 1; }
"""
RETPOLINE = """
    long f(long x) { if (x) asm volatile("jmp __x86_indirect_thunk_rax"); return 1; }
"""
SIBLING = """
    __attribute__((noinline)) long g(long x) { asm volatile("nop"); return x; }
    long f(long x) { return x ? g(x) : 1; }
"""
BAD = (
    (RETURNS_TWICE, ("-fno-crossjumping", "-fno-reorder-blocks"), "f has 2 jumps to __x86_return_thunk"),
    ("long f(long x) { return x; }", ("-mfunction-return=keep",), "is a return: compile it with"),
    ("void f(void) { for (;;); }", (), "f has no jump to __x86_return_thunk"),
    ("void g(void); long f(long x) { g(); return x; }", (), "is a call: the function"),
    (INDIRECT, (), "is an indirect branch"),
    (RETPOLINE, (), "is an indirect branch, by __x86_indirect_thunk_rax"),
    (SIBLING, (), "jumps into the function g|leaves the function"),
    (CONDITIONAL, (), "is not a plain jump to __x86_return_thunk"),
)


@pytest.mark.parametrize(("source", "flags", "says"), BAD)
def test_refused(tmp_path: Path, source: str, flags: tuple[str, ...], says: str) -> None:
    refused(compiled(tmp_path, source + 'asm(".globl f_return");', *flags), says)


def test_no_label(tmp_path: Path) -> None:
    refused(compiled(tmp_path, "long f(long x) { return x; }"), "no function has a label")


def refused(file: Path, says: str) -> None:
    before = file.read_bytes()
    for words in ((), ("--check",)):
        status, out, err = command(str(file), *words)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"atomicist: [^\n]+\n", err)
        assert re.search(says, err), err
        assert "internal error" not in err
    assert file.read_bytes() == before
    assert list(file.parent.glob(f".{file.name}*")) == []


def test_off_the_end(tmp_path: Path) -> None:
    source = (
        f".globl f, f_return\n.type f, @function\nf: jz 1f\njmp {THUNK}\n1: nop\ninc %rax\n.size f, . - f\n"
    )
    refused(assembled(tmp_path, source, "f"), r"does not end with its return but runs on \(inc\)")


def test_listed_by_objtool(tmp_path: Path) -> None:
    source = (
        f".globl f, f_return\n.type f, @function\nf: inc %rax\n1: jmp {THUNK}\n.size f, . - f\n"
        '.section .return_sites, "a"\n.long 1b - .\n'
    )
    refused(assembled(tmp_path, source, "f"), "is in .return_sites: rewrite before objtool")


def test_other_files_are_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    machine = data[:18] + b"\xb7\0" + data[20:]
    for content, says in (
        (b"", "not an ELF file"),
        (b"int main;\n", "not an ELF file"),
        (data[:4], "damaged or cut"),
        (data[:0x40], "damaged or cut"),
        (data[: len(data) // 2], "damaged or cut|is cut"),
        (machine, "EM_AARCH64, 64 bits: give an x86-64 object"),
        (data[:4] + b"\1" + data[5:], "32 bits|damaged"),
    ):
        file = tmp_path / "other.o"
        file.write_bytes(content)
        refused(file, says)
    image = linked(tmp_path, assembled(tmp_path, ENTRY, "entry"), good)
    refused(image, "linked already: give an object file")
    for path, says in ((tmp_path, "no regular file"), (tmp_path / "nonsuch", "no regular file")):
        assert says in command(str(path))[2]


def test_any_damage_is_refused_or_read(good: Path) -> None:
    """Each byte of the headers and of the relocations changed: one line, or a sound result."""
    data = good.read_bytes()
    places = [*range(64), *range(len(data) - 64 * 12, len(data), 3)]
    for at in places:
        bad = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        with contextlib.suppress(ImageError):
            assert all(s.label == f"{s.function}_return" for s in find_sites(rewrite(bad)))


def test_symbolic_link_stays(good: Path) -> None:
    link = good.parent / "link.o"
    link.symlink_to(good.name)
    assert command(str(link))[0] == 0
    assert link.is_symlink()
    assert find_sites(good.read_bytes())[0].done
