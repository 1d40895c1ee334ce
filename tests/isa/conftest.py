# SPDX-License-Identifier: GPL-2.0-only
"""The instructions of all images: our bare one in every configuration, Debian's kernel's entry paths."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from atomicist.crosscheck.states import decoder
from atomicist.image import bare
from atomicist.image.bare import BareConfig
from atomicist.image.bzimage import extract_vmlinux
from atomicist.image.kernel import Kernel, parse_kernel
from atomicist.image.linux import describe
from tests.debian_kernel import fetched

ROOT = Path(__file__).resolve().parents[2]

LINUX_FEATURES = (
    frozenset({"PTI", "PCID", "FSGSBASE", "SMAP", "CLEAR_CPU_BUF"}),
    frozenset({"KERNEL_IBRS", "SMAP", "FENCE_SWAPGS_USER", "FENCE_SWAPGS_KERNEL"}),
    frozenset({"SRSO", "UNRET", "RETHUNK", "ENTRY_IBPB", "FSGSBASE"}),
    frozenset({"UNRET", "RETHUNK", "PTI"}),
)
"""Between them, every alternative on the entry paths is patched in and left out."""

Code = tuple[int, bytes]


def configurations() -> list[BareConfig]:
    """All configurations of the bare image; PCIDs are used with isolation only."""
    choices = itertools.product(("gcc", "clang"), (True, False), (True, False), (True, False))
    return [BareConfig(*choice) for choice in choices]


def _sweep(path: Path) -> Iterator[Code]:
    """All instructions in sections of code, one behind the other."""
    with path.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if not section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR:
                continue
            data, at = section.data(), 0
            while at < len(data):
                insn = next(decoder().disasm(data[at : at + 15], section["sh_addr"] + at, 1))
                yield insn.address, bytes(insn.bytes)
                at += insn.size


@pytest.fixture(scope="session")
def bare_images(tmp_path_factory: pytest.TempPathFactory) -> dict[BareConfig, Path]:
    cache = tmp_path_factory.mktemp("bare")
    every = configurations()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = pool.map(lambda config: bare.build(bare.kernel_source(), config, cache), every)
        return dict(zip(every, paths, strict=True))


@pytest.fixture(scope="session")
def bare_code(bare_images: dict[BareConfig, Path]) -> dict[bytes, str]:
    """Each instruction of the bare images once, with an image it is from."""
    found: dict[bytes, str] = {}
    for config, path in bare_images.items():
        for _, raw in _sweep(path):
            found.setdefault(raw, " ".join(config.names()))
    return found


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """Debian's kernel."""
    return parse_kernel(extract_vmlinux(fetched().read_bytes()))


@pytest.fixture(scope="session")
def linux_code(kernel: Kernel) -> dict[bytes, str]:
    """Each instruction that Debian's entry paths reach, with the features."""
    found: dict[bytes, str] = {}
    for features in LINUX_FEATURES:
        layout = describe(kernel, features)
        for va, insn in layout.reach.instructions.items():
            found.setdefault(bytes(layout.text.read(va, insn.size)), " ".join(sorted(features)))
    return found
