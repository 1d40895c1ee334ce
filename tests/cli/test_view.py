# SPDX-License-Identifier: GPL-2.0-only
"""``atomicist view`` and ``verify --html`` as a user runs them; what a browser shows is in
tests/report/test_browser.py."""

from __future__ import annotations

import json
import re
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

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
    assert shown["verdict"]["property"] == "IST001"
    assert "IST001 is violated" in run("replay", "--specimen", "naive", LOSS).stdout
    assert [s["name"] for s in shown["lost"]["slots"]] == ["SS", "RSP", "RFLAGS", "CS", "RIP"]
    delivered = [d["step"] for d in shown["deliveries"]]
    assert shown["lost"]["step"] == delivered[2]
    assert shown["lost"]["delivery"] == 0
    assert shown["lost"]["by"] == 2


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (("--variant", "2", "--mitigation", "ibrs"), ["save1", "save2", "save3", "copy", "commit"]),
        (("--variant", "2", "--mitigation", "unret"), ["save1", "save2", "untrain", "copy", "commit"]),
        (("--variant", "3", "--mitigation", "unret"),
         ["save1", "save2", "save3", "kernelize", "untrain", "copy", "commit"]),
    ],
)  # fmt: skip
def test_stages_of_the_variants(options: tuple[str, ...], stages: list[str]) -> None:
    done = run("view", *options, "user:NMI,MC@atomic_ist_commit_nmi", "--json")
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)["runs"]
    # the NMI is hit right before it commits, the #MC goes through all
    for delivery, through in ((0, stages[:-1]), (1, stages)):
        seen = [s[1] for s in shown["segments"] if s[0] == delivery and s[1] != "walk"]
        assert seen[: len(through) + 1] == [*through, "kernel"]
    words = {
        address: shown["strings"][writes[0][7]]
        for stack in shown["stacks"] if stack["kind"] == "main"
        for address, writes in stack["words"]
    }  # fmt: skip
    top = max(int(a, 16) for a in words) + 8
    below = [words[f"{top - 8 * n:#x}"] for n in range(1, 25) if n <= 21 or "save3" in stages]
    assert below[:6] == ["SS", "RSP", "RFLAGS", "CS", "RIP", "orig_ax"]
    assert below[6:21] == [
        "RDI", "RSI", "RDX", "RCX", "RAX", "R8", "R9", "R10", "R11", "RBX", "RBP", "R12", "R13", "R14", "R15"
    ]  # fmt: skip
    assert below[21:] == (["saved CR3", "saved GSBASE", "saved SPEC_CTRL"] if "save3" in stages else [])


# What the "Trace Event Format" demands of each phase, and no more phases than these.
PHASES = {
    "X": {"ts", "dur"},
    "i": {"ts", "s"},
    "s": {"ts", "id", "cat"},
    "f": {"ts", "id", "cat"},
    "M": {"args"},
}
METADATA = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}


@pytest.mark.parametrize(
    ("words", "tracks", "bars"),
    [
        ((NESTED,), {"user mode", "NMI stack", "MC stack", "main stack", "task stack"},
         {"NMI: Save 1", "#MC: Save 2", "#MC: Commit", "NMI: Handler", "runs again"}),
        (("--specimen", "naive", LOSS), {"user mode", "NMI stack", "MC stack"},
         {"first NMI: Save 1", "#MC: Handler", "second NMI: Handler"}),
    ],
)  # fmt: skip
def test_a_trace_is_one(words: tuple[str, ...], tracks: set[str], bars: set[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert run("view", *words, "--trace", str(path)).returncode in {0, 1}
    events = json.loads(path.read_text())["traceEvents"]
    named = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert tracks <= set(named)
    assert len(set(named.values())) == len(named)
    assert bars <= {e["name"] for e in events if e["ph"] == "X"}
    assert_trace_events(events)


def assert_trace_events(events: list[dict[str, Any]]) -> None:
    """Fields, times and nesting; flows have one start and one end, each within a bar."""
    known = {e["tid"] for e in events if e["name"] == "thread_name"}
    for e in events:
        assert e["ph"] in PHASES, e
        assert PHASES[e["ph"]] | {"name", "pid", "tid"} <= e.keys(), e
        assert isinstance(e["name"], str)
        assert e["name"]
        assert all(type(e[k]) is int and e[k] >= 0 for k in ("pid", "tid", "ts", "dur", "id") if k in e), e
        if e["ph"] == "M":
            assert list(e["args"]) == [METADATA[e["name"]]]
        else:
            assert e["tid"] in known, e
        assert e["ph"] != "i" or e["s"] in {"g", "p", "t"}
        assert e["ph"] != "f" or e["bp"] == "e"
    assert len({e["pid"] for e in events}) == 1
    times = [e["ts"] for e in events if e["ph"] != "M"]
    assert times == sorted(times)
    # what a reader makes of X: a beginning and an end, properly nested on each track
    for track in known:
        mine = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == track)
        assert all(start < end for start, end in mine)
        assert all(before[1] <= after[0] for before, after in pairwise(mine))
    flows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for e in events:
        if e["ph"] in "sf":
            flows.setdefault((e["cat"], e["name"], e["id"]), []).append(e)
            assert any(
                b["ph"] == "X" and b["tid"] == e["tid"] and b["ts"] <= e["ts"] < b["ts"] + b["dur"]
                for b in events
            ), e
    for ends in flows.values():
        assert [e["ph"] for e in ends] == ["s", "f"]
        assert ends[0]["ts"] <= ends[1]["ts"]


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
