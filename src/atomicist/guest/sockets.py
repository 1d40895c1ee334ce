# SPDX-License-Identifier: GPL-2.0-only
"""Connections to QEMU: UNIX sockets on which every wait has a limit."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Final

from atomicist.guest.errors import GuestGone, GuestTimeout

CHUNK: Final = 1 << 16


def connect(path: Path, limit: float) -> socket.socket:
    """A connection to the UNIX socket ``path``, tried again until ``limit`` seconds are over.

    Raises `GuestTimeout` if nobody listens there by then."""
    end = time.monotonic() + limit
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(str(path))
        except OSError as e:
            made.close()
            if time.monotonic() > end:
                raise GuestTimeout(f"QEMU does not open {path.name} within {limit:g} s: {e.strerror}") from e
            time.sleep(0.01)
        else:
            return made


class Reader:
    """Bytes as they arrive; ``fill`` waits for more until the ``deadline`` (time.monotonic)."""

    def __init__(self, connection: socket.socket, what: str) -> None:
        self.buffer = bytearray()
        self._connection = connection
        self._what = what

    def fill(self, deadline: float) -> None:
        """Wait for at least one byte. Raises `GuestTimeout`, `GuestGone`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise GuestTimeout(f"no answer from {self._what} within the limit")
        self._connection.settimeout(left)
        try:
            data = self._connection.recv(CHUNK)
        except TimeoutError as e:
            raise GuestTimeout(f"no answer from {self._what} within the limit") from e
        except OSError as e:
            raise GuestGone(f"{self._what} closed the connection: {e.strerror}") from e
        if not data:
            raise GuestGone(f"{self._what} closed the connection")
        self.buffer += data


def send(connection: socket.socket, data: bytes, what: str, limit: float) -> None:
    """Send all of ``data`` within ``limit`` seconds. Raises `GuestTimeout`, `GuestGone`."""
    connection.settimeout(limit)
    try:
        connection.sendall(data)
    except TimeoutError as e:
        raise GuestTimeout(f"{what} takes no more input within {limit:g} s") from e
    except OSError as e:
        raise GuestGone(f"{what} closed the connection: {e.strerror}") from e
