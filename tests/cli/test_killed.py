# SPDX-License-Identifier: GPL-2.0-only
"""SIGKILL at any moment: caches and outputs are whole, and the next run gives the same."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from atomicist.report.as_json import without_times
from tests.cli.command import COMMAND, environment, run

WORDS = (
    "verify", "--specimen", "naive", "--vector", "mc", "--budget", "2", "--context", "user", "--json",
    "--workers", "2",
)  # fmt: skip


def whole(place: Path) -> None:
    """Each finished entry of the cache is complete: an ELF file, a shared object, a target with its hash."""
    from atomicist.image.cache import _read  # noqa: PLC0415

    for entry in place.iterdir():
        if entry.suffix in (".so", ".elf"):
            data = entry.read_bytes()
            assert data[:4] == b"\x7fELF"
            sections = int.from_bytes(data[0x28:0x30], "little")
            count = int.from_bytes(data[0x3C:0x3E], "little")
            assert sections + 64 * count <= len(data), f"{entry.name} is cut"
        elif entry.suffix == ".pickle":
            assert _read(entry) is not None, f"{entry.name} is damaged"


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4))])
def test_killed_at_random_moments(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)  # noqa: S311
    nowhere = subprocess.DEVNULL
    store, report = tmp_path / "cache", tmp_path / "report.xml"
    words = (*WORDS, "--junit", str(report))
    started = time.monotonic()
    wanted = run(*words, ATOMICIST_CACHE=str(tmp_path / "other"))
    length = time.monotonic() - started
    assert wanted.returncode == 1
    good = report.read_text()
    report.write_text("before")
    for _ in range(4):
        process = subprocess.Popen(
            [*COMMAND, *words], stdout=nowhere, stderr=nowhere, stdin=nowhere,
            env=environment(ATOMICIST_CACHE=str(store)), start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(source.uniform(0.05, 1) * length)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if store.exists():
            whole(store)
        text = report.read_text()
        assert text == "before" or text.endswith("</testsuites>\n")
    again = run(*words, ATOMICIST_CACHE=str(store))
    assert again.returncode == wanted.returncode
    assert without_times(again.stdout) == without_times(wanted.stdout)
    assert json.loads(again.stdout)["findings"]
    assert len(report.read_text().splitlines()) == len(good.splitlines())
    whole(store)
