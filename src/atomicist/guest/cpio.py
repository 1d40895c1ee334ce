# SPDX-License-Identifier: GPL-2.0-only
"""An initramfs: a cpio archive in the "newc" form (Linux Documentation/driver-api/early-userspace/
buffer-format.rst). Written here, because device nodes then need no privileges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
FILE: Final = 0o100000
DIRECTORY: Final = 0o040000
CHARACTER: Final = 0o020000


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: ``name`` without a leading slash, ``mode`` with the type, ``device`` (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


STANDARD: Final = (
    Entry("dev", DIRECTORY | 0o755),
    Entry("dev/console", CHARACTER | 0o600, device=(5, 1)),
    Entry("dev/null", CHARACTER | 0o666, device=(1, 3)),
    Entry("dev/kmsg", CHARACTER | 0o600, device=(1, 11)),
    Entry("dev/ttyS1", CHARACTER | 0o600, device=(4, 65)),
    Entry("proc", DIRECTORY | 0o755),
    Entry("sys", DIRECTORY | 0o755),
    Entry("tmp", DIRECTORY | 0o1777),
)
"""What any init needs; numbers from Linux Documentation/admin-guide/devices.txt."""


def archive(entries: tuple[Entry, ...]) -> bytes:
    """The archive of ``entries``, the same bytes for the same entries."""
    made = [_entry(number, e) for number, e in enumerate((*entries, Entry(_TRAILER, 0)), start=1)]
    return b"".join(made)


def _entry(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if entry.mode & DIRECTORY == DIRECTORY else 1
    fields = (
        number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0,
    )  # fmt: skip
    head = _MAGIC + b"".join(b"%08X" % f for f in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
