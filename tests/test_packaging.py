# SPDX-License-Identifier: GPL-2.0-only
"""What is shipped: the lock file covers what is asked for, and the wheel carries what it needs."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked() -> dict[str, str]:
    """Name to version; every line of the lock file must be understood."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "requirements.lock").read_text())
    packages = {}
    for line in text.splitlines():
        if line.strip().startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([\w.]+) +(--hash=sha256:[0-9a-f]{64} ?)+", line)
        assert match, line
        packages[match[1]] = match[2]
    return packages


def test_lock_covers_what_is_asked_for() -> None:
    packages = locked()
    asked = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
    for requirement in map(Requirement, asked + PROJECT["build-system"]["requires"]):
        assert requirement.specifier.contains(packages[canonicalize_name(requirement.name)]), requirement


def test_every_dependency_has_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    asked = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
    for requirement in asked:
        found = [line for line in lines if line.strip().startswith(f'"{requirement}"')]
        assert found
        assert all(re.search(r"# \w", line) for line in found), found


def test_wheel_carries_the_entry_source(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("src", "LICENSES"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in ("pyproject.toml", "COPYING", ".gitignore"):
        shutil.copy(ROOT / name, checkout / name)
    # Some of each: the real ones may change their names.
    for name in ("kernel/entry.S", "kernel/include/entry.h", "specimens/naive.patch", "kernel/build/entry.o"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {name.removeprefix("atomicist/_data/") for name in names if name.startswith("atomicist/_data/")}
    assert data == {"kernel/entry.S", "kernel/include/entry.h", "specimens/naive.patch"}
    assert "atomicist/__init__.py" in names
    assert any(name.endswith("licenses/LICENSES/GPL-2.0-only.txt") for name in names)
