# SPDX-License-Identifier: GPL-2.0-only
"""Writes a report into a file: wholly or not at all, and tried before the long run."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from atomicist.report.text import clean

_TRIES: Final = 100


class OutputError(Exception):
    """A file cannot be written; the message says which, why, and what to do."""


class OutputFile:
    """A file to be written later.  Made where it can be: raises `OutputError` if not.

    The text goes into a new file beside it that takes its name when it is complete, so a
    reader finds the old or the new one.  A device or a pipe is written to directly."""

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            if not name:
                raise ValueError("it has no name")
            self._path = Path(os.path.realpath(name))
            self._direct = self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode)
            if self._path.is_dir():
                raise IsADirectoryError(21, "is a directory")
            if self._direct:
                if not os.access(self._path, os.W_OK):
                    raise PermissionError(13, "no permission")
            else:
                if self._path.exists() and not os.access(self._path, os.W_OK):
                    raise PermissionError(13, "no permission")
                handle, place = self._new()
                os.close(handle)
                place.unlink()
        except (OSError, ValueError) as e:
            raise self._error(e) from e

    def _error(self, error: OSError | ValueError) -> OutputError:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return OutputError(f"cannot write {clean(self._name)}: {why}; choose another place")

    def _new(self) -> tuple[int, Path]:
        for number in range(_TRIES):
            place = self._path.with_name(f".{self._path.name[:200]}.{os.getpid()}.{number}")
            with contextlib.suppress(FileExistsError):
                return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), place
        raise FileExistsError(17, "too many files left by interrupted runs")

    def write(self, text: str) -> None:
        """Write all of ``text``. Raises `OutputError`, and then nothing has changed."""
        self.write_bytes(text.encode("utf-8"))

    def write_bytes(self, data: bytes) -> None:
        """Write all of ``data``, keeping the file's mode. Raises as `write` does."""
        try:
            if self._direct:
                self._path.write_bytes(data)
                return
            handle, place = self._new()
            try:
                with os.fdopen(handle, "wb") as file:
                    if self._path.exists():
                        os.fchmod(file.fileno(), stat.S_IMODE(self._path.stat().st_mode))
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                place.replace(self._path)
            except BaseException:
                place.unlink(missing_ok=True)
                raise
        except OSError as e:
            raise self._error(e) from e
