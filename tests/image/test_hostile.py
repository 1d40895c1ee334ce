# SPDX-License-Identifier: GPL-2.0-only
"""An image from a stranger can do no more than produce a finding: nothing of it is run on the host, nothing
is written but the outputs, and nothing that it says is acted on by a compiler, a terminal or a parser."""

import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from atomicist.image import bare, cache, specimens
from atomicist.image.bare import BareConfig
from atomicist.image.errors import ImageError
from atomicist.image.vmlinux import load
from atomicist.machine.target import Target
from atomicist.native import build, codegen, engine
from atomicist.native.build import cache_dir
from atomicist.native.engine import Engine
from atomicist.report.as_json import result_json
from atomicist.report.as_junit import result_junit
from atomicist.report.as_ktap import result_ktap
from atomicist.report.text import clean
from atomicist.search.progress import silent
from atomicist.search.replay import MAX_STEPS
from atomicist.search.verify import verify
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES
from tests.cli.command import run
from tests.debian_kernel import fetched
from tests.fuzz import readers

EVIL = (
    '"; system("touch owned"); //\x1b[31m<script>]]>&\u202e*/ #include "/etc/passwd"\\\n'
    "-fplugin=x.so $(id) not ok 1"
)
"""What a name would have to be to do harm: in C, to a shell, a compiler, a terminal, XML, KTAP."""


def entry() -> Target:
    config = BareConfig()
    return bare.load(bare.build(bare.kernel_source(), config, cache_dir()), config)


def renamed(target: Target) -> Target:
    """The target with every string in it replaced by `EVIL` and a number."""
    insns = {
        va: replace(i, text=f"{EVIL} {va}", ops=tuple(replace(o, text=EVIL if o.text else "") for o in i.ops))
        for va, i in target.insns.items()
    }
    regions = tuple(replace(r, name=f"{EVIL} {n}") for n, r in enumerate(target.regions))
    kept = "__entry_text_start"
    symbols = {name if name == kept else f"{EVIL} {name}": at for name, at in target.symbols.items()}
    return replace(
        target, name=EVIL, build_id=EVIL, config=(EVIL,), regions=regions, insns=MappingProxyType(insns),
        symbols=MappingProxyType(symbols),
    )  # fmt: skip


def test_no_string_of_an_image_is_in_the_c() -> None:
    """The C of an image is a function of its instructions' meaning and of numbers alone."""
    plain, evil = entry(), renamed(entry())
    assert codegen.source(evil, EVENTS) == codegen.source(plain, EVENTS)
    text = codegen.source(evil, EVENTS)
    assert "system" not in text
    # directives and strings in it are those of the printer
    directive = re.compile(r'#include "compiled\.h"|#define [A-Z_]+ [0-9a-fxul]+')
    assert all(directive.fullmatch(line) for line in text.splitlines() if line.startswith("#"))
    assert re.findall(r'"[^"]*"', text) == ['"compiled.h"', '"default"']


def test_nothing_of_an_image_is_on_the_compilers_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor in its environment, nor in the names of files; and what is compiled is only what is printed."""
    evil = renamed(entry())
    monkeypatch.setenv("ATOMICIST_CACHE", str(tmp_path))
    calls: list[tuple[Any, ...]] = []
    real = subprocess.run

    def watched(command: Any, *args: Any, **more: Any) -> Any:
        calls.append((list(map(str, command)), more.get("env")))
        return real(command, *args, **more)

    monkeypatch.setattr(subprocess, "run", watched)
    codegen.compiled(evil, CODES, EVENTS, ERROR_TOKEN)
    with Engine(evil, CODES, EVENTS, ERROR_TOKEN, MAX_STEPS):
        pass
    assert len(calls) >= 2
    words = {word for command, _ in calls for word in command}
    known = {
        *build.FLAGS,
        *codegen.FLAGS,
        *engine.FLAGS,
        "-march=native",
        "-o",
        "out.so",
        "--version",
        build.compiler(),
    }
    assert not [word for word in words - known if not re.fullmatch(r"[a-z_]+\.c", word)]
    assert all(env is None for _, env in calls)
    assert all(re.fullmatch(r"[0-9a-f]{32}\.so", place.name) for place in tmp_path.iterdir())


def test_reports_of_a_hostile_image_are_whole_and_harmless() -> None:
    """From names in the image through a real search to the documents."""
    evil = renamed(bare_specimen())
    made, _ = verify(evil, names=("user",), vectors=(0, 2), workers=1, listener=silent)
    assert made.findings
    for text in (result_ktap(made), result_junit(made), result_json(made)):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    lines = result_ktap(made).splitlines()
    assert all(
        re.match(r"KTAP version 1$|1\.\.\d+$|# |(not )?ok \d+ (IST\d{3}|CLOSED) ", line) for line in lines
    )
    names = {node.tag for node in ET.fromstring(result_junit(made).split("\n", 1)[1]).iter()}  # noqa: S314
    assert names <= {"testsuites", "testsuite", "properties", "property", "testcase", "failure", "skipped"}
    assert clean(EVIL).isprintable()


def bare_specimen() -> Target:
    return specimens.load(specimens.find("naive"), BareConfig(), cache_dir())


def test_a_hostile_kernel_writes_nothing_but_its_outputs(tmp_path: Path) -> None:
    """A kernel with hostile symbols, from the command line."""
    fetched()
    data, _ = readers.carved()
    # of the same length, so that the string table keeps its places
    for name in (b"asm_exc_nmi", b"exc_nmi", b"sync_regs", b"fixup_bad_iret"):
        evil = b'\x1b[31m";|`id`$(x)'[: len(name)].ljust(len(name), b"!")
        data = data.replace(b"\0" + name + b"\0", b"\0" + evil + b"\0")
    image, work = tmp_path / "vmlinux", tmp_path / "work"
    image.write_bytes(data)
    work.mkdir()
    store = tmp_path / "cache"
    report = tmp_path / "report.xml"
    words = ("--vector", "mc", "--context", "kernel-task", "--budget", "1", "--junit", str(report))
    places = {"ATOMICIST_CACHE": str(store), "HOME": str(work), "TMPDIR": str(work)}
    ran = run("verify", "--kernel", str(image), *words, **places)
    assert ran.returncode in (0, 1, 2, 3)
    assert "Traceback" not in ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"vmlinux", "work", "cache", "report.xml"}
    assert not list(work.iterdir()), "something was left behind"
    entry_name = re.compile(r"[0-9a-f]{32}\.so|target-[0-9a-f]{32}\.pickle")
    assert all(entry_name.fullmatch(place.name) for place in store.glob("*"))


def test_errors_name_what_is_hostile_in_one_printable_line(tmp_path: Path) -> None:
    image = tmp_path / "vm\x1b[31mlinux"
    image.write_bytes(b"\x7fELF" + bytes(100))
    ran = run("verify", "--kernel", str(image))
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.strip().isprintable()
    with pytest.raises(ImageError):
        load(image)


def test_the_cache_is_all_that_loading_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "cache"
    made = cache.cached(store, b"image", "../../evil", entry)
    assert made == entry()
    assert [p.name[:7] for p in store.iterdir()] == ["target-"]
    assert {p.name for p in tmp_path.iterdir()} == {"cache"}
