# SPDX-License-Identifier: GPL-2.0-only
"""A Linux kernel booted with our init, which takes commands (payload/init.c)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from atomicist.guest import initramfs, obituary
from atomicist.guest.errors import GuestError, GuestGone, GuestTimeout
from atomicist.guest.qemu import CPU, Hardware, Vm

BOOT_LIMIT: Final = 180.0
"""Seconds until init says that it is ready; 1.5 to 15 on an idle machine, depending on the kernel."""

ANSWER_LIMIT: Final = 60.0

COMMAND_LINE: Final = "console=ttyS0 nokaslr panic=-1 oops=panic rdinit=/init apic_extnmi=all no_timer_check"
"""``nokaslr``: addresses as linked. ``panic=-1``: restart at once, which ends QEMU. ``apic_extnmi=all``:
every CPU takes NMIs. ``no_timer_check``: on a busy machine no tick may come while the kernel waits for ten,
and it panics (Documentation/admin-guide/kernel-parameters.txt)."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A way to boot: ``options`` are added to the command line, ``cpu`` is a CPU model of QEMU's."""

    name: str
    options: str = ""
    cpu: str = CPU
    cpus: int = 1


@dataclass(slots=True)
class Linux:
    """A kernel that has booted to our init; a context manager, which ends it.

    Raises `GuestError` on entry if it does not come up, with what the kernel said of it."""

    kernel: Path
    boot: Boot
    log: Path
    snapshots: bool = False
    limit: float = BOOT_LIMIT
    vm: Vm = field(init=False)
    payload: initramfs.Payload = field(init=False)
    facts: dict[str, Any] = field(init=False)

    def __enter__(self) -> Self:
        self.payload = initramfs.build()
        hardware = Hardware(
            self.kernel, self.payload.archive, f"{COMMAND_LINE} {self.boot.options}".strip(),
            cpu=self.boot.cpu, cpus=self.boot.cpus, snapshots=self.snapshots,
        )  # fmt: skip
        self.vm = Vm(hardware, self.log)
        self.vm.__enter__()
        try:
            self._come_up()
        except BaseException:
            self.vm.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.vm.end()

    def _come_up(self) -> None:
        try:
            greeting = self.vm.port.line(self.limit)
        except GuestTimeout as e:
            last = obituary.last_line(self.log)
            raise GuestTimeout(
                f"{self.kernel.name} does not get to its init within {self.limit:g} s ({self.boot.name}):"
                f" its last words are '{last}'; log: {self.log}"
            ) from e
        except GuestGone as e:
            raise GuestError(self._why(e)) from e
        if greeting != '"ready"':
            raise GuestError(f"the guest's init says '{greeting[:60]}' instead of \"ready\"; log: {self.log}")
        self.facts = self.ask("hello")

    def _why(self, error: GuestGone) -> str:
        death = obituary.read(self.log)
        return f"{self.boot.name}: {death.line(self.log)}" if death else f"{self.boot.name}: {error}"

    def tell(self, command: str) -> None:
        """Send ``command`` and wait for nothing."""
        self.vm.port.send(command)

    def ask(self, command: str, limit: float = ANSWER_LIMIT) -> Any:
        """Send ``command``; init's answer. Raises `GuestError` with the kernel's own words if it died."""
        try:
            self.vm.port.send(command)
            line = self.vm.port.line(limit)
        except GuestGone as e:
            raise GuestError(self._why(e)) from e
        except GuestTimeout as e:
            raise GuestTimeout(
                f"{self.boot.name}: the guest's init does not answer '{command}' within {limit:g} s;"
                f" log: {self.log}"
            ) from e
        try:
            return json.loads(line)
        except ValueError as e:
            raise GuestError(f"the guest's init answers '{command}' with '{line[:60]}'") from e

    def counts(self, name: str) -> list[int]:
        """How often ``name`` (NMI, MCE) was counted in /proc/interrupts, by CPU."""
        return [int(n) for n in self.ask(f"count {name}")]

    def finish(self, limit: float = 30.0) -> None:
        """Let init end the guest; its status must be the one asked for."""
        self.tell(f"exit {PASSED}")
        status = self.vm.wait(limit)
        if status != PASSED:
            raise GuestError(f"{self.boot.name}: the guest ends with {status}, not {PASSED}; log: {self.log}")


PASSED: Final = 0x15
"""What init writes to isa-debug-exit when all is well: a value that no accident makes."""


def named(boot: Boot, entry: str) -> Boot:
    """``boot`` with the boot parameter ist_entry=``entry``, or as it is if that is empty."""
    if not entry:
        return boot
    return replace(
        boot, name=f"{boot.name} {entry}".strip(), options=f"{boot.options} ist_entry={entry}".strip()
    )


def by_name(boots: Sequence[Boot], names: Sequence[str]) -> list[Boot]:
    """Those of ``boots`` that are called ``names``, all if none is. Raises `GuestError`."""
    known = {b.name: b for b in boots}
    for name in names:
        if name not in known:
            raise GuestError(f"there is no boot '{name}': they are {', '.join(known)}")
    return [known[n] for n in names] if names else list(boots)
