# SPDX-License-Identifier: GPL-2.0-only
"""The verb verify: its statuses, its files, and Ctrl-C in the middle."""

import contextlib
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from atomicist.cli import selection
from atomicist.cli import verify as verb
from atomicist.cli.main import main
from atomicist.search.replay import Replay
from atomicist.search.result import Result
from atomicist.search.verify import Disagreement
from tests.cli.command import COMMAND, environment, run
from tests.report.results import FINDING, overwritten, result


def verified(
    monkeypatch: pytest.MonkeyPatch, made: Result, *words: str, shown: Replay | None = None
) -> tuple[int, str, str]:
    """Status, stdout and stderr of verify, whose search found ``made``."""
    replayed = shown or overwritten()
    image = selection.Image(replayed.target, ("--specimen", "it's made up"))
    monkeypatch.setattr(selection, "select", lambda _: image)
    monkeypatch.setattr(verb, "contexts", lambda _: (replayed.context,))
    monkeypatch.setattr(verb, "verify", lambda *_, **__: (made, replayed if made.findings else None))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["verify", "--vector", "nmi", *words])
    return status, out.getvalue(), err.getvalue()


OPEN = result(closed=False, because="schedules are bounded at 3 events")
STOPPED = result(closed=False, because="interrupted", interrupted=True)


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (result(), 0),
        (result(FINDING), 1),
        (OPEN, 3),
        (STOPPED, 130),
        (result(FINDING, interrupted=True), 130),
    ],
)
@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_status(monkeypatch: pytest.MonkeyPatch, made: Result, status: int, quiet: tuple[str, ...]) -> None:
    got, out, err = verified(monkeypatch, made, *quiet)
    assert got == status
    assert err == ""
    assert out.startswith(("PASSED", "FAILED", "NOT CLOSED", "INTERRUPTED")) == bool(quiet)


def test_the_next_command_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = overwritten()
    _, out, _ = verified(monkeypatch, result(FINDING), shown=shown)
    line = next(line for line in out.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    assert words[words.index("replay") :] == [
        "replay",
        "--specimen",
        "it's made up",
        shown.schedule.text(shown.target),
    ]
    assert "What happens" in out


def test_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.xml"
    _, out, _ = verified(monkeypatch, result(FINDING), "--json", str(a), "--junit", str(b), "--ktap")
    assert json.loads(a.read_text())["findings"][0]["property"] == "IST001"
    assert ET.parse(b).getroot().tag == "testsuites"  # noqa: S314
    assert out.startswith("KTAP version 1\n")
    assert "FAILED" not in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.xml"]


@pytest.mark.parametrize("option", [["--json"], ["--json", "-"]])
def test_json_on_standard_output_is_alone_there(monkeypatch: pytest.MonkeyPatch, option: list[str]) -> None:
    _, out, err = verified(monkeypatch, result(FINDING), *option)
    assert json.loads(out)["build_id"] == "0123abcd"
    assert "FAILED" in err


def test_an_event_without_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = verified(monkeypatch, result(), "--vector", "vc")
    assert (status, err) == (2, "atomicist: made by hand has no entry for VC\n")


def test_a_disagreement_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def disagree(*_: object, **__: object) -> None:
        raise Disagreement("user:NMI: x")

    monkeypatch.setattr(selection, "select", lambda _: selection.Image(overwritten().target, ()))
    monkeypatch.setattr(verb, "contexts", lambda _: ())
    monkeypatch.setattr(verb, "verify", disagree)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert main(["verify", "--vector", "nmi", "--json", str(tmp_path / "x")]) == 2
    assert err.getvalue() == "atomicist: the engines disagree; please report: user:NMI: x\n"
    assert list(tmp_path.iterdir()) == []


def test_a_broken_entry_from_end_to_end(tmp_path: Path) -> None:
    place = tmp_path / "x.json"
    done = run("verify", "--specimen", "x-store-before-commit", "--vector", "nmi,mc", "--json", str(place))
    assert done.returncode == 1
    written = json.loads(place.read_text())
    assert {f["property"] for f in written["findings"]} == {"IST007"}
    line = next(line for line in done.stdout.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    again = run(*words[words.index("replay") :])
    assert again.returncode == 1
    assert "IST007 is violated" in again.stdout


def test_an_instruction_that_is_not_modelled() -> None:
    """A finding with its name, and an input that cannot be judged."""
    done = run("verify", "--specimen", "x-instruction-not-modelled", "--vector", "nmi", "--quiet")
    assert done.returncode == 2
    assert "IST017" in done.stdout
    assert done.stderr.startswith("atomicist: at atomic_ist_committed_nmi+")
    assert "cpuid" in done.stderr
    assert done.stderr.count("\n") == 1


def hear_interrupts() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path: Path, number: signal.Signals, status: int) -> None:
    place = tmp_path / "x.json"
    process = subprocess.Popen(
        [*COMMAND, "verify", "--json", str(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(), preexec_fn=hear_interrupts,  # noqa: PLW1509 - there are no threads
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()
    assert re.match(r"certifying contexts  1/\d+  ", first)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert "INTERRUPTED" in out
    written = json.loads(place.read_text())
    assert (written["interrupted"], written["closed"], written["open_because"]) == (
        True,
        False,
        "interrupted",
    )
    assert written["certificates"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_interrupted_on_a_narrow_terminal() -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "verify"], stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        preexec_fn=hear_interrupts,  # noqa: PLW1509 - there are no threads
        env=environment(TERM="xterm", COLUMNS="40", NO_COLOR="1"),
    )  # fmt: skip
    os.close(follower)
    seen = b""
    stopped = False
    with contextlib.suppress(OSError):  # the end of a terminal
        while more := os.read(leader, 4096):
            seen += more
            if not stopped and b"certifying contexts" in seen:
                stopped = True
                process.send_signal(signal.SIGINT)
    os.close(leader)
    assert process.wait(60) == 130
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode())
    assert "Traceback" not in text
    assert "INTERRUPTED" in text
    assert not re.search(rb"\x1b\[[\d;]*3[0-7]m", seen)
    lines = [line for line in re.split(r"[\r\n]+", text) if not line.startswith(("next: ", "  "))]
    assert [line for line in lines if len(line) > 40] == []
