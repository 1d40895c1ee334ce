# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's machine protocol (docs/interop/qmp-spec): one JSON object a line.

The few commands that are used here need no more than this; the package ``qemu.qmp`` is
built around an event loop, while all of this room waits for one thing at a time.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

from atomicist.guest.errors import GuestError
from atomicist.guest.sockets import Reader, connect, send

LIMIT: Final = 30.0
"""Seconds that an answer may take, if the caller does not say otherwise."""


class Qmp:
    """A connection on which commands are executed, one after the other.

    Every method raises `GuestTimeout` and `GuestGone`, and `GuestError` with QEMU's own
    words if it refuses the command."""

    def __init__(self, path: Path, limit: float = LIMIT) -> None:
        self._limit = limit
        self._connection = connect(path, limit)
        self._reader = Reader(self._connection, "QEMU's monitor")
        self.events: list[dict[str, Any]] = []
        """Asynchronous events in order of arrival."""
        self._next(time.monotonic() + limit)  # greeting
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def execute(self, command: str, limit: float | None = None, **arguments: Any) -> Any:
        """Run ``command``; its return value."""
        wait = self._limit if limit is None else limit
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        send(self._connection, json.dumps(request).encode() + b"\n", "QEMU's monitor", wait)
        deadline = time.monotonic() + wait
        while True:
            answer = self._next(deadline)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise GuestError(f"QEMU refuses {command}: {answer['error'].get('desc', 'no reason given')}")
            elif "return" in answer:
                return answer["return"]

    def human(self, line: str, limit: float | None = None) -> str:
        """Run the human monitor's command ``line``; what it prints."""
        return str(self.execute("human-monitor-command", limit, command_line=line))

    def _next(self, deadline: float) -> dict[str, Any]:
        buffer = self._reader.buffer
        while b"\n" not in buffer:
            self._reader.fill(deadline)
        line, _, rest = bytes(buffer).partition(b"\n")
        buffer[:] = rest
        try:
            answer = json.loads(line)
        except ValueError as e:
            raise GuestError("QEMU's monitor sends what is not JSON") from e
        if not isinstance(answer, dict):
            raise GuestError("QEMU's monitor sends what is no object")
        return answer
