# SPDX-License-Identifier: GPL-2.0-only
"""Registers that a user chooses: all values are covered, and one bad one is found."""

from __future__ import annotations

from atomicist.image import specimens
from atomicist.image.bare import BareConfig
from atomicist.isa.registers import REGISTERS
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.search.certificate import Certifier
from atomicist.search.free import chosen
from atomicist.search.progress import silent
from atomicist.search.workers import Workers, new_engine
from atomicist.spec.contexts import contexts, find, varied
from atomicist.spec.events import EVENTS

RSP = REGISTERS["RSP"].slot
NMI, MC = EVENTS.index("NMI"), EVENTS.index("MC")


def covered(target: Target) -> Certifier:
    """What is left when free registers are covered."""
    certifier = Certifier(target, (NMI, MC), silent)
    with Workers(target, 1, certifier.key_values()) as pool:
        certifier._choose(pool)
    return certifier


def test_names_lead_back(entry: Target) -> None:
    user = next(c for c in contexts(entry) if c.name == "user")
    other = varied(user, {"RSP": 0x1230, "RIP": user.registers[REGISTERS["RIP"].slot]})
    assert other.name == "user+rsp.1230"
    assert find(entry, other.name) == other
    gap = next(c for c in contexts(entry) if c.no_stack and "+0x" in c.name)
    assert find(entry, gap.name) == gap
    again = varied(gap, {"RSP": 8})
    assert find(entry, again.name) == again
    assert find(entry, "user+rsp.x") is None
    assert find(entry, "nobody+rsp.8") is None


def test_cells_are_where_the_outcome_changes(entry: Target) -> None:
    """Our entry tests a user's RSP for nearness to the stacks, and nothing else."""
    some = next(c for c in chosen(entry) if c.base.name == "user")
    with new_engine(entry) as engine:
        result = engine.certify(some.base.registers, NMI, expect_df=False, no_stack=False)
    assert result.cells[0] is not None
    fails = [value for value, holds in result.cells[0] if not holds]
    assert min(fails) == entry.named_region("nmi_stack").bottom
    assert max(fails) < entry.named_region("atomic_ist_main").top
    assert some.took([result]) == ""
    assert some.uncovered() is not None


def test_every_value_is_covered(entry: Target) -> None:
    certifier = covered(entry)
    assert certifier.findings == []
    assert certifier.open_because == ""


def test_one_bad_value_is_found() -> None:
    specimen = specimens.find("x-one-user-rsp")
    target = specimens.load(specimen, BareConfig(), cache_dir())
    found = covered(target).findings
    assert {f"IST{raw.finding.property:03d}" for raw in found} == {specimen.property}
    wanted = target.named_region("nmi_stack").top - 0x20
    assert {raw.context.registers[RSP] for raw in found} == {wanted}
