# SPDX-License-Identifier: GPL-2.0-only
"""Whatever is wrong with the command line or the input: one line on stderr, status 2, no traceback."""

import contextlib
import io
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomicist.cli import failures
from atomicist.cli.main import VERBS, main
from atomicist.native.build import BuildError
from atomicist.search.verify import Disagreement
from atomicist.spec.properties import PROPERTIES
from tests.cli.command import COMMAND, ROOT, environment, run


def refused(*words: str) -> str:
    """Run in this process; the one line that it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(words) == 2
    assert out.getvalue() == ""
    assert re.fullmatch(r"atomicist: [^\n]+\n", err.getvalue()), err.getvalue()
    return err.getvalue()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("verify", "--specimen", "nonsuch"), "there is no specimen 'nonsuch'"),
        (("verify", "--vector", "nmi,hv"), "unknown vector 'hv': they are nmi, db, mc, vc"),
        (("verify", "--vector", ""), "unknown vector ''"),
        (("verify", "--context", "nowhere"), "unknown context 'nowhere'"),
        (("verify", "--budget", "0"), "'0' is not a number from 1 to 8"),
        (("verify", "--workers", "many"), "'many' is not a number from 0 to 64"),
        (("verify", "--json", "-", "--ktap"), "both want the standard output"),
        (("verify", "--features", "PTI"), "--features is for --kernel"),
        (("verify", "--kernel", "x", "--no-pti"), "--no-pti is for the entry"),
        (("verify", "--kernel", "x", "--cc", "gcc"), "--cc is for the entry"),
        (("verify", "--kernel", "nonsuch"), "there is no such file"),
        (("verify", "--kernel", "a\0b"), "cannot read a\\x00b"),
        (("verify", "--kernel", "/dev/null"), "it is no regular file"),
        (("verify", "--cc", "tcc"), "invalid choice: 'tcc'"),
        (("verify", "--no"), "unrecognized arguments: --no"),
        (("verify", "--json", "/nonexistent/x"), "cannot write /nonexistent/x"),
        (("verify", "--junit", "/"), "cannot write /: is a directory"),
        (("verify", "--quiet", "\x1b[31m\n"), "unrecognized arguments: \\x1b[31m\\n"),
        (("replay",), "required: SCHEDULE"),
        (("replay", "nonsense"), "a schedule reads CONTEXT:EVENT"),
        (("replay", "user:"), "is no event"),
        (("replay", "user:XY"), "'XY' is no event"),
        (("replay", "user:NMI@"), "names no place"),
        (("replay", "user:NMI,MC"), "names no place"),
        (("replay", "user:NMI@nowhere"), "no symbol 'nowhere'"),
        (("replay", "nowhere:NMI"), "no start context 'nowhere'"),
        (("replay", "user:NMI@asm_exc_nmi"), "the schedule's first event never arrives"),
        (("replay", "user:NMI,NMI@asm_exc_nmi"), "its gate is closed"),
        (("explain", "IST999"), "there is no property 'IST999': they are IST001 to"),
        (("nonsense",), "invalid choice: 'nonsense'"),
    ],
)
def test_refused(words: tuple[str, ...], says: str) -> None:
    assert says in refused(*words)


def test_as_a_command_too() -> None:
    done = run("verify", "--specimen", "nonsuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert run("verify", "--kernel", str(ROOT / "pyproject.toml")).returncode == 2


@given(st.text(max_size=40) | st.from_regex(r"user:NMI,[A-Z]{0,3}@?[a-z_+0-9x#~]{0,12}", fullmatch=True))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_schedule_is_refused_or_replayed(text: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["replay", "--", text])
    assert status in {0, 1, 2}
    assert err.getvalue().count("\n") == (status == 2)
    assert "internal error" not in err.getvalue()


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF" + bytes(200), b"MZ" + bytes(600)])
def test_not_a_kernel(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(content)
    assert "internal error" not in refused("verify", "--kernel", str(tmp_path / "vmlinuz"))


def test_unwritable_output_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for option in ("--json", "--junit"):
        assert "choose another place" in refused("verify", option, str(tmp_path / "file" / "x"))
        assert "choose another place" in refused("verify", option, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_known_failures_say_what_to_do() -> None:
    assert failures.words(Disagreement("user:NMI: x")) == "the engines disagree; please report: user:NMI: x"
    assert failures.words(BuildError("no C compiler found")) == "no C compiler found"
    assert failures.words(OSError(28, "No space left on device", "x")) == "x: No space left on device"
    assert "--workers 1" in failures.words(MemoryError())


def test_no_compiler() -> None:
    done = run("verify", PATH="/nonexistent", ATOMICIST_CACHE="/nonexistent/cache")
    assert done.returncode == 2
    assert "is not installed: apt-get install" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_bug_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_: object) -> int:
        raise RuntimeError("oops")

    monkeypatch.setattr("atomicist.cli.explain.run", bug)
    assert "internal error, please report it: RuntimeError: oops" in refused("explain")


def test_help_names_every_verb_and_status() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)
    assert all(re.search(rf"^  {status}  \S", done.stdout, re.MULTILINE) for status in (0, 1, 2, 3, 130))
    for verb in VERBS:
        assert run(verb, "--help").returncode == 0
    assert run().returncode == 2


def test_explain() -> None:
    done = run("explain", "ist003", "IST001", COLUMNS="40")
    assert done.returncode == 0
    assert [line[:6] for line in done.stdout.splitlines() if line.startswith("IST")] == ["IST003", "IST001"]
    assert "next: " in done.stdout
    everything = run("explain")
    assert all(number in everything.stdout for number in PROPERTIES)


def test_specimens() -> None:
    done = run("specimens", "--json")
    assert done.returncode == 0
    known = json.loads(done.stdout)
    assert list(known[0]) == ["name", "origin", "property", "about", "vectors", "contexts", "config"]
    names = [s["name"] for s in known]
    assert names == sorted(names)
    for columns in ("40", "120"):
        shown = run("specimens", COLUMNS=columns).stdout
        assert all(name in shown for name in names)
        assert f"--specimen {names[0]}" in shown


def test_list_contexts() -> None:
    done = run("verify", "--list-contexts", COLUMNS="40")
    assert done.returncode == 0
    assert "user\n    user mode, nothing unusual\n" in done.stdout


def test_replay_of_our_entry() -> None:
    done = run("replay", "user:NMI,MC@atomic_ist_copy_nmi", "--trace")
    assert done.returncode == 0
    assert "Nothing is violated" in done.stdout
    assert "push rdi" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_nobody_reads_the_output() -> None:
    process = subprocess.Popen(
        [*COMMAND, "replay", "user:NMI", "--trace"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(), text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait(60) == 0


def test_the_command_is_installed_under_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["atomicist"] == "atomicist.cli.main:main"
    assert os.access(COMMAND[0], os.X_OK)
