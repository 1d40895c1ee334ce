# SPDX-License-Identifier: GPL-2.0-only
"""Specimens: known-bad variants of kernel/, each with one planted defect.

A specimen is a directory specimens/<name>/ with specimen.toml, which says what is
planted and which property has to fire, and change.patch, a unified diff against
kernel/, or files/, whole files in place of those of kernel/.  They are what the
checker is held to: each must be found, and for its own reason.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from atomicist.image import bare
from atomicist.image.bare import BareConfig
from atomicist.image.errors import ImageError
from atomicist.machine.target import Target

_TEXTS: Final = ("name", "origin", "property", "about")
_LISTS: Final = ("vectors", "contexts")
_SWITCHES: Final = ("pti", "pcid", "fsgsbase")
_CHOICES: Final = {"mitigation": bare.BUILDS, "variant": (*bare.VARIANTS, bare.RFC_V1)}
_UNCHECKED: Final = """\
#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# A specimen is to be found by the checker, not to be refused by the build.
"""


@dataclass(frozen=True, slots=True)
class Specimen:
    """One known-bad variant, in the directory ``place``.

    ``origin`` is where the defect is known from, ``property`` the one that must fire
    first, ``about`` what is planted and why it is wrong.  It is seen soonest in the start
    ``contexts`` with one of ``vectors`` first; empty: any.  ``switches`` are the
    configuration switches without which the defect does not show."""

    name: str
    origin: str
    property: str
    about: str
    place: Path
    vectors: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    switches: tuple[tuple[str, bool | str], ...] = ()

    def configured(self, config: BareConfig) -> BareConfig:
        """``config`` with the switches that the specimen needs."""
        return replace(config, **dict(self.switches))  # type: ignore[arg-type]


def specimens_source() -> Path:
    """The directory specimens/, in a checkout or beside an installed package."""
    for place in (Path(__file__).parents[3] / "specimens", Path(__file__).parents[1] / "_data" / "specimens"):
        if any(place.glob("*/specimen.toml")):
            return place
    raise ImageError("specimens/ is not there: run from a checkout, or reinstall the package")


def specimens() -> tuple[Specimen, ...]:
    """All specimens, by name. Raises `ImageError` if one is not described as it has to be."""
    return tuple(read(toml.parent) for toml in sorted(specimens_source().glob("*/specimen.toml")))


def find(name: str) -> Specimen:
    """The specimen ``name``. Raises `ImageError` with the names that are near."""
    known = {s.name: s for s in specimens()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"they are {', '.join(known)}"
    raise ImageError(f"there is no specimen '{name[:60]}': {hint}")


def read(place: Path) -> Specimen:
    """The specimen in the directory ``place``. Raises `ImageError`."""

    def wrong(what: str) -> ImageError:
        return ImageError(f"specimen {place.name}: {what}")

    try:
        table = tomllib.loads((place / "specimen.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise wrong(f"specimen.toml cannot be read: {e}") from e
    unknown = set(table) - {*_TEXTS, *_LISTS, "config"}
    if unknown:
        raise wrong(f"specimen.toml has no key '{min(unknown)}'")
    for key in _TEXTS:
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise wrong(f"specimen.toml must say '{key}', a text")
    for key in _LISTS:
        names = table.get(key, [])
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise wrong(f"'{key}' must be a list of names")
    switches = table.get("config", {})
    if not isinstance(switches, dict) or not all(_setting(name, value) for name, value in switches.items()):
        words = ", ".join(f"{name} ({', '.join(values)})" for name, values in _CHOICES.items())
        raise wrong(f"'config' must be a table of {', '.join(_SWITCHES)}, true or false, and {words}")
    if table["name"] != place.name:
        raise wrong(f"its name in specimen.toml is '{table['name']}'")
    if not re.fullmatch(r"IST\d{3}", table["property"]):
        raise wrong(f"'{table['property']}' is no property: IST001 for example")
    changed = (place / "change.patch").is_file() or (place / "files").is_dir()
    if not changed and switches.get("variant") != bare.RFC_V1:
        raise wrong("there is neither change.patch nor files/")
    return Specimen(
        table["name"], table["origin"], table["property"], table["about"].strip(), place,
        tuple(table.get("vectors", [])), tuple(table.get("contexts", [])), tuple(sorted(switches.items())),
    )  # fmt: skip


def _setting(name: str, value: object) -> bool:
    return value in _CHOICES[name] if name in _CHOICES else name in _SWITCHES and isinstance(value, bool)


def materialise(specimen: Specimen, into: Path) -> Path:
    """Make the specimen's kernel/ in the directory ``into``; its path.

    The build's own static check is left out: the specimen is there to be found.
    Raises `ImageError` if its patch does not apply."""
    tree = into / "kernel"
    try:
        shutil.copytree(bare.kernel_source(), tree)
        if (specimen.place / "files").is_dir():
            shutil.copytree(specimen.place / "files", tree, dirs_exist_ok=True)
        if (specimen.place / "change.patch").is_file():
            _patch(specimen, tree)
        (tree / "bare" / "check.sh").write_text(_UNCHECKED, encoding="utf-8")
    except OSError as e:
        raise ImageError(f"specimen {specimen.name}: cannot be made in {into}: {e.strerror}") from e
    return tree


def _patch(specimen: Specimen, tree: Path) -> None:
    if shutil.which("patch") is None:
        raise ImageError("patch is not installed: apt-get install patch")
    command = [
        "patch", "-p1", "--fuzz=0", "--batch", "--forward", "--no-backup-if-mismatch", "--reject-file=-",
        "-d", str(tree), "-i", str((specimen.place / "change.patch").resolve()),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.strip()]
        why = next((line for line in words if re.search(r"FAILED|malformed|garbage|can't find", line)), "")
        raise ImageError(f"specimen {specimen.name}: change.patch does not fit kernel/: {why or words[-1:]}")


def build(specimen: Specimen, config: BareConfig, cache: Path) -> Path:
    """Build the specimen and return the image's path, cached by content in ``cache``."""
    with tempfile.TemporaryDirectory() as work:
        try:
            return bare.build(materialise(specimen, Path(work)), specimen.configured(config), cache)
        except ImageError as e:
            if str(e).startswith("specimen "):
                raise
            raise ImageError(f"specimen {specimen.name}: {e}") from e


def load(specimen: Specimen, config: BareConfig, cache: Path) -> Target:
    """The specimen as a target, built if it has to be."""
    return bare.load(build(specimen, config, cache), specimen.configured(config), specimen.name)
