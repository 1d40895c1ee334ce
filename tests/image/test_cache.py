# SPDX-License-Identifier: GPL-2.0-only
"""A target from the cache is the target that was made."""

from __future__ import annotations

from pathlib import Path

from atomicist.image import bare
from atomicist.image.bare import BareConfig, build, kernel_source
from atomicist.isa.delivery import deliver
from atomicist.native.build import cache_dir


def test_what_is_read_back_means_the_same(tmp_path: Path) -> None:
    """Also what microcode is made of: tables are compared by value, not by identity."""
    config = BareConfig()
    image = tmp_path / "image.elf"
    image.write_bytes(build(kernel_source(), config, cache_dir()).read_bytes())
    made = bare.load(image, config)
    assert [p.name[:7] for p in tmp_path.glob("target-*")] == ["target-"]
    again = bare.load(image, config)
    assert again is not made
    assert again == made
    for name, gate in made.gates.items():
        assert deliver(again.gates[name]) == deliver(gate)


def test_a_damaged_entry_is_made_anew(tmp_path: Path) -> None:
    config = BareConfig()
    image = tmp_path / "image.elf"
    image.write_bytes(build(kernel_source(), config, cache_dir()).read_bytes())
    made = bare.load(image, config)
    (entry,) = tmp_path.glob("target-*")
    entry.write_bytes(entry.read_bytes()[:1000])
    assert bare.load(image, config) == made


def test_another_configuration_is_another_entry(tmp_path: Path) -> None:
    image = tmp_path / "image.elf"
    image.write_bytes(build(kernel_source(), BareConfig(), cache_dir()).read_bytes())
    assert bare.load(image, BareConfig()).user_root_bit
    assert not bare.load(image, BareConfig(pti=False)).user_root_bit
    assert len(list(tmp_path.glob("target-*"))) == 2
