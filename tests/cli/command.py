# SPDX-License-Identifier: GPL-2.0-only
"""Runs the command as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "atomicist")


def environment(**more: str) -> dict[str, str]:
    """The environment, with the package of this checkout, without a terminal's wishes."""
    unwanted = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "PYTHONPATH", "ATOMICIST_DEBUG"}
    kept = {key: value for key, value in os.environ.items() if key not in unwanted}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8", **more}


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The finished command; stdin is empty."""
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, timeout=900, env=environment(**more),
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
