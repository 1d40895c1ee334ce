# SPDX-License-Identifier: GPL-2.0-only
"""The verb matrix: its rows, what it keeps, and what makes it do a row again."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.cli.matrix_rows import Answer, Job, alone, do, joined, run_all
from atomicist.image import bare
from atomicist.image.bare import VARIANTS, BareConfig
from atomicist.isa.predictions import MITIGATIONS
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.search.joined import verify_joined
from atomicist.search.matrix import checker_id, jobs, row_id, rows

RESULT = {"findings": [], "open_because": "", "contexts": 3, "seconds": 1.0}
BROKEN = {**RESULT, "findings": [{"property": "IST001", "schedule": "user:NMI"}]}


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["matrix", *words])
    return status, out.getvalue(), err.getvalue()


@dataclass(frozen=True)
class Fake:
    """Which rows were run, alone or in one run with others: noted by the processes that did it."""

    notes: Path

    @property
    def runs(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """Rows end at once: those of variant 2 with a finding, those of 1b are killed."""
    notes = tmp_path / "notes"

    def fake_do(job: Job, _: str) -> list[Answer]:
        with notes.open("a") as file:
            file.write(" ".join(f"{c.variant}:{c.pti:d}{c.pcid:d}{c.fsgsbase:d}" for c in job) + "\n")
        if job[0].variant == "1b":
            os.kill(os.getpid(), signal.SIGKILL)
        broken = job[0].variant == "2"
        return [Answer(1, BROKEN) if broken else Answer(0, RESULT) for _ in job]

    image = tmp_path / "image"
    image.write_bytes(b"x")
    monkeypatch.setattr("atomicist.cli.matrix.run_all", partial(run_all, do_job=fake_do))
    monkeypatch.setattr(bare, "build", lambda *_: image)
    return Fake(notes)


def test_all_combinations_are_rows() -> None:
    every = rows()
    assert len(every) == len(set(every)) == 8 * len(VARIANTS) * len(MITIGATIONS)
    seen = {(c.pti, c.pcid, c.fsgsbase, c.mitigation, c.variant) for c in every}
    assert seen == set(itertools.product(*([(False, True)] * 3), MITIGATIONS, VARIANTS))
    assert {c.variant for c in every[: len(VARIANTS)]} == set(VARIANTS)


def test_a_row_is_known_by_image_configuration_vectors_and_checker() -> None:
    config, other = BareConfig(), BareConfig(pcid=False)
    ids = {
        row_id(b"a", config, "", "c"), row_id(b"b", config, "", "c"), row_id(b"a", other, "", "c"),
        row_id(b"a", config, "nmi", "c"), row_id(b"a", config, "", "d"),
    }  # fmt: skip
    assert len(ids) == 5
    assert checker_id() == checker_id()


def test_rows_of_one_text_are_a_job() -> None:
    every = rows(("gcc", "clang"))
    made = jobs(every)
    assert sorted(map(repr, itertools.chain(*made))) == sorted(map(repr, every))
    for job in made:
        assert len(job) == (1 if job[0].pti else 2)
        assert len({replace(c, pcid=True) for c in job}) == 1
    assert jobs([c for c in every if not c.pcid]) == tuple((c,) for c in every if not c.pcid)


def test_goes_on_where_it_was(fake: Fake, tmp_path: Path) -> None:
    words = ("--variant", "1c", "--mitigation", "none", "--keep", str(tmp_path / "keep"))
    assert run(*words, "--first", "1")[0] == 0
    assert fake.runs == ["1c:111"]
    status, out, _ = run(*words, "--json", str(tmp_path / "x.json"))
    assert status == 0
    # the rows without page-table isolation two in a run
    assert sorted(fake.runs[1:]) == ["1c:010 1c:000", "1c:011 1c:001", "1c:100", "1c:101", "1c:110"]
    assert "8 of 8 rows closed" in out
    written = json.loads((tmp_path / "x.json").read_text())
    assert len(written) == 8
    assert {row["status"] for row in written} == {0}
    assert run(*words)[0] == 0
    assert len(fake.runs) == 6
    assert run(*words, "--again")[0] == 0
    assert len(fake.runs) == 12


def test_what_is_known_of_one_row_of_a_job_stays(fake: Fake, tmp_path: Path) -> None:
    words = ("--variant", "1c", "--mitigation", "none", "--keep", str(tmp_path / "keep"))
    assert run(*words, "--first", "5")[0] == 0
    assert "1c:011" in fake.runs
    assert run(*words)[0] == 0
    assert sorted(fake.runs[5:]) == ["1c:001", "1c:010 1c:000"]
    _, out, _ = run(*words, "--list")
    assert out.count(" done") == 8
    _, out, _ = run(*words, "--vector", "nmi", "--list")
    assert out.count(" to do") == 8


def test_a_finding_fails_and_names_the_next_command(fake: Fake, tmp_path: Path) -> None:
    words = ("--variant", "1a,1c,2,3", "--mitigation", "unret", "--keep", str(tmp_path / "keep"))
    status, out, _ = run("--first", "4", *words)
    assert status == 1
    assert "FAILED IST001: user:NMI" in out
    assert "verify --variant 2 --mitigation unret --cc gcc" in out
    assert len(fake.runs) == 4


def test_a_crash_is_an_error_of_its_row(fake: Fake, tmp_path: Path) -> None:
    words = ("--first", "5", "--mitigation", "none", "--variant", "1a,1b,1c,3,2", "--keep", str(tmp_path))
    status, out, _ = run(*words)
    assert status == 2
    assert "1b gcc pti pcid fsgsbase none its process ended by SIGKILL" in " ".join(out.split())
    assert "3 of 5 rows closed without a finding; 1 with findings, 0 not closed, 1 not done" in out
    # an error is not kept
    assert len(fake.runs) == 5
    run(*words)
    assert len(fake.runs) == 6


def _stays(job: Job, _: str) -> list[Answer]:
    """A row that has started a process, and would take long."""
    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    child.wait()
    return [Answer(0, RESULT) for _ in job]


def test_an_interruption_ends_all_that_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setenv("PIDS", str(pids))
    # what a shell starts in the background inherits that SIGINT is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = run_all([(BareConfig(),)], "", 1, _stays)

    def interrupt() -> None:
        while not pids.exists() or len(pids.read_text().split()) < 2:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(running)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    running.close()
    for pid in map(int, pids.read_text().split()):
        for _ in range(200):
            stat = Path("/proc", str(pid), "stat")
            if not stat.exists() or stat.read_text().split()[2] == "Z":
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {pid} still runs")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["1c", "3"])
def test_one_run_says_what_each_alone_says(variant: str) -> None:
    job = tuple(BareConfig("gcc", False, pcid, True, "none", variant) for pcid in (True, False))
    together = joined(job, "nmi,mc")
    assert together is not None
    apart = [alone(config, "nmi,mc") for config in job]
    assert [a.status for a in together] == [a.status for a in apart] == [0, 0]
    same = ("build_id", "config", "closed", "findings", "commit_distance", "main_stack", "open_because")
    for one, other in zip(together, apart, strict=True):
        assert {key: one.result[key] for key in same} == {key: other.result[key] for key in same}
        assert one.result["joined"] == [list(c.names()) for c in job]
        # of both: their contexts differ in CR3
        assert one.result["contexts"] == sum(a.result["contexts"] for a in apart)


@pytest.mark.slow
def test_rows_of_other_texts_are_not_joined() -> None:
    assert joined((BareConfig(), BareConfig(pcid=False)), "nmi") is None
    with pytest.raises(ValueError, match="one text"):
        verify_joined([_target(BareConfig()), _target(BareConfig(pcid=False))])


def _target(config: BareConfig) -> Target:
    return bare.load(bare.build(bare.kernel_source(), config, cache_dir()), config)


@pytest.mark.slow
def test_of_rows_in_one_run_one_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An entry that forgets the PCID: without PTI, that is wrong only where there is one."""
    source = tmp_path / "kernel"
    shutil.copytree(bare.kernel_source(), source)
    header = source / "bare" / "calling.h"
    good = header.read_text()
    macro = ".macro ATOMIC_IST_SWITCH_TO_KERNEL_CR3 scratch:req\n"
    forgets = (
        "#if !CONFIG_PAGE_TABLE_ISOLATION\n\tmovq\t%cr3, \\scratch\n\tandq\t$~0xfff, \\scratch\n"
        "\tmovq\t\\scratch, %cr3\n#endif\n"
    )
    assert good.count(macro) == 1
    header.write_text(good.replace(macro, macro + forgets))
    monkeypatch.setattr(bare, "kernel_source", lambda: source)
    job = tuple(BareConfig(pti=False, pcid=pcid) for pcid in (True, False))
    assert joined(job, "nmi") is None
    answers = do(job, "nmi")
    assert [a.status for a in answers] == [1, 0]
    assert not any("joined" in a.result for a in answers)
    assert {f["property"] for f in answers[0].result["findings"]} == {"IST011"}
    assert answers[0].result["config"] == list(job[0].names())


@pytest.mark.parametrize(
    "words", [("--variant", "1d"), ("--cc", "icc"), ("--vector", "smi"), ("--first", "-1")]
)
def test_bad_usage(words: tuple[str, ...]) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("atomicist: ")
