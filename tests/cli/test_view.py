# SPDX-License-Identifier: GPL-2.0-only
"""``atomicist view`` and ``verify --html`` as a user runs them; what a browser shows is in
tests/report/test_browser.py."""

from __future__ import annotations

import json
import re
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.command import run

NESTED = "user:NMI,MC@asm_exc_nmi+0x4"
LOSS = "user:NMI,MC@asm_exc_nmi,NMI@asm_exc_nmi"


def data_in(page: Path) -> dict[str, object]:
    """The data that a page carries."""
    text = page.read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    found: dict[str, object] = json.loads(match[1])
    return found


def test_a_page_and_its_data(tmp_path: Path) -> None:
    page, data = tmp_path / "page.html", tmp_path / "data.json"
    done = run("view", NESTED, "-o", str(page), "--json", str(data))
    assert done.returncode == 0, done.stderr
    assert f"written: {page}" in done.stdout
    shown = json.loads(data.read_text())
    (first,) = shown["runs"]
    assert first["format"] == 1
    assert first["schedule"] == NESTED
    assert [d["vector"] for d in first["deliveries"]] == ["NMI", "MC"]
    assert first["deliveries"][0]["completed_by"] == 1
    embedded = data_in(page)
    assert embedded["runs"] == shown["runs"]
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", text)
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    again = tmp_path / "again.html"
    run("view", NESTED, "-o", str(again))
    assert again.read_bytes() == page.read_bytes()


def test_segments_follow_each_other_and_cover_the_run() -> None:
    done = run("view", NESTED, "--json")
    (shown,) = json.loads(done.stdout)["runs"]
    segments = shown["segments"]
    assert segments[0][3] == 0
    assert segments[-1][4] == len(shown["steps"]) - 1
    assert all(before[4] + 1 == after[3] for before, after in pairwise(segments))
    assert {a["kind"] for a in shown["arrows"]} == {"deliver", "commit", "copy", "return"}


def test_a_counterexample_ends_with_one_and_names_the_lost_slots() -> None:
    done = run("view", "--specimen", "naive", LOSS, "--json")
    assert done.returncode == 1
    (shown,) = json.loads(done.stdout)["runs"]
    assert f"{shown['verdict']['property']} is violated" in run("replay", "--specimen", "naive", LOSS).stdout
    assert [s["name"] for s in shown["lost"]["slots"]] == ["SS", "RSP", "RFLAGS", "CS", "RIP"]
    delivered = [d["step"] for d in shown["deliveries"]]
    assert shown["lost"]["step"] == delivered[2]
    assert shown["lost"]["delivery"] == 0
    assert shown["lost"]["by"] == 2


def test_a_trace_has_a_track_for_each_stack(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert run("view", NESTED, "--trace", str(path)).returncode == 0
    events = json.loads(path.read_text())["traceEvents"]
    tracks = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert {"user mode", "NMI stack", "MC stack", "main stack", "task stack"} <= set(tracks)
    bars = [e for e in events if e["ph"] == "X"]
    assert {e["name"] for e in bars} >= {"NMI: Save 1", "#MC: Save 2", "#MC: Commit", "NMI: Handler"}
    for track in set(tracks.values()):
        on = sorted((e["ts"], e["dur"]) for e in bars if e["tid"] == track)
        assert all(a + d <= b for (a, d), (b, _) in pairwise(on))
    starts = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert all(starts[i] <= ends[i] for i in starts)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((NESTED,), "say what to make"),
        (("user:NMI,MC@no_such_symbol", "-o", "page.html"), "no symbol 'no_such_symbol'"),
        (("user:NMI,mc", "-o", "page.html"), "is no event"),
        (("nonsense", "-o", "page.html"), "a schedule reads"),
        (("nowhere:NMI", "-o", "page.html"), "no start context 'nowhere'"),
        (("user:NMI,MC@asm_exc_nmi+0x1", "-o", "page.html"), "never arrives"),
        ((NESTED, "-o", "no/such/place/page.html"), "cannot write"),
        ((NESTED, "-o", "."), "cannot write"),
        ((NESTED, "-o", "page.html", "--against", "no-such"), "--against: cannot read no-such"),
        ((NESTED, "--trace", "t", "--against", "entry"), "--trace is of one run"),
        ((NESTED, "--specimen", "nave", "-o", "page.html"), "did you mean naive"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("view", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_old_page_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    assert run("view", "user:NMI,MC@asm_exc_nmi+0x1", "-o", str(page)).returncode == 2
    assert page.read_text() == "old"
