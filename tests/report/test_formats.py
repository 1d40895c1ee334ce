# SPDX-License-Identifier: GPL-2.0-only
"""What programs read: JSON, KTAP and JUnit XML, parsed back."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomicist.report.as_json import result_json
from atomicist.report.as_junit import result_junit
from atomicist.report.as_ktap import result_ktap
from atomicist.search.result import Finding, Result
from atomicist.spec.properties import PROPERTIES
from tests.report.results import FINDING, HOSTILE, result

KEYS = [
    "format", "image", "build_id", "config", "engine", "boundaries", "interleavings", "executed", "states",
    "contexts", "certificates", "guest_insns", "closed", "open_because", "interrupted", "commit_distance",
    "main_stack", "findings", "seconds",
]  # fmt: skip


def test_json_has_its_keys_in_order() -> None:
    document = json.loads(result_json(result(FINDING)))
    assert list(document) == KEYS
    assert document["interleavings"] == 31_746_014_585
    assert document["findings"] == [
        {
            "property": "IST001",
            "title": PROPERTIES["IST001"].title,
            "schedule": FINDING.schedule,
            "subject": "RDI",
            "expected": "0xa70a",
            "found": None,
            "where": "exc_nmi",
        }
    ]


def test_json_is_the_same_for_the_same() -> None:
    assert result_json(result(FINDING)) == result_json(result(FINDING))
    assert result_json(result()).isascii()


def ktap(text: str) -> dict[str, tuple[str, str]]:
    """Name -> (status, directive); the format itself is checked on the way."""
    lines = text.splitlines()
    assert lines[0] == "KTAP version 1"
    rest = [line for line in lines[1:] if not line.startswith("# ")]
    plan = re.fullmatch(r"1\.\.(\d+)", rest[0])
    assert plan is not None
    cases = {}
    for number, line in enumerate(rest[1:], start=1):
        case = re.fullmatch(r"(ok|not ok) (\d+) (\w+) ([^#]*?)( # SKIP .*)?", line)
        assert case is not None, line
        assert int(case[2]) == number
        cases[case[3]] = (case[1], case[5] or "")
    assert len(cases) == int(plan[1])
    return cases


def junit(text: str) -> dict[str, str]:
    """Name -> passed, failure or skipped; the counts are checked on the way."""
    suite = ET.fromstring(text.removeprefix('<?xml version="1.0" encoding="UTF-8"?>\n'))[0]  # noqa: S314
    cases = {}
    for case in suite.iter("testcase"):
        inner = list(case)
        cases[case.attrib["name"].split()[0]] = inner[0].tag if inner else "passed"
    values = list(cases.values())
    assert suite.attrib["tests"] == str(len(values))
    assert suite.attrib["failures"] == str(values.count("failure"))
    assert suite.attrib["skipped"] == str(values.count("skipped"))
    return cases


def test_all_pass_when_closed() -> None:
    cases = ktap(result_ktap(result()))
    assert list(cases) == [*PROPERTIES, "CLOSED"]
    assert set(cases.values()) == {("ok", "")}
    assert set(junit(result_junit(result())).values()) == {"passed"}


@pytest.mark.parametrize("made", [result(FINDING), result(FINDING, because="a table overflowed")])
def test_a_finding_fails_and_nothing_else_passes(made: Result) -> None:
    cases = ktap(result_ktap(made))
    assert {name for name, (status, _) in cases.items() if status == "not ok"} == {"IST001", "CLOSED"}
    assert all("SKIP" in how for status, how in cases.values() if status == "ok")
    again = junit(result_junit(made))
    assert {name for name, how in again.items() if how == "failure"} == {"IST001", "CLOSED"}
    assert "passed" not in again.values()


def test_unknown_is_a_failure() -> None:
    made = result(closed=False, because="interrupted", interrupted=True)
    cases = ktap(result_ktap(made))
    assert {name for name, (status, _) in cases.items() if status == "not ok"} == {"CLOSED"}
    assert cases["IST001"] == ("ok", " # SKIP not decided: interrupted")
    assert "passed" not in junit(result_junit(made)).values()


def test_the_schedule_is_in_the_failure() -> None:
    assert f"# schedule: {FINDING.schedule}" in result_ktap(result(FINDING))
    assert FINDING.schedule in result_junit(result(FINDING))


def test_a_property_nobody_knows_is_a_failure_too() -> None:
    odd = Finding("IST999", "user:NMI", "x", None, None, "y")
    assert ktap(result_ktap(result(odd)))["IST999"][0] == "not ok"
    assert junit(result_junit(result(odd)))["IST999"] == "failure"


def test_many_findings_are_cut_where_a_person_reads() -> None:
    many = [Finding("IST001", f"user:NMI@a+{i}", "RDI", 1, 2, "a") for i in range(5000)]
    assert len(json.loads(result_json(result(*many)))["findings"]) == 5000
    assert len(result_ktap(result(*many)).splitlines()) < 200
    assert "4,990 more findings" in result_ktap(result(*many))


@given(st.text(), st.text(), st.text())
def test_any_name_is_escaped(one: str, two: str, three: str) -> None:
    made = result(Finding("IST005", one, two, 1, 2, three), because=three, image=one)
    assert json.loads(result_json(made))["image"] == one
    assert ktap(result_ktap(made))["IST005"][0] == "not ok"
    assert junit(result_junit(made))["IST005"] == "failure"


def test_hostile_names() -> None:
    made = result(Finding("IST005", HOSTILE, HOSTILE, None, None, HOSTILE), because=HOSTILE, image=HOSTILE)
    for text in (result_ktap(made), result_junit(made), result_json(made)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "[red]" in result_ktap(made)
