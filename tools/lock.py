#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Write requirements.lock: exact versions and hashes of what pyproject.toml asks for.

    .venv/bin/python tools/lock.py             versions stay as they are in this .venv; same input, same file
    .venv/bin/python tools/lock.py --upgrade   newest versions that fit pyproject.toml

pip itself resolves (--dry-run --report), so the file says what pip would install. It holds the hash of one
wheel per package: the one for CPython 3.11 on x86-64 Linux. It names no index; pip's configuration does.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEADER = """\
# SPDX-License-Identifier: GPL-2.0-only
#
# Written by tools/lock.py from pyproject.toml; do not edit. For CPython 3.11 on x86-64 Linux.
# Installed with: pip install --require-hashes --only-binary :all: -r requirements.lock
"""


def wanted() -> dict[str, list[str]]:
    """What the project asks for itself, by who asks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {
        "atomicist": project["project"]["dependencies"],
        "atomicist[test]": project["project"]["optional-dependencies"]["test"],
        "build": project["build-system"]["requires"],
    }


def installed() -> list[str]:
    """The versions in the running .venv, as constraints."""
    command = [sys.executable, "-m", "pip", "list", "--format=json"]
    listing = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        f"{package['name']}=={package['version']}" for package in listing if package["name"] != "atomicist"
    ]


def resolve(requirements: list[str], constraints: list[str]) -> list[dict[str, Any]]:
    """What pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as directory:
        constraint_file = Path(directory, "constraints.txt")
        constraint_file.write_text("\n".join(constraints) + "\n")
        report = Path(directory, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--report", str(report), "--constraint", str(constraint_file)]
        subprocess.run([*command, *requirements], check=True)
        install: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return install


def render(packages: list[dict[str, Any]], asked: dict[str, list[str]]) -> str:
    """The lock file's text, sorted by name, each package with who needs it."""
    needed_by: dict[str, set[str]] = {}
    askers = list(asked.items())
    askers += [
        (package["metadata"]["name"], package["metadata"].get("requires_dist", [])) for package in packages
    ]
    for asker, requirements in askers:
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed_by.setdefault(canonicalize_name(requirement.name), set()).add(asker)
    lines = []
    for package in sorted(packages, key=lambda package: canonicalize_name(package["metadata"]["name"])):
        name = canonicalize_name(package["metadata"]["name"])
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines += [
            f"{name}=={package['metadata']['version']} \\",
            f"    --hash=sha256:{digest}",
            f"    # for {', '.join(sorted(needed_by[name], key=str.lower))}",
        ]
    return HEADER + "\n".join(lines) + "\n"


def main() -> int:
    """Write the file, and say whether it changed."""
    parser = argparse.ArgumentParser(description="write requirements.lock")
    parser.add_argument("--upgrade", action="store_true", help="do not hold the versions of this .venv")
    options = parser.parse_args()
    if sys.version_info[:2] != (3, 11) or sysconfig.get_platform() != "linux-x86_64":
        print("lock: run this with CPython 3.11 on x86-64 Linux; the file is for that", file=sys.stderr)
        return 2
    asked = wanted()
    requirements = [requirement for group in asked.values() for requirement in group]
    text = render(resolve(requirements, [] if options.upgrade else installed()), asked)
    changed = not LOCK.exists() or LOCK.read_text() != text
    LOCK.write_text(text)
    print("lock: requirements.lock", "written" if changed else "unchanged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
