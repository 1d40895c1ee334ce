# SPDX-License-Identifier: GPL-2.0-only
"""Runs make in a kernel tree: output to a log, progress to who asks, and no process left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from atomicist.tree.errors import TreeError

LOG: Final = "build.log"
"""In the tree: what make printed last."""

_QUIET_ENVIRONMENT: Final = {
    "LC_ALL": "C", "KBUILD_BUILD_TIMESTAMP": "2000-01-01",
    "KBUILD_BUILD_USER": "atomicist", "KBUILD_BUILD_HOST": "atomicist",
    "CCACHE_NOHASHDIR": "true",
}  # fmt: skip
"""So that two builds of the same source are the same, and the second one is quick wherever its tree is."""


def compiler() -> tuple[str, ...]:
    """The arguments of make that choose the compiler: through ccache where there is one."""
    return ("CC=ccache gcc",) if shutil.which("ccache") else ()


def make(
    tree: Path,
    targets: Sequence[str],
    *,
    jobs: int = 1,
    each: Callable[[str], None] = lambda line: None,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """``make targets`` in ``tree``; the lines with warnings. ``each`` gets every line of output.

    Raises TreeError with the first error that make reported, and the log's place. On any way out no process
    of it is left.
    """
    command = ["make", f"-j{jobs}", *compiler(), *settings, *targets]
    env = {**os.environ, **_QUIET_ENVIRONMENT, **(environment or {})}
    warnings, last = [], []
    log = tree / LOG
    try:
        file = log.open("w", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise TreeError(f"{log}: {error.strerror}") from None
    with file:
        try:
            child = subprocess.Popen(
                command, cwd=tree, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="backslashreplace", start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise TreeError("make is not installed: apt-get install make") from None
        with child:
            try:
                assert child.stdout is not None  # noqa: S101 - for mypy: it is a pipe
                for line in child.stdout:
                    file.write(line)
                    each(line)
                    last.append(line.rstrip())
                    if "warning:" in line.lower():
                        warnings.append(line.strip())
                status = child.wait()
            except BaseException:
                os.killpg(child.pid, signal.SIGTERM)
                raise
    if status:
        raise TreeError(f"{_first_error(last)} (make {' '.join(targets)}; all of it: {log})")
    return tuple(warnings)


def _first_error(lines: Sequence[str]) -> str:
    for mark in ("No space left", "error:", "undefined reference", "Error ", "***"):
        for line in lines:
            if mark in line:
                return line.strip()
    return lines[-1].strip() if lines else "make failed and said nothing"
