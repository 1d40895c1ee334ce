# SPDX-License-Identifier: GPL-2.0-only
from collections.abc import Iterator

import pytest

from atomicist.guest.qemu import Vm
from tests.guest import bare


@pytest.fixture(scope="session")
def vm() -> Iterator[Vm]:
    made = bare.start()
    yield made
    made.end()


@pytest.fixture
def guest(vm: Vm) -> bare.Bare:
    return bare.Bare(vm)
