# SPDX-License-Identifier: GPL-2.0-only
"""What the verbs that boot a kernel share: which kernel, how it is booted, and where its log is kept."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from atomicist.cli.errors import UsageError
from atomicist.guest.boots import BOOTS, ENTRIES
from atomicist.guest.linux import Boot, by_name, named
from atomicist.native.build import cache_dir
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean

IMAGE: Final = Path("arch/x86/boot/bzImage")
EVERY: Final = 10.0
"""Seconds between lines of progress where lines cannot be drawn over."""


def which_kernel(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a kernel, and its entry."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "tree", metavar="TREE", nargs="?", type=Path, help="a source tree in which a kernel was built"
    )
    which.add_argument("--kernel", metavar="IMAGE", type=Path, help="a bzImage (vmlinuz)")
    parser.add_argument(
        "--entry", choices=ENTRIES, action="append", default=[],
        help="ist_entry=, of a kernel that has both entries (as it is)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON")


def arguments(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """Add the options; ``several``: more than one boot can be asked for."""
    which_kernel(parser)
    names = ", ".join(b.name for b in BOOTS)
    parser.add_argument(
        "--boot", metavar="NAME", action="append", default=[],
        help=f"{'a way' if several else 'the way'} to boot: {names}{' (all)' if several else ' (default)'}",
    )  # fmt: skip
    parser.add_argument("--append", metavar="OPTIONS", default="", help="more for the kernel's command line")


def image(args: argparse.Namespace) -> Path:
    """The bzImage that is meant. Raises `UsageError`."""
    if args.kernel is not None:
        if not args.kernel.is_file():
            raise UsageError(f"cannot boot {clean(str(args.kernel))}: there is no such file")
        return Path(args.kernel)
    found = Path(args.tree) / IMAGE
    if not args.tree.is_dir():
        raise UsageError(f"{clean(str(args.tree))} is no directory: give a kernel tree, or --kernel IMAGE")
    if not found.is_file():
        raise UsageError(
            f"no kernel in {clean(str(args.tree))} ({IMAGE}): atomicist linux build {clean(str(args.tree))}"
        )
    return found


def boots(args: argparse.Namespace, default: Sequence[str] = ()) -> list[Boot]:
    """The boots asked for, for each of the entries. Raises `GuestError` for an unknown name."""
    chosen = by_name(BOOTS, args.boot or default)
    if args.append:
        chosen = [
            Boot(f"{b.name} {args.append}", f"{b.options} {args.append}".strip(), b.cpu, b.cpus)
            for b in chosen
        ]
    return [named(b, entry) for b in chosen for entry in (args.entry or [""])]


def log(boot: Boot, purpose: str) -> Path:
    """Where the console of ``boot`` is kept: runs for different purposes do not share one."""
    name = re.sub(r"[^\w=.-]+", "-", f"{purpose} {boot.name}")
    return cache_dir() / "guest-logs" / f"{name}.log"


class Progress:
    """One line that is drawn over, or one now and then."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._last = time.monotonic()

    def __call__(self, text: str, *, now: bool = False) -> None:
        """Say ``text``, if it is time to."""
        moment = time.monotonic()
        if not now and moment - self._last < (0.2 if self.terminal.live else EVERY):
            return
        self._last = moment
        if self.terminal.live:
            width = self.terminal.width - 1
            self.terminal.print(f"  {text}"[:width].ljust(width), end="\r")
        else:
            self.terminal.say(f"  {text}")

    def clear(self) -> None:
        """Take the line away that was drawn over."""
        if self.terminal.live:
            self.terminal.print(" " * (self.terminal.width - 1), end="\r")
