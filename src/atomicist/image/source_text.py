# SPDX-License-Identifier: GPL-2.0-only
"""The text of a source line of an entry that is built here: ours, or a specimen's.

Only the files of that entry are known, whatever an image's debug information names: a
stranger's image does not choose which files end up in a report.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from atomicist.image import bare, specimens
from atomicist.image.specimens import Specimen

_SUFFIXES: Final = {".c", ".h", ".S"}


class SourceText:
    """Callable: the text of a line given as file:line, as in kernel/atomic_ist.c:100; empty
    where it is not known.  Nothing is read before the first question."""

    def __init__(self, specimen: Specimen | None = None) -> None:
        self._specimen = specimen
        self._files: Mapping[str, tuple[str, ...]] | None = None

    def __call__(self, place: str) -> str:
        """The line at ``place``. Raises `ImageError` if a specimen cannot be made."""
        if self._files is None:
            self._files = self._read()
        file, _, number = place.rpartition(":")
        lines = self._files.get(file, ())
        return lines[int(number) - 1] if number.isdecimal() and 0 < int(number) <= len(lines) else ""

    def _read(self) -> Mapping[str, tuple[str, ...]]:
        if self._specimen is None:
            return _tree(bare.kernel_source())
        with tempfile.TemporaryDirectory() as work:
            return _tree(specimens.materialise(self._specimen, Path(work)))


def _tree(directory: Path) -> Mapping[str, tuple[str, ...]]:
    return {
        str(path.relative_to(directory.parent)): tuple(path.read_text("utf-8", "replace").splitlines())
        for path in sorted(directory.rglob("*"))
        if path.suffix in _SUFFIXES and path.is_file()
    }
