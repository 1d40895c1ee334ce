# SPDX-License-Identifier: GPL-2.0-only
"""Named exceptions: mutants that nothing can tell from the original, each with the reason.

`exceptions.toml` lists them; `judge` holds the list to what was found.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from atomicist.image.mutate import KINDS, STAGES, Mutant
from atomicist.search.alike import ANOTHER_REASON, OTHER_ENDS, SAME_ENDS
from atomicist.search.mutation import Outcome

_FILE: Final = Path(__file__).with_name("exceptions.toml")
_TEXTS: Final = frozenset({"name", "reason", "was", "mutant", "compared"})
_COMPARED: Final = ("", SAME_ENDS, ANOTHER_REASON, OTHER_ENDS)
_LISTS: Final = {"kinds": KINDS, "stages": STAGES}


@dataclass(frozen=True, slots=True)
class Named:
    """One exception: of these ``kinds`` and ``stages`` (empty: all), where ``was`` matches
    the original instructions and ``mutant`` the mutant's name; with ``compared``, only where
    that was the outcome of comparing it with the original (`alike`)."""

    name: str
    reason: str
    was: str = ".*"
    mutant: str = ".*"
    compared: str = ""
    kinds: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    def matches(self, mutant: Mutant) -> bool:
        """Whether the exception is about ``mutant``."""
        return (
            (not self.kinds or mutant.kind in self.kinds)
            and (not self.stages or mutant.stage in self.stages)
            and re.fullmatch(self.was, mutant.was) is not None
            and re.fullmatch(self.mutant, mutant.name) is not None
        )


def read(text: str) -> tuple[Named, ...]:
    """The exceptions in the TOML ``text``. Raises ValueError if it is not as it has to be."""
    found = []
    for row in tomllib.loads(text).get("exception", []):
        unknown = set(row) - _TEXTS - set(_LISTS)
        if unknown or not row.get("name") or not row.get("reason"):
            raise ValueError(f"exception {row.get('name')!r}: {', '.join(sorted(unknown)) or 'no reason'}")
        for key, known in _LISTS.items():
            if not set(row.get(key, ())) <= set(known):
                raise ValueError(f"exception {row['name']!r}: unknown {key}")
        if row.get("compared", "") not in _COMPARED:
            raise ValueError(f"exception {row['name']!r}: compared is one of {', '.join(_COMPARED[1:])}")
        lists = {key: tuple(row.get(key, ())) for key in _LISTS}
        texts = {key: str(row[key]) for key in _TEXTS if key in row}
        found.append(Named(**texts, **lists))  # type: ignore[arg-type]
    return tuple(found)


@cache
def exceptions() -> tuple[Named, ...]:
    """All named exceptions."""
    return read(_FILE.read_text(encoding="utf-8"))


def judge(
    mutants: Sequence[Mutant], outcomes: Mapping[str, Outcome], named: Sequence[Named]
) -> tuple[dict[str, Outcome], list[str]]:
    """The outcomes with survivors that are excepted made equivalent; and what is wrong with
    the list: an exception for which there is no mutant that needs it."""
    result = dict(outcomes)
    used: set[str] = set()
    for mutant in mutants:
        outcome = result.get(mutant.name)
        # one that has only passed so far, in a run that was cut short, may yet be found
        if outcome is None or outcome.status != "survived":
            continue
        for n in named:
            if n.matches(mutant) and outcome.by.endswith(n.compared):
                used.add(n.name)
                result[mutant.name] = replace(
                    outcome, status="equivalent", by=f"named, {outcome.by}", reason=n.reason
                )
                break
    return result, [f"exception '{n.name}' explains no survivor" for n in named if n.name not in used]
