# SPDX-License-Identifier: GPL-2.0-only
"""The verb compare: what it prints is measured, and docs/retbleed.md is what it prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.image.source_lines import SourceLines
from atomicist.native.build import cache_dir
from atomicist.report.compare import cells, markdown
from atomicist.search.measure import Figures, cheap, path
from atomicist.search.replay import replay
from atomicist.search.result import Coverage, Finding, Result
from atomicist.search.schedule import parse
from tests.cli.command import ROOT, environment

DOC = ROOT / "docs" / "retbleed.md"


@pytest.fixture(scope="module")
def figures() -> Figures:
    config = BareConfig(mitigation="unret")
    image = build(kernel_source(), config, cache_dir())
    return cheap(load(image, config), "1c", SourceLines(image))


def test_what_is_counted(figures: Figures) -> None:
    config = BareConfig(mitigation="unret")
    target = load(build(kernel_source(), config, cache_dir()), config)
    shown = replay(target, parse("user:NMI", target))
    counted = [s.kind for s in shown.steps]
    user = figures.fast["user"]
    assert user is not None
    assert user == path(shown)
    assert counted.count("insn") == user.total
    assert counted[: counted.index("handler")].count("insn") == user.delivery
    assert figures.assembler > 100
    assert figures.c > 50
    assert figures.early_c > 100
    assert sum(size for name, size in figures.user_mapped.items() if name != "text") == 4 * 4096 + 8192
    assert figures.trusted == ("compiled C before the commit",)
    assert figures.exposed == ()
    lost = replay(target, parse("contradiction-twice-nmi:NMI", target))
    assert path(lost) is None, "a run that does not resume has no fast path"


def row(figures: Figures, name: str) -> str:
    return next((texts[0] for title, texts in cells([figures]) if title == name), "left out")


def test_verdicts(figures: Figures) -> None:
    """A cell says yes only of a closed search without such a finding."""
    good = Result("x", "", (), "", Coverage(), True, "", (), 504, 7688, 1.0)
    finding = Finding("IST001", "user:NMI", "RIP", None, None, "")
    assert row(figures, "nothing lost") == "left out"
    assert row(replace(figures, verified=good), "nothing lost") == "yes"
    assert row(replace(figures, verified=good), "RETBLEED-safe, all runs") == "yes"
    assert row(replace(figures, verified=good), "main stack, bytes") == "7,688"
    bounded = replace(good, closed=False)
    assert row(replace(figures, verified=bounded), "nothing lost") == "none found"
    lost = replace(figures, verified=replace(good, findings=(finding,)))
    assert row(lost, "nothing lost") == "no: IST001"
    assert row(lost, "RETBLEED-safe, all runs") == "yes"
    bled = replace(figures, verified=replace(good, findings=(replace(finding, property="IST026"),)))
    assert (row(bled, "nothing lost"), row(bled, "RETBLEED-safe, all runs")) == ("yes", "no: IST026")
    assert row(bled, "other properties violated") == "none"
    other = replace(figures, verified=replace(good, findings=(replace(finding, property="IST009"),)))
    assert row(other, "other properties violated") == "IST009"


def test_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compare", "1c", "--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out == ""
    (image,) = json.loads((tmp_path / "out.json").read_text())["images"]
    assert (image["name"], image["mitigation"], image["closed"]) == ("1c", "unret", None)
    assert image["fast_path"]["user"]["delivery"] > 100


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("9z",), "there is no variant '9z': they are 1a, 1b"),
        (("1c", "--kernel", "nonsuch"), "there is no such file"),
        (("1c", "--kernel", "a\0b"), "cannot read a"),
        (("1c", "--kernel", str(ROOT / "pyproject.toml"), "--quick"), "not an ELF file"),
        (("1c", "--json", "/nonexistent/x"), "cannot write /nonexistent/x"),
        (("1c", "--json", "--markdown"), "not allowed with"),
        (("1c", "--workers", "99"), "is not a number from 0 to 64"),
        (("1c", "--mitigation", "luck"), "invalid choice"),
    ],
)
def test_refused(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"atomicist: [^\n]+\n", err), err
    assert says in err


def test_the_document_is_current(figures: Figures) -> None:
    """Its column of the default variant; the others with the slow test."""
    block = re.search(r"begin: --quick --mitigation unret .*?-->\n(.*?)<!-- end", DOC.read_text(), re.DOTALL)
    assert block is not None
    lines = [[c.strip() for c in line.strip("|").split(" | ")] for line in block[1].strip().splitlines()]
    column = lines[0].index("1c")
    shown = {line[0].strip("| "): line[column] for line in lines[2:]}
    measured = {name: texts[0] for name, texts in cells([figures])}
    assert shown == measured
    assert "| lines of C |" in markdown([figures])


@pytest.mark.slow
def test_the_whole_document_is_current() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "retbleed-doc"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
