# SPDX-License-Identifier: GPL-2.0-only
"""Unpacks Debian's kernel source, and configures it: tinyconfig with a fragment of ours over it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atomicist.tree.apply import version
from atomicist.tree.errors import TreeError
from atomicist.tree.run import make

PACKAGE: Final = "linux-source-6.1"
ARCHIVE: Final = Path("/usr/src") / f"{PACKAGE}.tar.xz"
FRAGMENT: Final = "linux/atomic_ist.config"
NEEDED_BYTES: Final = 4 << 30
"""The source, unpacked, is 1.4 GB; what a small kernel's build adds is less than that again."""

TOOLS: Final = {
    "make": "make", "gcc": "gcc", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc",
    "tar": "tar", "xz": "xz-utils", "pahole": "dwarves", "cpio": "cpio", "perl": "perl",
}  # fmt: skip
"""What building needs, and the Debian package that has it."""

HEADERS: Final = {"gelf.h": "libelf-dev", "openssl/opensslv.h": "libssl-dev"}

USEFUL: Final = {
    "ccache": "ccache: building again, and each step of a series, takes much longer without",
    "sparse": "sparse: `series --bisect` says that it has not run it",
    "qemu-system-x86_64": "qemu-system-x86: boot, stress and inject need it",
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configured tree. ``not_taken``: lines of the fragment that this kernel does not have or allow."""

    tree: Path
    version: str
    archive_sha256: str
    not_taken: tuple[str, ...]


def missing_packages() -> tuple[str, ...]:
    """Debian packages without which nothing is built, in order."""
    lack = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    for header, package in HEADERS.items():
        places = (Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu"))
        if not any((place / header).exists() for place in places):
            lack.append(package)
    return tuple(lack)


def missing_useful() -> tuple[str, ...]:
    """What is not installed and would help, one line each."""
    return tuple(why for tool, why in USEFUL.items() if shutil.which(tool) is None)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise TreeError(f"{path}: not there: apt-get install {PACKAGE}") from None
    except OSError as error:
        raise TreeError(f"{path}: {error.strerror}") from None


def unpack(archive: Path, tree: Path) -> None:
    """Unpack ``archive``, which has one directory at its top, as ``tree``; all or nothing."""
    if tree.exists() and (not tree.is_dir() or any(tree.iterdir())):
        raise TreeError(f"{tree}: is there already: name a new directory, or remove it first")
    parent = tree.absolute().parent
    if not parent.is_dir():
        raise TreeError(f"{parent}: no such directory")
    free = shutil.disk_usage(parent).free
    if free < NEEDED_BYTES:
        raise TreeError(f"{parent}: {free >> 20} MB free, {NEEDED_BYTES >> 20} MB needed")
    place = Path(tempfile.mkdtemp(dir=parent, prefix=f".{tree.name}."))
    try:
        command = ["tar", "-xf", str(archive), "--strip-components=1", "-C", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = done.stderr.strip().splitlines() or ["tar failed"]
            raise TreeError(f"{archive}: {why[0]}")
        version(place)
        place.chmod(0o755)
        if tree.exists():
            tree.rmdir()
        place.rename(tree)
    except TreeError as error:
        raise TreeError(str(error).replace(str(place), str(archive))) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def configure(tree: Path, fragment: Path, say: Callable[[str], None]) -> tuple[str, ...]:
    """Write ``tree``/.config; the lines of ``fragment`` that did not come through.

    `X86_ATOMIC_IST` is on by default, so a tree that is patched later has it too.
    """
    say("tinyconfig")
    make(tree, ["tinyconfig"])
    config = tree / ".config"
    wanted = _assignments(fragment.read_text(encoding="utf-8").splitlines())
    with config.open("a", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in wanted.items())
    say("olddefconfig")
    make(tree, ["olddefconfig"])
    have = _assignments(config.read_text(encoding="utf-8").splitlines())
    return tuple(f"{name}={value}" for name, value in wanted.items() if have.get(name, "n") != value)


def _assignments(lines: Sequence[str]) -> dict[str, str]:
    found = (re.fullmatch(r"(CONFIG_\w+)=(.*)", line.strip()) for line in lines)
    return {m.group(1): m.group(2) for m in found if m}
