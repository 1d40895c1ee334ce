# SPDX-License-Identifier: GPL-2.0-only
"""Instructions are counted below the label that they follow."""

from pathlib import Path as FilePath

import pytest

from atomicist.cli.main import main
from atomicist.guest.cost import HANDLER, Path, by_stage, markdown


def test_stages_follow_each_other_and_padding_does_not_count() -> None:
    labels = ["asm_exc_nmi", "asm_exc_nmi", "copy", HANDLER, "asm_exc_nmi", "asm_exc_nmi"]
    padded = [False, True, False, False, False, False]
    found = by_stage(labels, padded)
    assert found == (("asm_exc_nmi", 1), ("copy", 1), (HANDLER, 0), ("asm_exc_nmi", 2))
    path = Path("NMI", "user", 3, 2, 1, found)
    assert path.total == sum(count for _, count in found)
    (row,) = [line for line in markdown([("legacy", path)]).splitlines() if line.startswith("| legacy")]
    assert row == "| legacy | NMI | user mode | 4 | `asm_exc_nmi` 1, `copy` 1, (handler), `asm_exc_nmi` 2 |"


def test_where_nothing_can_be_written_nothing_is_booted(
    tmp_path: FilePath, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["linux", "cost", "--kernel", __file__, "--markdown", f"{tmp_path}/no/such"]) == 2
    assert "cannot write" in capsys.readouterr().err
