# SPDX-License-Identifier: GPL-2.0-only
"""A client of QEMU's gdbstub: GDB's remote serial protocol, the part that is needed to
look at a processor and to step it (GDB manual, appendix E).

Which registers there are, in which order and how wide, is read from the stub's own target
description, so that nothing depends on the version of QEMU.

``step`` lets one instruction execute, or one event be delivered: with Qqemu.sstep = ENABLE |
NOTIMER interrupts are taken in single steps, and the virtual clock stands still.  An event that is
pending is delivered first, and the step ends at the handler's first instruction.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from atomicist.guest.errors import GuestError, GuestTimeout
from atomicist.guest.sockets import Reader, connect, send

LIMIT: Final = 30.0
SSTEP_ENABLE: Final = 1
SSTEP_NOIRQ: Final = 2
SSTEP_NOTIMER: Final = 4
"""Bits of Qqemu.sstep (QEMU manual, "GDB usage")."""

CHUNK: Final = 1024
"""Bytes of memory in one packet; the stub's own limit is 2 KiB."""

_WHAT: Final = "QEMU's gdbstub"
_NAMES: Final = {"eflags": "RFLAGS", "k_gs_base": "KERNEL_GSBASE", "fs_base": "FSBASE", "gs_base": "GSBASE"}
_ESCAPE: Final = 0x7D


@dataclass(frozen=True, slots=True)
class Field:
    """Where register ``name`` lies in the stub's answer to ``g``: bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the guest stopped: ``signal`` is GDB's number (5: step or breakpoint), ``thread`` the
    CPU, counted from 1."""

    signal: int
    thread: int


class Rsp:
    """A connection to the gdbstub at ``path``; the guest is stopped by it.

    Every method raises `GuestTimeout` and `GuestGone`, and `GuestError` if the stub refuses."""

    def __init__(self, path: Path, limit: float = LIMIT) -> None:
        self.limit = limit
        self._connection = connect(path, limit)
        self._reader = Reader(self._connection, _WHAT)
        self._breakpoints: set[int] = set()
        self._sstep = 0
        self._acknowledge = True
        answer = self.ask("qSupported:xmlRegisters=i386")
        while answer[:1] == "T":  # that the connection stopped the guest may be said first
            answer = self._receive(time.monotonic() + limit).decode("latin-1")
        if self.ask("QStartNoAckMode") == "OK":
            self._acknowledge = False
        self.fields = self._read_fields()
        self._by_name = {f.name: f for f in self.fields}
        self.single_step(SSTEP_ENABLE | SSTEP_NOTIMER)

    def close(self) -> None:
        """Close the connection. The guest goes on as it is."""
        self._connection.close()

    # --- packets ---

    def ask(self, packet: str, limit: float | None = None) -> str:
        """Send ``packet``; the answer's payload."""
        self._send(packet)
        return self._receive(time.monotonic() + (self.limit if limit is None else limit)).decode("latin-1")

    def _send(self, packet: str) -> None:
        body = packet.encode("latin-1")
        framed = b"$%b#%02x" % (body, sum(body) & 0xFF)
        send(self._connection, framed, _WHAT, self.limit)

    def _receive(self, deadline: float) -> bytes:
        buffer = self._reader.buffer
        while True:
            start = buffer.find(b"$")
            end = buffer.find(b"#", start) if start >= 0 else -1
            if end >= 0 and len(buffer) >= end + 3:
                break
            self._reader.fill(deadline)
        body, check = bytes(buffer[start + 1 : end]), bytes(buffer[end + 1 : end + 3])
        del buffer[: end + 3]
        if check != b"%02x" % (sum(body) & 0xFF):
            raise GuestError("a packet of QEMU's gdbstub has a wrong checksum")
        if self._acknowledge:
            send(self._connection, b"+", _WHAT, self.limit)
        return _plain(body)

    def _do(self, packet: str) -> None:
        answer = self.ask(packet)
        if answer != "OK":
            raise GuestError(f"QEMU's gdbstub refuses '{packet}': {answer or 'it does not know it'}")

    # --- registers ---

    def _read_fields(self) -> tuple[Field, ...]:
        names = ["target.xml"]
        found: list[Field] = []
        at = 0
        for name in names:
            # The prefix of xi:include is not declared in there.
            text = self._document(name).replace("<xi:", "<")
            try:
                root = ET.fromstring(text)  # noqa: S314 - our own QEMU's
            except ET.ParseError as e:
                raise GuestError(f"QEMU's gdbstub describes its registers in bad XML: {e}") from e
            for element in root.iter():
                tag = element.tag.rpartition("}")[2]
                if tag == "include":
                    names.append(element.get("href", ""))
                elif tag == "reg":
                    size = int(element.get("bitsize", "0")) // 8
                    label = element.get("name", "")
                    found.append(Field(_NAMES.get(label, label.upper()), at, size))
                    at += size
        if not {"RIP", "RSP", "RFLAGS", "CS", "SS"} <= {f.name for f in found}:
            raise GuestError("QEMU's gdbstub does not describe an x86-64 processor")
        return tuple(found)

    def _document(self, name: str) -> str:
        text = ""
        while True:
            answer = self.ask(f"qXfer:features:read:{name}:{len(text):x},7f0")
            if answer[:1] not in ("l", "m"):
                raise GuestError(f"QEMU's gdbstub has no register description {name}")
            text += answer[1:]
            if answer[0] == "l":
                return text

    def registers(self) -> dict[str, int]:
        """All registers of the selected CPU by the manuals' names."""
        raw = self.ask("g")
        try:
            data = bytes.fromhex(raw)
        except ValueError as e:
            raise GuestError("QEMU's gdbstub does not say the registers") from e
        return {
            f.name: int.from_bytes(data[f.offset : f.offset + f.size], "little")
            for f in self.fields
            if f.offset + f.size <= len(data)
        }

    def __getitem__(self, name: str) -> int:
        """One register. KeyError if the stub has none of that name."""
        field = self._by_name[name]
        return int.from_bytes(bytes.fromhex(self.ask(f"p{self.fields.index(field):x}")), "little")

    def set(self, **values: int) -> None:
        """Write registers, each by name. KeyError for a name that the stub does not have."""
        for name, value in values.items():
            field = self._by_name[name]
            raw = value.to_bytes(field.size, "little").hex()
            self._do(f"P{self.fields.index(field):x}={raw}")

    def thread(self, number: int) -> None:
        """Select CPU ``number``, counted from 1, for registers and memory."""
        self._do(f"Hg{number:x}")

    # --- memory ---

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at the linear ``address``, through the page tables in force."""
        data = b""
        while len(data) < size:
            at, length = address + len(data), min(CHUNK, size - len(data))
            answer = self.ask(f"m{at:x},{length:x}")
            try:
                part = bytes.fromhex(answer)
            except ValueError as e:
                raise GuestError(f"the guest has no memory at {at:#x}") from e
            if len(part) != length:
                raise GuestError(f"the guest has no memory at {at:#x}")
            data += part
        return data

    def words(self, address: int, count: int) -> list[int]:
        """``count`` words of 8 bytes from ``address``."""
        raw = self.read(address, 8 * count)
        return [int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(count)]

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` at the linear ``address``, read-only pages included."""
        for at in range(0, len(data), CHUNK):
            part = data[at : at + CHUNK]
            self._do(f"M{address + at:x},{len(part):x}:{part.hex()}")

    # --- running ---

    def single_step(self, how: int) -> None:
        """Choose what a single step lets in: SSTEP_ENABLE with SSTEP_NOIRQ, SSTEP_NOTIMER."""
        if how != self._sstep:
            self._do(f"Qqemu.sstep={how:x}")
            self._sstep = how

    def step(self, limit: float | None = None) -> Stop:
        """One instruction, or one delivery, of the selected CPU."""
        return self._stopped(self.ask("s", limit))

    def resume(self, limit: float | None = None) -> Stop:
        """Run until a breakpoint. Raises `GuestTimeout` after ``limit`` seconds; the guest
        is stopped then too."""
        self._send("c")
        deadline = time.monotonic() + (self.limit if limit is None else limit)
        try:
            return self._stopped(self._receive(deadline).decode("latin-1"))
        except GuestTimeout:
            self.interrupt()
            raise

    def go(self) -> None:
        """Let the guest run, and do not wait: `interrupt` stops it."""
        self._send("c")

    def interrupt(self) -> Stop:
        """Stop the running guest."""
        send(self._connection, b"\x03", _WHAT, self.limit)
        return self._stopped(self._receive(time.monotonic() + self.limit).decode("latin-1"))

    @staticmethod
    def _stopped(answer: str) -> Stop:
        if answer[:1] in ("S", "T"):
            number = 1
            for part in answer[3:].split(";"):
                key, _, value = part.partition(":")
                if key == "thread":
                    number = int(value.rpartition(".")[2].lstrip("p") or "1", 16)
            return Stop(int(answer[1:3], 16), number)
        if answer[:1] in ("W", "X"):
            raise GuestError("the guest ended")
        raise GuestError(f"QEMU's gdbstub answers '{answer[:40]}' to a step")

    def breakpoint(self, address: int) -> None:
        """Stop before the instruction at ``address`` executes."""
        if address not in self._breakpoints:
            self._do(f"Z1,{address:x},1")
            self._breakpoints.add(address)

    def remove(self, address: int) -> None:
        """Take the breakpoint at ``address`` away."""
        if address in self._breakpoints:
            self._do(f"z1,{address:x},1")
            self._breakpoints.discard(address)

    def only(self, addresses: Collection[int]) -> None:
        """Breakpoints at ``addresses`` and nowhere else."""
        for address in self._breakpoints - set(addresses):
            self.remove(address)
        for address in set(addresses) - self._breakpoints:
            self.breakpoint(address)


def _plain(body: bytes) -> bytes:
    """``body`` without escapes (0x7d: next byte xor 0x20). Run lengths QEMU does not send."""
    if _ESCAPE not in body:
        return body
    result, at = bytearray(), 0
    while at < len(body):
        if body[at] == _ESCAPE and at + 1 < len(body):
            at += 1
            result.append(body[at] ^ 0x20)
        else:
            result.append(body[at])
        at += 1
    return bytes(result)
