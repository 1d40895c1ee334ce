# SPDX-License-Identifier: GPL-2.0-only
"""The same input gives the same JSON, byte for byte, on one worker and on two, and a second time."""

import json

import pytest

from atomicist.report.as_json import TIME_LIKE, result_json, without_times
from tests.cli.command import run
from tests.debian_kernel import fetched
from tests.fuzz.seeds import VMLINUZ
from tests.report.results import FINDING, result

IMAGES = {
    "specimen": ("--specimen", "naive", "--vector", "mc", "--context", "user"),
    "kernel": ("--kernel", str(VMLINUZ), "--vector", "mc", "--context", "kernel-task", "--budget", "2"),
    "certified specimen": ("--specimen", "m06-flags-not-cleared", "--vector", "nmi"),
    "entry": (),
}


def _slow(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["specimen", "kernel", _slow("certified specimen"), _slow("entry")])
def test_the_same_bytes(name: str) -> None:
    if name == "kernel":
        fetched()
    words = ("verify", "--json", *IMAGES[name])
    runs = [run(*words, "--workers", workers) for workers in ("1", "2", "2")]
    assert {done.returncode for done in runs} <= {0, 1, 3}, runs[0].stderr
    texts = [without_times(done.stdout) for done in runs]
    assert texts[0] == texts[1] == texts[2]
    # all that is taken out is said, and the rest is as it was printed
    document = json.loads(runs[0].stdout)
    assert set(document) - set(json.loads(texts[0])) == set(TIME_LIKE)
    kept = [line for line in runs[0].stdout.splitlines() if not line.strip().startswith('"seconds"')]
    assert [line.rstrip(",") for line in kept] == [line.rstrip(",") for line in texts[0].splitlines()]


def test_a_difference_is_seen() -> None:
    assert without_times(result_json(result())) == without_times(result_json(result()))
    assert without_times(result_json(result())) != without_times(result_json(result(FINDING)))
    assert "seconds" not in json.loads(without_times(result_json(result())))
