# SPDX-License-Identifier: GPL-2.0-only
"""Puts the entry into a Linux tree, and takes it out again.

Everything is decided in memory first: what each file is to hold is computed from what it holds, by the tables
of ``hooks``. A tree is in one of two states, with all of it or with none; in any other, and where a place is
not as the tables say, nothing is written. Files are written beside the old ones and renamed; when that fails
half-way, what has been renamed is put back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atomicist.tree.errors import TreeError
from atomicist.tree.hooks import HOOKS, OWN_FILES, Hook, OwnFile, Step, Where

LAST: Final = max(Step, key=lambda step: step.value)
KERNEL_MARKS: Final = ("Makefile", "Kconfig", "arch/x86/entry/entry_64.S", "arch/x86/kernel/idt.c")
"""What has to be there for a directory to be an x86 kernel's source."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What goes into a tree, and where its own files come from."""

    source: Path
    hooks: Sequence[Hook] = HOOKS
    files: Sequence[OwnFile] = OWN_FILES

    def own(self, file: OwnFile, step: Step) -> str:
        """What ``file`` holds as of ``step``."""
        text = (self.source / file.source).read_text(encoding="utf-8")
        drop = [pattern for pattern, when in file.later if when.value > step.value]
        if not drop:
            return text
        lines = text.splitlines(keepends=True)
        return "".join(x for x in lines if not any(re.fullmatch(p, x.rstrip("\n")) for p in drop))

    def touched(self) -> tuple[str, ...]:
        """The tree's own files that get hooks, in order of the table."""
        return tuple(dict.fromkeys(hook.file for hook in self.hooks))


@dataclass(frozen=True, slots=True)
class Change:
    """A file's text before and after; None: it does not exist."""

    file: str
    old: str | None
    new: str | None


def version(tree: Path) -> str:
    """The kernel's version by its Makefile; TreeError when this is no kernel's source."""
    if not tree.exists():
        raise TreeError(f"{tree}: no such directory; `atomicist linux prepare {tree}` makes one")
    for mark in KERNEL_MARKS:
        if not (tree / mark).is_file():
            raise TreeError(f"{tree}: not the source of an x86 Linux kernel: no {mark}")
    names = ("VERSION", "PATCHLEVEL", "SUBLEVEL")
    head = _read(tree / "Makefile")[:4096]
    numbers = [re.search(rf"^{name} = (\d+)$", head, re.MULTILINE) for name in names]
    if not all(numbers):
        raise TreeError(f"{tree}/Makefile: no VERSION, PATCHLEVEL and SUBLEVEL: not the source of a kernel")
    return ".".join(number.group(1) for number in numbers if number)


def applied(tree: Path, tables: Tables) -> bool:
    """Whether the tree has all of it (True) or none (False); TreeError when it has a part of it."""
    have, lack = [], []
    for own in tables.files:
        path = tree / own.file
        if not path.exists():
            lack.append(own.file)
        elif _read(path) == tables.own(own, LAST):
            have.append(own.file)
        else:
            raise TreeError(f"{path}: differs from {own.source}: someone changed it; move it away first")
    for hook in tables.hooks:
        (have if _find_text(_read(tree / hook.file), hook) is not None else lack).append(hook.file)
    if have and lack:
        raise TreeError(
            f"{tree}: {have[0]} is patched, but {lack[0]} is not: start from a fresh tree, or put this right"
        )
    return bool(have)


def plan_apply(tree: Path, tables: Tables, step: Step = LAST) -> tuple[Change, ...]:
    """What putting in everything up to ``step`` changes; empty when the tree has all of it already."""
    found = version(tree)
    if applied(tree, tables):
        return ()
    _refuse_local_changes(tree, tables.touched())
    changes = []
    for name in tables.touched():
        old = _read(tree / name)
        new = old
        for hook in tables.hooks:
            if hook.file == name and hook.step.value <= step.value:
                new = _insert(new, hook, found)
        if new != old:
            changes.append(Change(name, old, new))
    files = [own for own in tables.files if own.step.value <= step.value]
    return (*changes, *(Change(own.file, None, tables.own(own, step)) for own in files))


def plan_undo(tree: Path, tables: Tables) -> tuple[Change, ...]:
    """What taking it out changes; empty when the tree has none of it."""
    version(tree)
    if not applied(tree, tables):
        return ()
    changes = [Change(own.file, tables.own(own, LAST), None) for own in tables.files]
    for name in tables.touched():
        old = _read(tree / name)
        new = old
        # The last first: a hook may stand beside the text of one before it.
        for hook in reversed(tables.hooks):
            if hook.file == name:
                at = _find_text(new, hook)
                if at is None:
                    raise TreeError(f"{tree / name}: the lines put there for {hook.anchor[0]!r} are changed")
                new = new[:at] + new[at + len(hook.text) :]
        changes.append(Change(name, old, new))
    return tuple(changes)


def write(tree: Path, changes: Iterable[Change]) -> None:
    """Make the changes, all or none; TreeError when the disk does not let us."""
    changes = tuple(changes)
    done: list[Change] = []
    try:
        _check_space(tree, changes)
        for change in changes:
            _put(tree / change.file, change.new)
            done.append(change)
    except BaseException as failure:
        for change in reversed(done):
            _put(tree / change.file, change.old)
        if isinstance(failure, OSError):
            raise TreeError(f"{tree}: {failure.strerror or failure}; the tree is as it was") from None
        raise


def check_anchors(tree: Path, tables: Tables) -> tuple[str, ...]:
    """All places that are not as the tables say, one line each, by file and anchor."""
    found = version(tree)
    bad = []
    for name in tables.touched():
        try:
            text = _read(tree / name)
        except TreeError as missing:
            bad.append(str(missing))
            continue
        for hook in tables.hooks:
            if hook.file == name:
                try:
                    text = _insert(text, hook, found)
                except TreeError as reason:
                    bad.append(str(reason))
    return tuple(bad)


def _insert(text: str, hook: Hook, found: str) -> str:
    lines = text.splitlines(keepends=True)
    at = _anchor(lines, hook, found)
    if hook.where is Where.AFTER:
        at += len(hook.anchor)
    return "".join(lines[:at]) + hook.text + "".join(lines[at:])


def _anchor(lines: Sequence[str], hook: Hook, found: str) -> int:
    def matches(patterns: Sequence[str], start: int = 0) -> list[int]:
        compiled = [re.compile(p) for p in patterns]
        return [
            i
            for i in range(start, len(lines) - len(compiled) + 1)
            if all(p.fullmatch(lines[i + k].strip()) for k, p in enumerate(compiled))
        ]

    where = f"{hook.file}: the place {' / '.join(hook.anchor)!r}"
    start = 0
    if hook.inside:
        starts = matches((hook.inside,))
        if len(starts) != 1:
            raise TreeError(
                f"{where}: {_times(starts)} {hook.inside!r} in this kernel ({found}); we know 6.1"
            )
        start = starts[0]
    places = matches(hook.anchor, start)
    if hook.inside:
        places = places[:1]
    if len(places) != 1:
        raise TreeError(f"{where} is there {len(places)} times in this kernel ({found}); we know 6.1")
    return places[0]


def _times(places: Sequence[int]) -> str:
    return f"{len(places)} lines" if places else "no line"


def _find_text(text: str, hook: Hook) -> int | None:
    """Where the hook's lines are: beside their anchor, for the same lines may be in the file twice."""
    lines = text.splitlines(keepends=True)
    wanted = [re.compile(p) for p in hook.anchor]
    position = 0
    inside = not hook.inside
    for i, line in enumerate(lines):
        inside = inside or re.fullmatch(hook.inside, line.strip()) is not None
        if inside and all(
            i + k < len(lines) and p.fullmatch(lines[i + k].strip()) for k, p in enumerate(wanted)
        ):
            if hook.where is Where.BEFORE:
                at = position - len(hook.text)
            else:
                at = position + sum(len(x) for x in lines[i : i + len(wanted)])
            if at >= 0 and text.startswith(hook.text, at):
                return at
        position += len(line)
    return None


def _refuse_local_changes(tree: Path, files: Sequence[str]) -> None:
    """In a git tree, files that differ from what was committed are somebody's work in progress."""
    if not (tree / ".git").exists():
        return
    command = ["git", "-C", str(tree), "status", "--porcelain", "--untracked-files=no", "--", *files]
    try:
        status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return  # no git, or no repository: nothing to compare with
    if status:
        raise TreeError(
            f"{tree}: {status.split()[1]} has changes that are not committed: commit or stash them"
        )


def _check_space(tree: Path, changes: Sequence[Change]) -> None:
    needed = sum(len(change.new or "") for change in changes) + (1 << 20)
    free = shutil.disk_usage(tree).free
    if free < needed:
        raise OSError(28, f"no space: {needed >> 10} KiB needed, {free >> 10} KiB free")


def _put(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise TreeError(f"{path}: not there: not a kernel that we know (6.1)") from None
    except OSError as error:
        raise TreeError(f"{path}: {error.strerror}") from None


def texts(changes: Iterable[Change]) -> Mapping[str, str | None]:
    """The new texts by file."""
    return {change.file: change.new for change in changes}
