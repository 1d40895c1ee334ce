# SPDX-License-Identifier: GPL-2.0-only
"""Every variant of the entry in every configuration of the processor, as rows.

A configuration is PTI x PCID x FSGSBASE x mitigation; all of them exist.  PCID without PTI
is a processor that Meltdown does not concern: CR3 carries a PCID that no entry looks at, so
that the text is the same as without, and only the contexts differ.

A row is identified by the content of its image, its configuration and the content of the
checker.  What is known of a row stays true until one of them changes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from atomicist.image.bare import VARIANTS, BareConfig
from atomicist.isa.predictions import MITIGATIONS

SWITCHES: Final = tuple(itertools.product((True, False), repeat=3))
"""PTI, PCID and FSGSBASE."""

_CHECKER: Final = ("isa", "machine", "native", "image", "spec", "search")
_SUFFIXES: Final = (".py", ".c", ".h")


def rows(
    compilers: Sequence[str] = ("gcc",),
    variants: Sequence[str] = VARIANTS,
    mitigations: Sequence[str] = MITIGATIONS,
) -> tuple[BareConfig, ...]:
    """The rows: first each variant with each mitigation on a processor with everything, then
    what is left, so that what differs most comes soonest."""
    return tuple(
        BareConfig(cc, pti, pcid, fsgsbase, mitigation, variant)
        for (pti, pcid, fsgsbase), mitigation, variant, cc in itertools.product(
            SWITCHES, mitigations, variants, compilers
        )
    )


def jobs(some: Sequence[BareConfig]) -> tuple[tuple[BareConfig, ...], ...]:
    """``some`` rows, those together that differ in nothing but the contexts that they start from:
    PCID, where there is no page-table isolation.  In the order of the first of each."""
    found: dict[BareConfig, list[BareConfig]] = {}
    for config in some:
        found.setdefault(config if config.pti else replace(config, pcid=True), []).append(config)
    return tuple(tuple(together) for together in found.values())


def checker_id() -> str:
    """A digest of all code that a result depends on, of the installed package."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for room in _CHECKER:
        for file in sorted(p for p in (package / room).rglob("*") if p.suffix in _SUFFIXES):
            digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def row_id(image: bytes, config: BareConfig, vectors: str, checker: str) -> str:
    """What a row's result is kept under."""
    words = (hashlib.sha256(image).hexdigest(), *config.names(), vectors, checker)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]
