# SPDX-License-Identifier: GPL-2.0-only
"""Every reader on damaged files, briefly (`make fuzz` for long), and that the harness would see a crash."""

import hashlib
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomicist.image import btf, cache, elf
from atomicist.search import schedule
from tests.debian_kernel import fetched
from tests.fuzz import readers
from tests.fuzz.mutate import damage
from tests.fuzz.readers import CPU_SECONDS, READERS, attempt, case
from tests.fuzz.seeds import ROOT

BRIEF = {
    "elf": 150, "bzimage": 300, "kallsyms": 100, "btf": 40, "alternatives": 30, "describe": 8, "target": 2,
    "dwarf": 8, "cache": 40, "schedule": 1500,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def debian() -> None:
    fetched()


@pytest.mark.parametrize("name", READERS)
def test_damage_is_read_or_refused(name: str) -> None:
    """Some is refused, some is read; SIGPROF ends this process where a case hangs."""
    read = 0
    for number in range(BRIEF[name]):
        data = case(name, number)
        before = signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            read += attempt(READERS[name], data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
    assert 0 < read < BRIEF[name] or BRIEF[name] < 10 or name == "dwarf"


@pytest.mark.parametrize("name", sorted(set(READERS) - {"target", "describe", "dwarf"}))
@settings(
    max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(source=st.randoms(use_true_random=False), data=st.binary(max_size=300))
def test_drawn_by_hypothesis(name: str, source: random.Random, data: bytes) -> None:
    """The same damage, drawn so that it shrinks; and bytes that never were a file."""
    attempt(READERS[name], READERS[name].make(source))
    attempt(READERS[name], data)


def test_a_case_is_the_same_each_time() -> None:
    for name in ("elf", "schedule", "kallsyms"):
        assert [case(name, n) for n in range(20)] == [case(name, n) for n in range(20)]
        assert len({case(name, n) for n in range(20)}) > 15


def test_the_seeds_themselves_are_read() -> None:
    """Without damage every reader succeeds, so a case gets far before it fails."""
    table, types = readers._tables()
    data, fields = readers.carved()
    assert len(fields) > 1000
    ours = readers._bare()[0]
    files = {"elf": ours, "kallsyms": table, "btf": types, "dwarf": ours, "cache": readers._entries()}
    for name, seed in (files | dict.fromkeys(("alternatives", "describe", "target"), data)).items():
        assert attempt(READERS[name], seed), name
    lines = readers._run_dwarf(ours)
    assert isinstance(lines, list)
    assert len(lines) == len(readers._addresses())


def _first(name: str, count: int) -> Any:
    """What the first case that crashes raises."""
    for number in range(count):
        try:
            attempt(READERS[name], case(name, number))
        except Exception as error:  # noqa: BLE001 - whatever it is
            return error
    return None


def test_a_missing_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the test that a section lies within the file, without that of the type's number."""
    monkeypatch.setattr(
        elf, "_text", lambda names, offset: names[offset : names.index(b"\0", offset)].decode()
    )
    assert _first("alternatives", 300) is None  # read_elf turns a ValueError into its own error: no crash
    monkeypatch.setattr(
        btf.Btf, "_string", lambda self, at: self._strings[at : self._strings.index(b"\0", at)].decode()
    )
    assert isinstance(_first("btf", 400), ValueError)


def test_a_schedule_that_is_not_read_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"user:NMI,MC@asm_exc_nmi+0x4#3"
    assert attempt(READERS["schedule"], text)
    write = schedule._text
    monkeypatch.setattr(schedule, "_text", lambda i, target: write(i, target).removesuffix("#3"))
    with pytest.raises(AssertionError, match="read back"):
        attempt(READERS["schedule"], text)


class TestCacheEntries:
    """An entry of the cache names parts of targets and nothing else."""

    def entry(self, tmp_path: Path, data: bytes) -> Path:
        place = tmp_path / "target"
        place.write_bytes(hashlib.sha256(data).digest() + data)
        return place

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "touched",))

        system, evaluate = b"cos\nsystem\n(S'touch x'\ntR.", b"cbuiltins\neval\n(S'1'\ntR."
        for data in (pickle.dumps(Hostile()), system, evaluate, b"catomicist.isa.ir\ndataclass\n."):
            assert cache._read(self.entry(tmp_path, data)) is None
        assert not (tmp_path / "touched").exists()

    def test_damage_is_seen_before_anything_is_unpickled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = readers._entries()
        unpickled: list[int] = []

        class Watched(cache._Unpickler):
            def load(self) -> Any:
                unpickled.append(1)
                return super().load()

        monkeypatch.setattr(cache, "_Unpickler", Watched)
        source = random.Random(1)  # noqa: S311
        place = tmp_path / "target"
        for _ in range(50):
            bad = damage(source, good)
            if bad != good:
                place.write_bytes(bad)
                assert cache._read(place) is None
        assert not unpickled
        place.write_bytes(good)
        assert cache._read(place) == readers.small_entry()
        assert unpickled


def test_a_crash_and_a_hang_are_kept(tmp_path: Path) -> None:
    """The tool's own machinery, on readers that crash, die and hang."""
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "src")!r}]
sys.argv = ["fuzz"]
import importlib.util
from pathlib import Path
spec = importlib.util.spec_from_file_location("fuzz_tool", {str(ROOT / "tools" / "fuzz.py")!r})
tool = importlib.util.module_from_spec(spec); sys.modules["fuzz_tool"] = tool; spec.loader.exec_module(tool)
from tests.fuzz.readers import Reader
def run(data):
    n = int(data)
    if n == 3: raise KeyError("planted")
    if n == 5: os.kill(os.getpid(), signal.SIGSEGV)
    if n == 7:
        while True: pass
    if n == 9: return len(b"x" * (500 << 20))
    if n % 2: raise ValueError("refused")
    return n
made = {{"planted": Reader(lambda r: b"", run, ValueError, 1)}}
tool.READERS.clear(); tool.READERS.update(made)
tool.case = lambda name, number: str(number).encode()
tool.CPU_SECONDS, tool.MEMORY = 2, 400 << 20
tool.PLACE = Path({str(tmp_path)!r})
sys.exit(tool.run(500, 0, 2))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    kept = {place.name for place in tmp_path.iterdir()}
    assert kept == {"state.json"} | {f"planted-{n}.{kind}" for n in (3, 5, 7, 9) for kind in ("bin", "txt")}
    words = {n: (tmp_path / f"planted-{n}.txt").read_text() for n in (3, 5, 7, 9)}
    assert "KeyError: 'planted'" in words[3]
    assert f"exit code -{int(signal.SIGSEGV)}" in words[5]
    assert f"exit code -{int(signal.SIGPROF)}" in words[7]
    assert "the process holds" in words[9]
    assert "500 of 500 cases" in done.stdout
    # the next run has nothing left to do, and still says that something was found
    again = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 1
