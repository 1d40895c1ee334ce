# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``compare``: the variants of the entry, and a kernel's own, in one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atomicist.cli import selection
from atomicist.cli.errors import PASSED, UsageError
from atomicist.cli.main import status_of_interrupt
from atomicist.image import bare, vmlinux
from atomicist.image.bare import RFC_V1, VARIANTS, BareConfig
from atomicist.image.source_lines import SourceLines
from atomicist.isa.predictions import MITIGATIONS
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.report.compare import compare_json, markdown, table
from atomicist.report.files import OutputFile
from atomicist.report.progress import Display
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean
from atomicist.search.measure import Figures, cheap
from atomicist.search.verify import verify
from atomicist.spec.events import EVENTS

FEATURES = {
    "none": (), "ibrs": ("KERNEL_IBRS", "MSR_SPEC_CTRL"), "unret": ("RETHUNK", "UNRET"),
    "ibpb": ("ENTRY_IBPB", "USE_IBPB"),
}  # fmt: skip
"""What Linux sets on a CPU that needs each (cpu/bugs.c, retbleed_select_mitigation)."""

KERNEL_VECTORS = ("NMI", "MC")
"""Events that a kernel is enumerated with, as in `make verify`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    known = (*VARIANTS, RFC_V1)
    parser.add_argument("variant", metavar="VARIANT", nargs="*", help=f"{', '.join(known)} (all)")
    parser.add_argument(
        "--kernel", metavar="FILE", action="append", default=[], help="a vmlinuz or vmlinux, too"
    )
    parser.add_argument(
        "--mitigation",
        choices=MITIGATIONS,
        default="unret",
        help="what the CPU needs before a return (unret)",
    )
    parser.add_argument("--cc", choices=("gcc", "clang"), default="gcc", help="compiler (gcc)")
    parser.add_argument(
        "--quick", action="store_true", help="only what needs no search: paths, sizes, lines; - for the rest"
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=0, help="processes (one a core, at most 2)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", metavar="FILE", nargs="?", const="-", help="as JSON (-: standard output)")
    how.add_argument(
        "--markdown", metavar="FILE", nargs="?", const="-", help="as Markdown (-: standard output)"
    )


def run(args: argparse.Namespace) -> int:
    """Compare; the exit status."""
    known = (*VARIANTS, RFC_V1)
    for name in args.variant:
        if name not in known:
            raise UsageError(f"there is no variant '{clean(name[:30])}': they are {', '.join(known)}")
    if not 0 <= args.workers <= 64:
        raise UsageError(f"--workers {args.workers} is not a number from 0 to 64")
    form = "json" if args.json is not None else "markdown" if args.markdown is not None else ""
    name = args.json if form == "json" else args.markdown
    file = OutputFile(name) if form and name != "-" else None
    kernels = [_kernel(k, args.mitigation) for k in args.kernel]
    figures: list[Figures] = []
    interrupted = False
    for target, row in (*_entries(args), *kernels):
        seen, interrupted = (row, False) if args.quick else _verified(target, row, args.workers)
        figures.append(seen)
        if interrupted:
            break
    text = {"json": compare_json, "markdown": markdown}.get(form, lambda _: "")(figures)
    terminal = Terminal(sys.stdout)
    if file is not None:
        file.write(text)
    elif form:
        terminal.data(text)
    else:
        terminal.print(table(figures))
        terminal.say()
        terminal.say(f"next: {selection.command('verify', '--mitigation', args.mitigation)}")
    return status_of_interrupt() if interrupted else PASSED


def _entries(args: argparse.Namespace) -> Iterator[tuple[Target, Figures]]:
    names = tuple(dict.fromkeys(args.variant)) or (*VARIANTS, RFC_V1)
    for name in names:
        config = BareConfig(args.cc, mitigation=args.mitigation, variant=name)
        path = bare.build(bare.kernel_source(), config, cache_dir())
        target = bare.load(path, config)
        yield target, cheap(target, name, SourceLines(path))


def _kernel(file: str, mitigation: str) -> tuple[Target, Figures]:
    try:
        path = Path(file)
        if not path.is_file():
            why = "it is no regular file" if path.exists() else "there is no such file"
            raise UsageError(f"cannot read {clean(file)}: {why}")
    except ValueError as e:
        raise UsageError(f"cannot read {clean(file)}: {e}") from e
    target = vmlinux.load(path, vmlinux.DEFAULT_FEATURES | frozenset(FEATURES[mitigation]))
    return target, cheap(target, target.name, SourceLines(None))


def _verified(target: Target, row: Figures, workers: int) -> tuple[Figures, bool]:
    vectors = tuple(
        i for i, v in enumerate(EVENTS) if v in target.gates and (target.claims or v in KERNEL_VECTORS)
    )
    screen = Terminal(sys.stderr)
    screen.say(f"{clean(row.name)}:")
    with Display(screen) as display:
        result, _ = verify(target, vectors=vectors, workers=workers, listener=display)
    return replace(row, verified=result), result.interrupted
