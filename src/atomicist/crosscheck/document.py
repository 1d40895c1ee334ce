# SPDX-License-Identifier: GPL-2.0-only
"""The result of a comparison as Markdown, for docs/: what was compared, by whom, and what by nobody."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from atomicist.crosscheck.engines import UNICORN_IS_WRONG, UNICORN_STATES, import_unicorn
from atomicist.crosscheck.run import FormResult, Options, undefined_sections
from atomicist.native.build import compiler

HEAD: Final = """\
<!-- SPDX-License-Identifier: GPL-2.0-only -->
<!-- Printed by: make crosscheck. Do not edit. -->
# Instructions, in independent opinions

A form is a mnemonic with the kind and size of its operands. Each is run in random states, edge values
favoured (`src/atomicist/crosscheck/generate.py`), one instruction at a time, and every engine has to leave
the same registers, flags and memory. *native*: the IR printed as C and compiled; where that leaves an
instruction to the interpreter in C, that one (it runs every state as well). *reference*: the interpreter in
Python, which is the definition. *Unicorn* and *processor* share nothing with the project. *stopped*: the
instruction faults, or the model refuses it; only the native model and the reference are compared there.
"""


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "unknown")


def engines(options: Options) -> dict[str, str]:
    """What the comparison ran on and with: name -> version."""
    done = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False)
    found = {"processor": processor(), "native": f"compiled by {(done.stdout.splitlines() or ['?'])[0]}"}
    found["reference"] = f"Python {platform.python_version()}"
    found["Unicorn"] = import_unicorn()[0].__version__ if options.unicorn else "not asked"
    if not options.host:
        found["processor"] += " (not asked)"
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    left = [" | ".join(head), "|".join(["---"] + ["---:"] * (len(head) - 1))]
    return [f"| {left[0]} |", f"|{left[1]}|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def markdown(
    results: Sequence[FormResult], options: Options, machine: Mapping[str, str], *, complete: bool
) -> str:
    """The document; ``machine`` names what it was run on and with."""
    images = {image for r in results for image in r.images}
    compared = [r for r in results if r.states]
    wrong = sum(r.mismatches for r in results)
    lines = [HEAD, *(f"- {name}: {value}" for name, value in machine.items()), ""]
    summary = (
        ("images", len(images)), ("forms", len(results)),
        ("encodings in the images", _sum(results, "encodings_known")),
        ("encodings run", _sum(results, "encodings")), ("states of each form", options.states),
        ("states", _sum(results, "states")), ("native, compiled", _sum(results, "compiled")),
        ("native, interpreted", _sum(results, "states")), ("reference", _sum(results, "reference")),
        ("Unicorn", _sum(results, "unicorn")), ("processor", _sum(results, "host")),
        ("stopped", _sum(results, "stopped")), ("mismatches", wrong),
    )  # fmt: skip
    lines += _table(("what", "count"), [(name, f"{number:,}") for name, number in summary])
    if not complete:
        lines += ["The run was cut short: forms that are missing here were not compared.", ""]
    lines += ["## Images", "", "; ".join(sorted(images)), ""]
    lines += ["## Undefined by the manuals", "", "Not compared, in that many states (Intel SDM):", ""]
    lines += [f"- {count:,}: {section}" for section, count in sorted(undefined_sections(compared).items())]
    lines += ["", "## No second opinion but the reference interpreter's", ""]
    lines += [f"- `{r.name}`: {r.alone}" for r in results if r.alone]
    lines += ["", "## Where Unicorn is not asked", ""]
    lines += [f"- `{name}`: {why}" for name, why in UNICORN_IS_WRONG.items()]
    lines += [f"- `{name}` with {flag} set: {why}" for name, (flag, why) in UNICORN_STATES.items()]
    lines += ["", "## Forms", ""]
    head = ("form", "encodings", "states", "reference", "Unicorn", "processor", "stopped", "mismatches")
    lines += _table(head, [
        (f"`{r.name}`", f"{r.encodings} of {r.encodings_known}",
         *(f"{n:,}" for n in (r.states, r.reference, r.unicorn, r.host, r.stopped, r.mismatches)))
        for r in results
    ])  # fmt: skip
    for r in results:
        lines += [f"- {words}" for words in r.words]
    return "\n".join(lines).rstrip() + "\n"


def _sum(results: Sequence[FormResult], name: str) -> int:
    return sum(getattr(r, name) for r in results)
