# SPDX-License-Identifier: GPL-2.0-only
"""A result as JUnit XML, as CI systems read it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from atomicist.report.rows import rows
from atomicist.report.text import clean
from atomicist.search.result import Result


def result_junit(result: Result) -> str:
    """``result`` as an XML document: a testcase a property."""
    table = rows(result)
    counts = {
        "tests": str(len(table)),
        "failures": str(sum(row.outcome == "not ok" for row in table)),
        "errors": "0",
        "skipped": str(sum(row.outcome == "skip" for row in table)),
        "time": f"{result.seconds:.3f}",
    }
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": clean(result.image), **counts})
    properties = ET.SubElement(suite, "properties")
    facts = {"build_id": result.build_id, "config": " ".join(result.config), "engine": result.engine}
    for key, value in facts.items():
        ET.SubElement(properties, "property", {"name": key, "value": clean(value)})
    for row in table:
        case = ET.SubElement(
            suite,
            "testcase",
            {"classname": f"atomicist.{clean(result.image)}", "name": f"{row.number} {row.title}"},
        )
        if row.outcome == "not ok":
            failure = ET.SubElement(case, "failure", {"type": row.number, "message": row.message})
            failure.text = "\n".join(row.details)
        elif row.outcome == "skip":
            ET.SubElement(case, "skipped", {"message": row.message})
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"
