# SPDX-License-Identifier: GPL-2.0-only
"""Builds a kernel, and looks more closely at what is ours in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atomicist.tree.apply import version
from atomicist.tree.errors import TreeError
from atomicist.tree.hooks import OWN_FILES
from atomicist.tree.run import make

IMAGE: Final = "arch/x86/boot/bzImage"
STOCK_WARNINGS: Final = (r"objtool: __handle_intr_saferet(_alias)?\+0x[0-9a-f]+: RET before UNTRAIN",)
"""What 6.1.192 says of itself, without a line of ours in it."""

STRICT: Final = "CONFIG_DEBUG_ENTRY=y\n"
"""Makes objtool look at the whole image, for calls out of noinstr code and returns before UNTRAIN_RET. It
also makes NMIs in the legacy entry longer, so kernels that are measured do not have it."""

_UNRET: Final = ("tools/objtool/objtool", "--rethunk", "--unret", "--link", "--dry-run", "vmlinux.o")
_DONE_BEFORE: Final = "file already has"
_UNRET_LIMIT: Final = 300.0

OBJECTS: Final = tuple(
    own.file.rsplit(".", 1)[0] + ".o"
    for own in OWN_FILES
    if own.file.endswith((".c", "_entry.S"))
)  # fmt: skip
"""What is built of our files; atomic_ist_vector.S is included by atomic_ist_entry.S."""


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel, and the warnings of its build, of which there should be none; ``stock`` are not ours.

    ``strict``: objtool has looked at calls out of noinstr code."""

    image: Path
    vmlinux: Path
    atomic: bool
    strict: bool
    warnings: tuple[str, ...]
    stock: tuple[str, ...]


def build(tree: Path, jobs: int, progress: Callable[[int, str], None]) -> Built:
    """Build bzImage and vmlinux; ``progress`` gets the number of steps done, and the one in hand.

    TreeError when the tree is not configured or make fails.
    """
    version(tree)
    if not (tree / ".config").is_file():
        raise TreeError(f"{tree}: not configured: `atomicist linux prepare` does that")
    make(tree, ["olddefconfig"])
    steps = 0

    def each(line: str) -> None:
        nonlocal steps
        if line.startswith("  ") and len(words := line.split()) > 1:
            steps += 1
            progress(steps, words[-1])

    found = (*make(tree, ["bzImage"], jobs=jobs, each=each), *_check_returns(tree))
    stock = tuple(line for line in found if any(re.search(known, line) for known in STOCK_WARNINGS))
    warnings = tuple(line for line in found if line not in stock)
    return Built(
        tree / IMAGE,
        tree / "vmlinux",
        _has(tree, "X86_ATOMIC_IST"),
        _has(tree, "NOINSTR_VALIDATION"),
        warnings,
        stock,
    )


def be_strict(tree: Path) -> None:
    """Have the next build of ``tree`` make all of objtool's checks; if it is configured."""
    config = tree / ".config"
    if config.is_file() and STRICT not in config.read_text(encoding="utf-8"):
        with config.open("a", encoding="utf-8") as file:
            file.write(STRICT)


def _has(tree: Path, option: str) -> bool:
    return f"CONFIG_{option}=y" in (tree / ".config").read_text(encoding="utf-8").splitlines()


def _check_returns(tree: Path) -> tuple[str, ...]:
    """objtool's look at every path from an entry to a RET, which make takes only with `STRICT`."""
    if _has(tree, "NOINSTR_VALIDATION") or not _has(tree, "CPU_UNRET_ENTRY"):
        return ()
    try:
        done = subprocess.run(
            _UNRET, cwd=tree, capture_output=True, text=True, check=False, timeout=_UNRET_LIMIT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TreeError(f"{tree}: cannot run {_UNRET[0]}: {error}") from None
    if done.returncode:
        raise TreeError(f"{tree}: {(done.stderr.strip().splitlines() or ['objtool failed'])[-1]}")
    return tuple(line.strip() for line in done.stderr.splitlines() if _DONE_BEFORE not in line)


def check_ours(tree: Path, jobs: int) -> tuple[str, ...]:
    """Build our objects anew with all of the kernel's extra warnings, and sparse where it is installed."""
    objects = [name for name in OBJECTS if _source(tree, name)]
    if not objects:
        return ()
    for name in objects:
        (tree / name).unlink(missing_ok=True)
    settings = ["W=1"] + (["C=1"] if shutil.which("sparse") else [])
    return make(tree, objects, jobs=jobs, settings=settings)


def _source(tree: Path, name: str) -> bool:
    stem = tree / name.removesuffix(".o")
    return any(stem.with_suffix(suffix).exists() for suffix in (".c", ".S"))
