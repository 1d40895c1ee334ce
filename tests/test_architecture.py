# SPDX-License-Identifier: GPL-2.0-only
"""The rules of the house that a machine can check, and a specimen for each that it must reject.

Each rule is a function from a checkout to findings; a finding is one line, `path:line: what is wrong`.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "atomicist"

# From the bottom up: a room uses only those before it in this list.
ROOMS = (
    "isa",
    "machine",
    "native",
    "image",
    "spec",
    "search",
    "crosscheck",
    "guest",
    "tree",
    "report",
    "cli",
)

# Rooms that may see less than everything below. A report is made from result objects; what could run, lift or
# change a machine is not for it.
NARROWER = {"report": {"image", "spec", "search", "tree"}}

# Modules beside the rooms may be used by every room, so they use none; these are the exceptions.
DOORS = {"__main__": {"cli"}}

# Second opinions belong into the tests: what checks us must not be part of us. The verb that asks one has
# it in one module, and nobody else.
TEST_ONLY = {"unicorn", "hypothesis", "pytest", "_pytest"}
ASKS = {"src/atomicist/crosscheck/engines.py": {"unicorn"}}

LONGEST_MODULE = 400
# Longer modules, each with the reason. Only a table of data may be here.
LONGER_MODULES: dict[str, str] = {}

SPDX = "SPDX-License-Identifier: GPL-2.0-only"
SPDX_SUFFIXES = {".py", ".pyi", ".c", ".h", ".S", ".s", ".lds", ".sh", ".mk", ".toml", ".lock"}
SPDX_NAMES = {"Makefile", "Kbuild"}
SPDX_DIRECTORIES = {"tools", ".ci"}
# An interpreter line, an encoding and a doc line may come first.
SPDX_WITHIN = 5

# Written in pieces, because this file is checked too.
# A path on from a variable or a word is not from the root: $x/..., "$x"/..., a/...
_PLACES = "|".join(("root/", "home/\\w", "Users/\\w", "work" + "/", "tmp/\\w", "opt/\\w", "mnt/\\w"))
MACHINE_PATH = re.compile(rf"(?<![\w.~)}}\]*/-])(?<![\w}})][\"'])/(?:{_PLACES})")
REGISTRY = re.compile(
    r"(?<!\w)(?:(?:test\.)?" + r"pypi\.(?:org|python)|python" + r"hosted\.org|--(?:extra-)?" + r"index-url)",
    re.IGNORECASE,
)


# In a checkout git knows what is ours (.gitignore); an unpacked archive has no git to ask.
NOT_OURS = {
    ".venv",
    "build",
    "dist",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}


def files(root: Path) -> list[Path]:
    """Every file of the checkout that is tracked or could be, relative to its root."""
    if (root / ".git").exists():
        # safe.directory: a checkout of another owner is read like any other.
        command = ["git", "-c", "safe.directory=*", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
        listing = subprocess.run([*command, "--exclude-standard"], check=True, capture_output=True, text=True)
        found = [Path(name) for name in listing.stdout.split("\0") if name]
    else:
        found = [path.relative_to(root) for path in root.rglob("*")]
        found = [path for path in found if not NOT_OURS & set(path.parts)]
    return sorted(path for path in found if (root / path).is_file())


def modules(root: Path) -> Iterator[tuple[Path, tuple[str, ...], ast.Module]]:
    """Each module of the package: its file, its dotted name in parts, its syntax tree."""
    for path in files(root):
        if path.suffix == ".py" and path.parts[:2] == ("src", PACKAGE):
            tree = ast.parse((root / path).read_text(encoding="utf-8"), str(path))
            yield path, path.with_suffix("").parts[1:], tree


def imports(module: tuple[str, ...], tree: ast.Module) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Every dotted name imported anywhere: in functions, under TYPE_CHECKING, relative, or by a string."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, tuple(alias.name.split("."))
            case ast.ImportFrom(module=base, names=names, level=level):
                # One dot is the package the module is in; an __init__ is in the package it is.
                start = module[: len(module) - level] if level else ()
                for alias in names:
                    yield node.lineno, (*start, *(base.split(".") if base else ()), alias.name)
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(text)), *_]
            ):
                if name in {"import_module", "__import__"}:
                    yield node.lineno, tuple(text.split("."))


def arrows(root: Path) -> list[str]:
    """Rule: each room uses only rooms below it."""
    findings = []
    for path, module, tree in modules(root):
        room = module[1]
        if len(module) > 2:
            if room not in ROOMS:
                findings.append(f"{path}:1: {room} is not a room: give it a place in ROOMS")
                continue
            allowed = NARROWER.get(room, set(ROOMS[: ROOMS.index(room)])) | {room}
        else:
            allowed = DOORS.get(room, set())
        for line, name in imports(module, tree):
            if name[0] == PACKAGE and len(name) > 1 and name[1] in ROOMS and name[1] not in allowed:
                findings.append(f"{path}:{line}: {room} may not use {name[1]}")
            if name == (PACKAGE, "*"):
                findings.append(f"{path}:{line}: a star import hides what is used")
    return findings


def second_opinions(root: Path) -> list[str]:
    """Rule: what the tests compare with is used by the tests alone."""
    return [
        f"{path}:{line}: {name[0]} is for tests only"
        for path, module, tree in modules(root)
        for line, name in imports(module, tree)
        if name[0] in TEST_ONLY - ASKS.get(str(path), set())
    ]


def lengths(root: Path) -> list[str]:
    """Rule: a module fits into a head; and the list of exceptions does not outlive its reasons."""
    counts = {
        str(path): len((root / path).read_text(encoding="utf-8").splitlines())
        for path in files(root)
        if path.parts[0] == "src" and path.suffix == ".py"
    }
    findings = [
        f"{path}:{count}: {count} lines, {LONGEST_MODULE} are allowed"
        for path, count in counts.items()
        if count > LONGEST_MODULE and path not in LONGER_MODULES
    ]
    findings += [
        f"{path}:1: needs no exception any more: take it out of LONGER_MODULES"
        for path in LONGER_MODULES
        if counts.get(path, 0) <= LONGEST_MODULE
    ]
    return findings


def licences(root: Path) -> list[str]:
    """Rule: every source file says its licence in its first lines."""

    def has_line(path: Path) -> bool:
        head = (root / path).read_text(encoding="utf-8", errors="replace").splitlines()[:SPDX_WITHIN]
        return any(re.search(rf"{SPDX}\s*(\*/)?\s*$", line) for line in head)

    sources = [
        path
        for path in files(root)
        if path.suffix in SPDX_SUFFIXES or path.name in SPDX_NAMES or path.parts[0] in SPDX_DIRECTORIES
    ]
    return [f"{path}:1: no line '{SPDX}'" for path in sources if not has_line(path)]


def places(root: Path) -> list[str]:
    """Rule: nothing says where it was written, or where packages come from."""
    findings = []
    for path in files(root):
        content = (root / path).read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            if found := MACHINE_PATH.search(line):
                findings.append(f"{path}:{number}: path of one machine: {found.group()}")
            if found := REGISTRY.search(line):
                findings.append(f"{path}:{number}: package registry: {found.group()}")
    return findings


RULES: list[Callable[[Path], list[str]]] = [arrows, second_opinions, lengths, licences, places]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule: Callable[[Path], list[str]]) -> None:
    findings = rule(ROOT)
    assert not findings, "\n" + "\n".join(findings)


def test_something_is_checked() -> None:
    names = {str(path) for path in files(ROOT)}
    assert {
        "pyproject.toml",
        "tools/bootstrap",
        "src/atomicist/__init__.py",
        "tests/test_architecture.py",
    } <= names
    assert {module[1] for _, module, _ in modules(ROOT) if len(module) > 2} <= set(ROOMS)


def test_narrower_only_narrows() -> None:
    for room, seen in NARROWER.items():
        assert seen < set(ROOMS[: ROOMS.index(room)])


# --- specimens ---

# rule, file, its text, the one finding
ROOT_DIRECTORY = "/" + "root"
SPECIMENS = [
    (arrows, "src/atomicist/isa/a.py", "import atomicist.machine\n", "1: isa may not use machine"),
    (arrows, "src/atomicist/isa/a.py", "import atomicist.cli.main as x\n", "1: isa may not use cli"),
    (arrows, "src/atomicist/machine/a.py", "from atomicist import native\n", "1: machine may not use native"),
    (arrows, "src/atomicist/native/a.py", "from ..image import elf\n", "1: native may not use image"),
    (arrows, "src/atomicist/native/a.py", "from .. import image\n", "1: native may not use image"),
    (arrows, "src/atomicist/native/__init__.py", "from ..spec import x\n", "1: native may not use spec"),
    (arrows, "src/atomicist/isa/deep/a.py", "from ...spec.events import x\n", "1: isa may not use spec"),
    (
        arrows,
        "src/atomicist/spec/a.py",
        "def f():\n    import atomicist.search\n",
        "2: spec may not use search",
    ),
    (
        arrows,
        "src/atomicist/search/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from atomicist.tree import x\n",
        "3: search may not use tree",
    ),
    (
        arrows,
        "src/atomicist/tree/a.py",
        "from atomicist.report.html import x\n",
        "1: tree may not use report",
    ),
    (
        arrows,
        "src/atomicist/report/a.py",
        "from atomicist.machine import x\n",
        "1: report may not use machine",
    ),
    (arrows, "src/atomicist/isa/a.py", "import_module('atomicist.spec')\n", "1: isa may not use spec"),
    (arrows, "src/atomicist/paths.py", "from . import isa\n", "1: paths may not use isa"),
    (arrows, "src/atomicist/__init__.py", "from . import isa\n", "1: __init__ may not use isa"),
    (arrows, "src/atomicist/isa/a.py", "from atomicist import *\n", "1: a star import hides what is used"),
    (arrows, "src/atomicist/attic/a.py", "", "1: attic is not a room: give it a place in ROOMS"),
    (
        second_opinions,
        "src/atomicist/isa/a.py",
        "\nimport unicorn.x86_const\n",
        "2: unicorn is for tests only",
    ),
    (
        second_opinions,
        "src/atomicist/isa/a.py",
        "from hypothesis import x\n",
        "1: hypothesis is for tests only",
    ),
    (lengths, "src/atomicist/isa/a.py", "\n" * 401, "401: 401 lines, 400 are allowed"),
    *[
        (licences, name, "text\n", f"1: no line '{SPDX}'")
        for name in (
            "a.py",
            "kernel/a.c",
            "kernel/a.h",
            "kernel/a.S",
            "a.lds",
            "a.sh",
            "kernel/Makefile",
            "tools/a",
        )
    ],
    (licences, "a.py", "\n" * 5 + f"# {SPDX}\n", f"1: no line '{SPDX}'"),
    (licences, "a.py", f"# {SPDX.removesuffix('-only')}-or-later\n", f"1: no line '{SPDX}'"),
    (places, "a.md", "see " + "/" + "work/x\n", "1: path of one machine: " + "/" + "work/"),
    (places, "a.md", "\n`" + "/" + "tmp/x`\n", "2: path of one machine: " + "/" + "tmp/x"),
    (places, "a.py", f"X = '{ROOT_DIRECTORY}/x'\n", f"1: path of one machine: {ROOT_DIRECTORY}/"),
    (places, "a", "#!" + "/" + "home/me/x\n", "1: path of one machine: " + "/" + "home/m"),
    (
        places,
        "a.lock",
        "https://files.python" + "hosted.org/\n",
        "1: package registry: python" + "hosted.org",
    ),
    (places, "a.lock", "--extra-" + "index-url x\n", "1: package registry: --extra-" + "index-url"),
]


@pytest.mark.parametrize(("rule", "name", "text", "finding"), SPECIMENS)
def test_specimen(
    tmp_path: Path, rule: Callable[[Path], list[str]], name: str, text: str, finding: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert rule(tmp_path) == [f"{name}:{finding}"]


GOOD = [
    (
        arrows,
        "src/atomicist/machine/a.py",
        "from ..isa import ir\nfrom . import state\nimport atomicist.paths\n",
    ),
    (arrows, "src/atomicist/machine/deep/__init__.py", "from . import isa\nfrom .. import cli\n"),
    (arrows, "src/atomicist/cli/a.py", "from atomicist import isa, report\n"),
    (arrows, "src/atomicist/__main__.py", "from atomicist.cli.main import main\n"),
    (lengths, "src/atomicist/isa/a.py", "\n" * 400),
    (licences, "kernel/a.h", f"/* {SPDX} */\n"),
    (licences, "tools/a", f"#!/bin/sh\n# {SPDX}\n"),
    (licences, "docs/a.md", "text\n"),
    (
        places,
        "a.md",
        "docs" + "/" + "work/a ~/" + "work/a $x" + "/" + 'tmp, /usr/bin, "$x"/' + "tmp/a ./" + "opt/a\n",
    ),
]


@pytest.mark.parametrize(("rule", "name", "text"), GOOD)
def test_good(tmp_path: Path, rule: Callable[[Path], list[str]], name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert rule(tmp_path) == []


def test_exception_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "src/atomicist/isa/a.py"
    monkeypatch.setitem(LONGER_MODULES, name, "a table")
    assert lengths(tmp_path) == [f"{name}:1: needs no exception any more: take it out of LONGER_MODULES"]
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("\n" * 401)
    assert lengths(tmp_path) == []


def test_files_in_git_and_without(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    for name in ("a.py", "build/b.py"):
        (tmp_path / name).write_text("")
    assert files(tmp_path) == [Path("a.py")]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("build/\n")
    # Not added yet, and checked all the same: a rule that waits for the commit comes too late.
    assert files(tmp_path) == [Path(".gitignore"), Path("a.py")]
