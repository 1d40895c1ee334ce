# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs of a guest under test: our init, compiled statically, and device nodes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atomicist.guest.cpio import FILE, STANDARD, Entry, archive
from atomicist.guest.errors import GuestError
from atomicist.native.build import cache_dir

PAYLOAD: Final = Path(__file__).with_name("payload")
SOURCES: Final = ("init.c", "registers.S")
FLAGS: Final = ("-static", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-stack-protector")
COMPILE_LIMIT: Final = 120.0


@dataclass(frozen=True, slots=True)
class Payload:
    """The files made: the ``archive`` for the kernel, and the ``init`` in it for its symbols."""

    archive: Path
    init: Path


def build() -> Payload:
    """The payload, made anew if its sources changed. Raises `GuestError` if it does not compile."""
    texts = [(name, (PAYLOAD / name).read_bytes()) for name in SOURCES]
    key = hashlib.sha256(repr((FLAGS, texts)).encode()).hexdigest()[:16]
    place = cache_dir() / f"guest-{key}"
    made = Payload(place / "initramfs.cpio", place / "init")
    if made.archive.is_file() and made.init.is_file():
        return made
    if shutil.which("gcc") is None:
        raise GuestError("gcc is not installed: as root, apt-get install -y gcc libc6-dev")
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        _compile(work / "init")
        init = Entry("init", FILE | 0o755, (work / "init").read_bytes())
        (work / "initramfs.cpio").write_bytes(archive((*STANDARD, init)))
        try:
            work.rename(place)
        except OSError:
            if not made.archive.is_file():
                raise
    except OSError as e:
        raise GuestError(f"cannot write {place}: {e.strerror}") from e
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def _compile(target: Path) -> None:
    command = ["gcc", *FLAGS, "-o", str(target), *(str(PAYLOAD / name) for name in SOURCES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_LIMIT)
    except subprocess.TimeoutExpired as e:
        raise GuestError(f"gcc does not finish the guest's init within {COMPILE_LIMIT:g} s") from e
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise GuestError(f"the guest's init does not compile: {first.strip()}")
