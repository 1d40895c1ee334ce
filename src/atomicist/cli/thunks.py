# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``thunks``: point the return of a C function that is entered by JMP at its label."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from atomicist.cli import selection
from atomicist.cli.errors import FINDINGS, PASSED, UsageError
from atomicist.image.errors import ImageError
from atomicist.image.thunks import SUFFIX, THUNK, Site, find_sites, rewrite, sites_source
from atomicist.report.files import OutputFile
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean, name

FORMAT = 1
MAX_SIZE = 256 << 20
"""Bytes; object files of a kernel have a hundredth of that."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        f"In an object file, turn the only jmp {THUNK} of each function F that has a label F{SUFFIX} into a "
        f"jump to that label. The file is replaced as a whole, or left as it is. Done twice is done once."
    )
    parser.add_argument("file", metavar="FILE.o", help="an x86-64 object, before objtool and ld")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--check", action="store_true", help="change nothing; status 1 if there is something to do"
    )
    how.add_argument(
        "--sites", metavar="OUT.S", help="change nothing; write the list for the rewrite at boot"
    )
    parser.add_argument("--json", action="store_true", help="what was found and done, as JSON")


def run(args: argparse.Namespace) -> int:
    """Rewrite; the exit status."""
    data = _read(args.file)
    try:
        sites = find_sites(data)
        if args.sites is not None:
            OutputFile(args.sites).write(sites_source(data))
        elif not args.check and not all(s.done for s in sites):
            OutputFile(args.file).write_bytes(rewrite(data))
    except ImageError as e:
        raise ImageError(f"{clean(args.file)}: {e}") from None
    terminal = Terminal(sys.stdout)
    looked = args.check or args.sites is not None
    if args.json:
        document = {
            "format": FORMAT,
            "file": args.file,
            "functions": [_object(s, looked=looked) for s in sites],
        }
        terminal.data(json.dumps(document, indent=2) + "\n")
    else:
        for site in sites:
            also = f"; also left to {', '.join(name(n) for n in site.also_left)}" if site.also_left else ""
            terminal.say(
                f"{name(site.function)}+{site.offset:#x}: "
                f"{_state(site, looked=looked)} {name(site.label)}{also}"
            )
        if args.check and not all(s.done for s in sites):
            terminal.say(f"next: {selection.command('thunks', args.file)}")
    return FINDINGS if args.check and not all(s.done for s in sites) else PASSED


def _state(site: Site, *, looked: bool) -> str:
    return "already jumps to" if site.done else "is to jump to" if looked else "now jumps to"


def _object(site: Site, *, looked: bool) -> dict[str, object]:
    return {
        "function": site.function,
        "offset": site.offset,
        "label": site.label,
        "state": "already" if site.done else "to do" if looked else "rewritten",
        "also_left": list(site.also_left),
    }


def _read(text: str) -> bytes:
    path = Path(text)
    try:
        if not path.is_file():
            raise UsageError(f"{clean(text)} is no regular file: give an object file (.o)")
        if path.stat().st_size > MAX_SIZE:
            raise UsageError(f"{clean(text)} is larger than {MAX_SIZE >> 20} MB: not an object file")
        return path.read_bytes()
    except (OSError, ValueError) as e:
        why = (e.strerror or str(e)) if isinstance(e, OSError) else str(e)
        raise UsageError(f"cannot read {clean(text)}: {why}") from e
