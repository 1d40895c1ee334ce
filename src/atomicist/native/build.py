# SPDX-License-Identifier: GPL-2.0-only
"""Compiles C with the system's compiler, once per content.

The cache is a directory of shared objects named by a hash of everything that
went into them; an entry appears by rename, so a killed run leaves none half-made.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

RUNTIME: Final = Path(__file__).parent / "runtime"
FLAGS: Final = (
    "-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wall",
    "-Wextra",
)  # fmt: skip


def _processor() -> tuple[str, ...]:
    """What code is made for: x86 processors differ enough for it to matter."""
    return ("-march=native",) if platform.machine() == "x86_64" else ()


@functools.cache
def _features() -> str:
    """What -march=native goes by, so that no processor gets another one's code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags")
    first = {name.strip(): value for name, _, value in (line.partition(":") for line in reversed(lines))}
    return "\n".join(first.get(name, "") for name in wanted)


class BuildError(Exception):
    """The compiler is missing or refused its input; the message says what to do."""


def cache_dir() -> Path:
    """Where compiled code is kept: $ATOMICIST_CACHE, else the user's cache directory."""
    chosen = os.environ.get("ATOMICIST_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(chosen) if chosen else Path(base) / "atomicist"


def compiler() -> str:
    """Path of the C compiler: $CC, gcc or clang. Raises `BuildError` if there is none."""
    for name in (os.environ.get("CC", ""), "gcc", "clang", "cc"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError("no C compiler found: install gcc (apt-get install gcc libc6-dev), or set CC")


def shared_object(sources: Mapping[str, str], units: Sequence[str], flags: Sequence[str] = ()) -> Path:
    """Compile ``units`` (names among ``sources``, name -> text) to a shared object.

    Returns its path in the cache. Raises `BuildError` with the compiler's words."""
    cc = compiler()
    key = hashlib.sha256()
    for part in (
        cc,
        _version(cc),
        _features(),
        *FLAGS,
        *_processor(),
        *flags,
        *units,
        *(f"{k}\0{v}" for k, v in sorted(sources.items())),
    ):
        key.update(part.encode() + b"\0")
    place = cache_dir() / f"{key.hexdigest()[:32]}.so"
    if place.exists():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as work:
            _compile(cc, Path(work), sources, units, flags)
            Path(work, "out.so").rename(place)
    except OSError as e:
        raise BuildError(
            f"cannot write compiled code to {place.parent}: {e.strerror}; set ATOMICIST_CACHE"
        ) from e
    return place


def _version(cc: str) -> str:
    try:
        return subprocess.run([cc, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as e:
        raise BuildError(f"cannot run the C compiler {cc}: {e.strerror}") from e


def _compile(
    cc: str, work: Path, sources: Mapping[str, str], units: Sequence[str], flags: Sequence[str]
) -> None:
    for name, text in sources.items():
        (work / name).write_text(text)
    command = [cc, *FLAGS, *_processor(), *flags, "-o", "out.so", *units]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{cc} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")


def runtime_sources() -> dict[str, str]:
    """The C files of the runtime by name."""
    return {p.name: p.read_text() for p in sorted(RUNTIME.iterdir()) if p.suffix in (".c", ".h")}
