# SPDX-License-Identifier: GPL-2.0-only
"""A QEMU process: how it is started, how it ends, and what it leaves behind.

Emulation only (TCG), so that any machine will do and every instruction can be stopped at.
The process dies with the thread that started it, every wait has a limit, and whether the guest was
content comes out by a device (isa-debug-exit), never by reading its console.

=======  =====================================================================
console  the first serial port, kept in a file: for people, after a failure
port     the second serial port, a socket: lines between the guest's init and us
monitor  QMP; gdb: the gdbstub; both sockets in a directory of our own
=======  =====================================================================
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeVar

from atomicist.guest.errors import GuestError, GuestGone, GuestTimeout
from atomicist.guest.qmp import Qmp
from atomicist.guest.rsp import Rsp
from atomicist.guest.sockets import Reader, connect, send

QEMU: Final = "qemu-system-x86_64"
PACKAGES: Final = "apt-get install -y --no-install-recommends qemu-system-x86 qemu-utils"

EXIT_PORT: Final = 0xF4
"""I/O port of isa-debug-exit; QEMU's status is twice the value written there, plus one."""

CPU: Final = "Skylake-Server-v1"
"""An Intel model: HMP's ``mce`` and MCG_STATUS behave as on a machine with banks of them."""

START_LIMIT: Final = 30.0
SNAPSHOT_LIMIT: Final = 60.0
LOG_TAIL: Final = 400

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What QEMU is to emulate: ``kernel`` is a bzImage or an ELF with a PVH or multiboot entry,
    ``append`` its command line, ``memory`` in MiB; ``paused``: it waits for the gdbstub's
    first command; ``snapshots``: there is a disk to keep them on."""

    kernel: Path
    initrd: Path | None = None
    append: str = ""
    cpu: str = CPU
    cpus: int = 1
    memory: int = 256
    paused: bool = False
    snapshots: bool = False
    extra: tuple[str, ...] = ()


def program(name: str) -> str:
    """The path of QEMU's program ``name``. Raises `GuestError` if it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise GuestError(f"{name} is not installed: as root, {PACKAGES}")
    return found


@dataclass(slots=True)
class Vm:
    """A running guest; use it as a context manager, which ends it.

    ``log`` is the console's file, kept when the guest is gone."""

    hardware: Hardware
    log: Path
    _directory: Path = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)
    _errors: Path = field(init=False)
    _qmp: Qmp | None = field(default=None, init=False)
    _rsp: Rsp | None = field(default=None, init=False)
    _port: Port | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="atomicist-"))
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _start(self) -> None:
        for what in (self.hardware.kernel, self.hardware.initrd):
            if what is not None and not what.is_file():
                raise GuestError(f"cannot boot {what}: there is no such file")
        command = self._command()
        self._errors = self._directory / "stderr"
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
                )
        except OSError as e:
            raise GuestError(f"cannot start {QEMU}: {e.strerror}") from e

    def _command(self) -> list[str]:
        h, place = self.hardware, self._directory
        command = [
            # util-linux: the guest must not outlive whoever looks after it
            program("setpriv"), "--pdeathsig", "KILL", program(QEMU),
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-accel", "tcg",
            "-machine", "pc", "-cpu", h.cpu, "-smp", str(h.cpus), "-m", str(h.memory),
            "-kernel", str(h.kernel),
            "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4",
            "-chardev", f"file,id=console,path={self.log}", "-serial", "chardev:console",
            "-chardev", f"socket,id=port,path={place}/port,server=on,wait=off", "-serial", "chardev:port",
            "-qmp", f"unix:{place}/qmp,server=on,wait=off",
            "-chardev", f"socket,id=gdb,path={place}/gdb,server=on,wait=off", "-gdb", "chardev:gdb",
            *h.extra,
        ]  # fmt: skip
        if h.initrd is not None:
            command += ["-initrd", str(h.initrd)]
        if h.append:
            command += ["-append", h.append]
        if h.paused:
            command.append("-S")
        if h.snapshots:
            disk = place / "snapshots.qcow2"
            made = subprocess.run(
                [program("qemu-img"), "create", "-q", "-f", "qcow2", str(disk), "4G"],
                capture_output=True, check=False,
            )  # fmt: skip
            if made.returncode:
                words = made.stderr.decode(errors="replace").strip()
                raise GuestError(f"qemu-img cannot make a disk for snapshots: {words}")
            command += ["-drive", f"if=none,id=snapshots,format=qcow2,cache=unsafe,file={disk}"]
        return command

    # --- the three connections, made when they are first used ---

    @property
    def qmp(self) -> Qmp:
        """The monitor."""
        if self._qmp is None:
            self._qmp = self._watched(lambda: Qmp(self._directory / "qmp", START_LIMIT))
        return self._qmp

    @property
    def rsp(self) -> Rsp:
        """The gdbstub; making the connection stops the guest."""
        if self._rsp is None:
            self._rsp = self._watched(lambda: Rsp(self._directory / "gdb", START_LIMIT))
        return self._rsp

    @property
    def port(self) -> Port:
        """The second serial port."""
        if self._port is None:
            self._port = self._watched(lambda: Port(self._directory / "port", START_LIMIT))
        return self._port

    def _watched(self, make: Callable[[], C]) -> C:
        """``make``'s connection; if that fails because QEMU is gone, say why it is."""
        try:
            return make()
        except GuestError as e:
            if self.running():
                raise
            raise GuestGone(self.obituary()) from e

    # --- events ---

    def inject_nmi(self) -> None:
        """An NMI for every CPU whose LINT1 takes NMIs."""
        self.qmp.execute("inject-nmi")

    def inject_mce(self, cpu: int = 0, *, broadcast: bool = False, local: bool = False) -> None:
        """A machine check that a kernel survives, "action optional": valid, uncorrected, enabled, address
        and misc valid, signalled, found by a scrubber (SDM vol. 3, 15.3.2.2); restart IP valid (15.3.1.2).
        ``broadcast``: every CPU gets it. ``local``: only this one, and Linux waits for no other."""
        status = MCIP | RIPV | (LMCE_S if local else 0)
        self.qmp.human(f"mce {'-b ' if broadcast else ''}{cpu} {MCE_BANK} {status:#x} {MCE_ADDRESS}")

    def save(self, name: str) -> None:
        """Keep the state of the stopped guest as ``name``. Raises `GuestError`."""
        self._said(self.qmp.human(f"savevm {name}", SNAPSHOT_LIMIT), f"cannot save {name}")

    def load(self, name: str) -> None:
        """Go back to ``name``. Raises `GuestError`."""
        self._said(self.qmp.human(f"loadvm {name}", SNAPSHOT_LIMIT), f"cannot load {name}")

    @staticmethod
    def _said(words: str, what: str) -> None:
        if words.strip():
            raise GuestError(f"{what}: {words.strip()}")

    # --- the end ---

    def wait(self, limit: float) -> int:
        """The value that the guest wrote to isa-debug-exit.

        Raises `GuestTimeout` after ``limit`` seconds, and `GuestGone` if QEMU ended otherwise, for
        example because the guest wanted to restart."""
        try:
            status = self._process.wait(limit)
        except subprocess.TimeoutExpired as e:
            raise GuestTimeout(f"the guest does not end within {limit:g} s; its log: {self.log}") from e
        if status < 0 or not status & 1:
            raise GuestGone(self.obituary())
        return status >> 1

    def running(self) -> bool:
        """Whether QEMU is there."""
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """What the machine has worked for QEMU until now, in seconds. Raises `GuestGone`."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
        except OSError:
            raise GuestGone(self.obituary()) from None
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def obituary(self) -> str:
        """What is to be said of a QEMU that ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        status = self._process.poll()
        said = self._errors.read_text(errors="replace").splitlines() if self._errors.exists() else []
        words = " ".join(line.strip() for line in said if "TCG doesn't support" not in line)[-LOG_TAIL:]
        if status == 0 and not words:
            return f"the guest reset or switched off; its log: {self.log}"
        how = (
            f"by {signal.Signals(-status).name}"
            if status is not None and status < 0
            else f"with status {status}"
        )
        return f"QEMU ended {how}{': ' + words if words else ''}; the guest's log: {self.log}"

    def end(self) -> None:
        """End the guest and take away all but its log."""
        for connection in (self._qmp, self._rsp, self._port):
            if connection is not None:
                connection.close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


MCE_BANK: Final = "1 0xbd000000000000c0"
MCE_ADDRESS: Final = "0x1000 0x8c"
"""HMP ``mce``: bank, status; then mcg_status; address, misc."""
RIPV: Final = 1
MCIP: Final = 4
LMCE_S: Final = 8
"""Bits of IA32_MCG_STATUS (SDM vol. 3, 15.3.1.2)."""


class Port:
    """Lines to and from the guest's second serial port."""

    def __init__(self, path: Path, limit: float) -> None:
        self._connection = connect(path, limit)
        self._reader = Reader(self._connection, "the guest's init")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def line(self, limit: float) -> str:
        """The next line. Raises `GuestTimeout` after ``limit`` seconds, `GuestGone`."""
        deadline = time.monotonic() + limit
        buffer = self._reader.buffer
        while b"\n" not in buffer:
            self._reader.fill(deadline)
        line, _, rest = bytes(buffer).partition(b"\n")
        buffer[:] = rest
        return line.decode(errors="replace").rstrip("\r")

    def send(self, line: str, limit: float = 10.0) -> None:
        """Send one line. Raises `GuestTimeout`, `GuestGone`."""
        send(self._connection, line.encode() + b"\n", "the guest's init", limit)
