# SPDX-License-Identifier: GPL-2.0-only
"""Keeps finished targets, so that a second look at an image need not read it again.

An entry's name is a hash of the image's bytes, of how it is to be read, and of every
source file that has a say in it; it appears by rename.  An entry is a hash of the rest,
and a pickle: one that was damaged is never unpickled, and a whole one can name only the
parts of a target.  (Compiled code is loaded from the same directory, so whoever can write
there can run code as the user anyway.)
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from atomicist.machine.target import Target

_ROOMS: Final = ("isa", "machine", "image")
"""The rooms whose code makes a target."""

_PARTS: Final = tuple(
    f"atomicist.{m}" for m in ("machine.target", "machine.memory", "isa.ir", "isa.delivery")
)
"""The modules that a target's parts are from."""

_DIGEST: Final = hashlib.sha256().digest_size

_MAPPINGS: Final = tuple(f.name for f in fields(Target) if "Mapping" in str(f.type))


@functools.cache
def _code() -> str:
    """A hash of the code that makes targets, and of what it is made with."""
    key = hashlib.sha256(sys.version.encode())
    root = Path(__file__).parents[1]
    for room in _ROOMS:
        for file in sorted((root / room).glob("*.py")):
            key.update(file.read_bytes())
    for name in ("pypcode", "capstone"):
        key.update(getattr(__import__(name), "__version__", "").encode())
    return key.hexdigest()


def cached(cache: Path, image: bytes, how: str, make: Callable[[], Target]) -> Target:
    """What ``make`` gives for ``image`` read in the way ``how``, from ``cache`` if it is there.

    A cache that cannot be written or read is no error: the target is made."""
    key = hashlib.sha256(image)
    key.update(f"\0{how}\0{_code()}".encode())
    place = cache / f"target-{key.hexdigest()[:32]}.pickle"
    known = _read(place)
    if known is not None:
        return known
    target = make()
    _write(place, target)
    return target


class _Unpickler(pickle.Unpickler):
    """Makes nothing but parts of a target."""

    def find_class(self, module: str, name: str) -> Any:
        if "." not in name and module in _PARTS:
            found = super().find_class(module, name)
            if isinstance(found, type) and (is_dataclass(found) or issubclass(found, Enum)):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a target")


def _read(place: Path) -> Target | None:
    try:
        data = place.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        found = _Unpickler(io.BytesIO(data[_DIGEST:])).load()
    except Exception:  # noqa: BLE001 - an entry that is no pickle of ours can raise anything; it is made anew
        return None
    if not isinstance(found, Target):
        return None
    changes: dict[str, Any] = {name: MappingProxyType(getattr(found, name)) for name in _MAPPINGS}
    return replace(found, **changes)


def _write(place: Path, target: Target) -> None:
    changes: dict[str, Any] = {name: dict(getattr(target, name)) for name in _MAPPINGS}
    plain = replace(target, **changes)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent)
        data = pickle.dumps(plain)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        Path(name).rename(place)
    except OSError:
        return
