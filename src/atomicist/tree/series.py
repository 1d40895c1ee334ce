# SPDX-License-Identifier: GPL-2.0-only
"""Makes a series of patches out of the tables of ``hooks``: one for each step, with a cover letter.

The patches are made by git in a repository of their own, which holds only the files that change; they
apply to the whole tree.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atomicist.tree.apply import Change, Tables, applied, plan_apply, plan_undo, texts, version
from atomicist.tree.build import be_strict
from atomicist.tree.errors import TreeError
from atomicist.tree.hooks import Step
from atomicist.tree.messages import COVER, MESSAGES, PREFIX

STEPS: Final = tuple(sorted(Step, key=lambda step: step.value))

ACCEPTED: Final = {
    "COMPLEX_MACRO": "tables of vectors are macros that expand to rows",
    "MULTISTATEMENT_MACRO_USE_DO_WHILE": "the same: rows are statements, and some return",
    "MACRO_WITH_FLOW_CONTROL": "the same",
    "TRAILING_SEMICOLON": "the same",
    "SINGLE_STATEMENT_DO_WHILE_MACRO": "the loop is there to make a statement of a row",
    "SPACING": "asm volatile(... : : ...) without outputs",
    "CONSTANT_COMPARISON": "#if, between two constants: which way to copy",
    "FUNCTION_ARGUMENTS": "a macro that calls a function is taken for its prototype",
    "AVOID_EXTERNS": "labels of the assembler, used by one file",
    "FILE_PATH_CHANGES": "MAINTAINERS is for the one who submits this",
    "MISSING_SIGN_OFF": "only a person can sign off",
}  # fmt: skip
"""What checkpatch says of these patches by design, with the reason; anything else is a finding."""


@dataclass(frozen=True, slots=True)
class Size:
    """Lines added and removed, in all files and in those of assembler."""

    added: int
    removed: int
    asm_added: int
    asm_removed: int


@dataclass(frozen=True, slots=True)
class Series:
    """The files of a series; ``remarks``: what checkpatch said beside what is accepted, one line each."""

    patches: tuple[Path, ...]
    diffstat: str
    size: Size
    accepted: Mapping[str, int]
    remarks: tuple[str, ...]


def originals(tree: Path, tables: Tables) -> dict[str, str]:
    """The tree's own files that get hooks, as they were before, whether the tree is patched or not."""
    version(tree)
    undone = texts(plan_undo(tree, tables)) if applied(tree, tables) else {}
    result = {}
    for name in tables.touched():
        text = undone.get(name)
        result[name] = text if text is not None else (tree / name).read_text(encoding="utf-8")
    return result


def steps(tree: Path, tables: Tables) -> dict[Step, tuple[Change, ...]]:
    """For each step what differs from the original tree."""
    before = originals(tree, tables)
    with tempfile.TemporaryDirectory(prefix="atomicist-series-") as name:
        plain = _plain(Path(name), tree, before)
        return {step: plan_apply(plain, tables, step) for step in STEPS}


def make_series(tree: Path, tables: Tables, output: Path, assisted_by: str) -> Series:
    """Write the series into ``output``, which must not have patches yet.

    Raises TreeError when git is missing or does not know who the author is.
    """
    if output.exists() and (not output.is_dir() or any(output.glob("*.patch"))):
        raise TreeError(f"{output}: has patches already: name another directory, or remove them")
    before = originals(tree, tables)
    checkpatch = tree / "scripts" / "checkpatch.pl"
    with tempfile.TemporaryDirectory(prefix="atomicist-series-") as name:
        work = _plain(Path(name), tree, before)
        changes = {step: plan_apply(work, tables, step) for step in STEPS}
        _git(work, "init", "-q", "-b", "series", ".")
        _git(work, "config", "commit.gpgsign", "false")
        _git(work, "add", "-f", *before)
        _git(work, "commit", "-q", "--no-verify", "-m", "base")
        made: dict[str, str | None] = {}
        number = 0
        for step in STEPS:
            if texts(changes[step]) == made:
                continue
            made = dict(texts(changes[step]))
            number += 1
            message = MESSAGES[step]
            text = f"{message.subject}\n\n{_wrapped(message.body)}\n\nAssisted-by: {assisted_by}\n"
            for change in changes[step]:
                path = work / change.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(change.new or "", encoding="utf-8")
            _git(work, "add", "-f", *(change.file for change in changes[step]))
            _git(work, "commit", "-q", "--no-verify", "--cleanup=verbatim", "-m", text)
        numstat = _git(work, "diff", "--numstat", f"HEAD~{number}")
        diffstat = _git(work, "diff", "--stat=76", f"HEAD~{number}").rstrip()
        patches = work / ".patches"
        _git(
            work, "format-patch", "-q", "--cover-letter", "--subject-prefix", PREFIX, "--no-signature",
            "-o", str(patches), f"HEAD~{number}",
        )  # fmt: skip
        _fill_cover(patches / "0000-cover-letter.patch", version(tree))
        accepted, remarks = _checkpatch(checkpatch, sorted(patches.glob("*.patch"))[1:])
        try:
            output.mkdir(parents=True, exist_ok=True)
            copied = [Path(shutil.copy(patch, output)) for patch in sorted(patches.glob("*.patch"))]
        except OSError as error:
            raise TreeError(f"{output}: {error.strerror}") from None
    return Series(tuple(copied), diffstat, _size(numstat), accepted, remarks)


def bisect(
    tree: Path,
    tables: Tables,
    work: Path,
    check: Callable[[Step, Path], tuple[str, ...]],
    *,
    strict: bool = False,
) -> dict[Step, tuple[str, ...]]:
    """Build each step in ``work``, a copy of ``tree``; what ``check`` has to say of each, nothing if good.

    The copy stays, so that another run builds less. With ``strict`` it is built with all of objtool's checks.
    """
    changes = steps(tree, tables)
    if not work.exists():
        try:
            shutil.copytree(tree, work, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        except (OSError, shutil.Error) as error:
            shutil.rmtree(work, ignore_errors=True)
            raise TreeError(f"{work}: {error}") from None
    if strict:
        be_strict(work)
    before = originals(tree, tables)
    found = {}
    for step in STEPS:
        wanted = {**before, **{c.file: c.new for c in changes[step]}}
        for own in tables.files:
            if own.file not in wanted:
                (work / own.file).unlink(missing_ok=True)
        for name, text in wanted.items():
            path = work / name
            # A file that stays the same keeps its time, so that make builds nothing for it.
            if text is not None and (not path.exists() or path.read_text(encoding="utf-8") != text):
                path.write_text(text, encoding="utf-8")
        found[step] = check(step, work)
    return found


def _plain(place: Path, tree: Path, before: Mapping[str, str]) -> Path:
    """A directory that looks enough like the unpatched tree to be patched."""
    for name in ("Makefile", "Kconfig", "arch/x86/entry/entry_64.S", *before):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in before:
            target.write_text(before[name], encoding="utf-8")
        else:
            shutil.copy(tree / name, target)
    return place


def _wrapped(body: str) -> str:
    # A line that starts with # would be a comment to git: keep #MC with the word before it.
    paragraphs = body.strip().replace("\n#", " #").replace(" #", "\0#").split("\n\n")
    filled = (textwrap.fill(x, 72, break_on_hyphens=False) for x in paragraphs)
    return "\n\n".join(filled).replace("\0#", " #")


def _git(work: Path, *words: str) -> str:
    hidden = {name: value for name, value in os.environ.items() if not name.startswith("GIT_DIR")}
    try:
        done = subprocess.run(
            ["git", "-C", str(work), *words], capture_output=True, text=True, check=False,
            env={**hidden, "GIT_CONFIG_NOSYSTEM": "1"},
        )  # fmt: skip
    except FileNotFoundError:
        raise TreeError("git is not installed: apt-get install git") from None
    if done.returncode:
        if "user.email" in done.stderr or "identity" in done.stderr:
            raise TreeError("git does not know the author: git config --global user.name and user.email")
        raise TreeError(f"git {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def _fill_cover(path: Path, base: str) -> None:
    text = path.read_text(encoding="utf-8")
    text = text.replace("*** SUBJECT HERE ***", COVER.subject)
    text = text.replace("*** BLURB HERE ***", f"{COVER.body}\nBased on Debian's linux-source, {base}.")
    path.write_text(text, encoding="utf-8")


def _size(numstat: str) -> Size:
    rows = [line.split("\t") for line in numstat.splitlines()]
    asm = [row for row in rows if row[2].endswith(".S") and not row[2].endswith(".lds.S")]
    return Size(
        sum(int(r[0]) for r in rows), sum(int(r[1]) for r in rows),
        sum(int(r[0]) for r in asm), sum(int(r[1]) for r in asm),
    )  # fmt: skip


def _checkpatch(script: Path, patches: list[Path]) -> tuple[Mapping[str, int], tuple[str, ...]]:
    if not script.is_file() or shutil.which("perl") is None:
        return {}, ("checkpatch was not run: no perl, or no scripts/checkpatch.pl in the tree",)
    accepted: Counter[str] = Counter()
    remarks = []
    for patch in patches:
        command = ["perl", str(script), "--no-tree", "--terse", "--show-types", str(patch)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            found = re.match(r"(?P<where>.*?): (?:ERROR|WARNING):(?P<type>\w+): (?P<what>.*)", line)
            if found and found["type"] in ACCEPTED:
                accepted[found["type"]] += 1
            elif found:
                remarks.append(f"{Path(found['where'].split(':')[0]).name}: {found['type']}: {found['what']}")
    return dict(accepted), tuple(remarks)
