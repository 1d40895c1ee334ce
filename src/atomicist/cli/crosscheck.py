# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``crosscheck``: what instructions mean, in independent opinions."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from atomicist.cli import selection
from atomicist.cli.errors import FINDINGS, NOT_CLOSED, PASSED, UsageError
from atomicist.crosscheck.document import engines, markdown
from atomicist.crosscheck.engines import UNICORN_STATES, import_unicorn
from atomicist.crosscheck.forms import Form, count_encodings, forms
from atomicist.crosscheck.run import FormResult, Kept, Options, crosscheck, key_of, undefined_sections
from atomicist.image import bare, specimens, vmlinux
from atomicist.image.bare import BareConfig
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.report.files import OutputFile
from atomicist.report.terminal import Terminal
from atomicist.report.text import clean, count, duration, wrap
from atomicist.search.matrix import SWITCHES, rows

FEATURES: Final = (
    vmlinux.DEFAULT_FEATURES,
    frozenset({"PTI", "PCID", "FSGSBASE", "SMAP", "CLEAR_CPU_BUF"}),
    frozenset({"KERNEL_IBRS", "SMAP", "FENCE_SWAPGS_USER", "FENCE_SWAPGS_KERNEL"}),
    frozenset({"SRSO", "UNRET", "RETHUNK", "ENTRY_IBPB", "FSGSBASE"}),
    frozenset({"UNRET", "RETHUNK", "PTI"}),
)
"""CPUs; between them every alternative on the entry paths of Linux 6.1 is patched in and left out."""


def _positive(text: str) -> int:
    number = int(text.replace("_", "").replace(",", ""))
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--states", type=_positive, default=10_000, metavar="N", help="of each form (10,000)")
    parser.add_argument(
        "--reference", type=_positive, default=500, metavar="N",
        help="of these, through the reference interpreter too (500)",
    )  # fmt: skip
    parser.add_argument("--host", action="store_true", help="ask this machine's processor too")
    parser.add_argument("--without-unicorn", action="store_true", help="do not ask Unicorn")
    parser.add_argument("--minutes", type=float, default=0, metavar="M", help="stop after this time")
    parser.add_argument("--workers", type=_positive, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--fresh", action="store_true", help="compare again what an earlier run has compared")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="the report as Markdown")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument(
        "--everything", action="store_true",
        help="every variant and configuration of the entry, every specimen; with --kernel, on several CPUs",
    )  # fmt: skip
    selection.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; the exit status: 0 all agree, 1 something differs, 3 not everything was compared."""
    if not args.without_unicorn:
        import_unicorn()
    if args.everything and args.specimen is not None:
        raise UsageError("--everything has all specimens: leave out --specimen")
    terminal = Terminal(sys.stdout)
    text = OutputFile(args.markdown) if args.markdown else None
    some = forms(_everything(args) if args.everything else [selection.select(args).target])
    options = Options(
        states=args.states, reference=min(args.reference, args.states), unicorn=not args.without_unicorn,
        host=args.host, workers=args.workers, seconds=60 * args.minutes,
    )  # fmt: skip
    kept = Kept(cache_dir() / f"crosscheck-{key_of(options)}.json")
    if args.fresh:
        kept.results = {}
    started = time.monotonic()
    quiet = args.quiet or args.json

    def tell(done: int, total: int, mismatches: int) -> None:
        if not quiet:
            words = f"{done}/{total} forms compared, {count(mismatches, 'mismatch', 'mismatches')}"
            errors.say(f"{words}, {duration(time.monotonic() - started)}")

    errors = Terminal(sys.stderr)
    results, complete = crosscheck(some, options, kept, tell)
    seconds = time.monotonic() - started
    if args.json:
        terminal.data(_json(some, results, options, complete, seconds))
    else:
        _show(terminal, some, results, options, complete, seconds)
    if text is not None:
        text.write(markdown(results, options, engines(options), complete=complete))
    if any(r.mismatches for r in results):
        return FINDINGS
    return PASSED if complete else NOT_CLOSED


def entries() -> tuple[BareConfig, ...]:
    """The entry: the usual variant in every configuration, every variant on a processor with everything."""
    everything, usual = SWITCHES[0], BareConfig()
    return tuple(
        config
        for config in rows(("gcc", "clang"))
        if (config.pti, config.pcid, config.fsgsbase) == everything
        or (config.variant, config.mitigation) == (usual.variant, usual.mitigation)
    )


def _everything(args: argparse.Namespace) -> Iterator[Target]:
    """The entry, the specimens, the kernel if there is one."""
    source, cache = bare.kernel_source(), cache_dir()
    for config in entries():
        yield bare.load(bare.build(source, config, cache), config, " ".join(("entry", *config.names())))
    for specimen in specimens.specimens():
        yield specimens.load(specimen, BareConfig(), cache)
    if args.kernel is not None:
        path = Path(args.kernel)
        if not path.is_file():
            raise UsageError(f"cannot read {clean(args.kernel)}: there is no such file")
        for features in FEATURES:
            yield vmlinux.load(path, features)


def _json(
    some: tuple[Form, ...], results: list[FormResult], options: Options, complete: bool, seconds: float
) -> str:
    document = {
        "format": 1,
        "forms": len(some),
        "encodings": count_encodings(some),
        "states_of_each_form": options.states,
        "complete": complete,
        "compared": [asdict(r) for r in results],
        "mismatches": sum(r.mismatches for r in results),
        "seconds": round(seconds, 3),
    }
    return json.dumps(document, indent=1) + "\n"


def _show(
    terminal: Terminal, some: tuple[Form, ...], results: list[FormResult], options: Options, complete: bool,
    seconds: float,
) -> None:  # fmt: skip
    def total(name: str) -> int:
        return sum(getattr(r, name) for r in results)

    images = {image for form in some for image in form.images}
    rows = {
        "images": f"{len(images):,}",
        "forms": f"{len(results):,} of {len(some):,}, in {total('encodings'):,} of {count_encodings(some):,} "
        "encodings",
        "states": f"{total('states'):,}, {options.states:,} of each form",
        "native": f"{total('states'):,} interpreted, {total('compiled'):,} compiled as well",
        "unicorn": f"{total('unicorn'):,} states of {sum(r.unicorn > 0 for r in results)} forms",
        "processor": f"{total('host'):,} states of {sum(r.host > 0 for r in results)} forms"
        if options.host else "not asked (--host)",
        "reference": f"{total('reference'):,} states of {sum(r.reference > 0 for r in results)} forms",
        "stopped": f"{total('stopped'):,} states: a fault, or what the model refuses",
        "undefined": f"{total('open'):,} states; what the manual leaves open is not compared",
        "time": duration(seconds),
    }  # fmt: skip
    for name, words in rows.items():
        terminal.say(f"{name:12} {words}")
    terminal.say()
    for section, states in sorted(undefined_sections(results).items()):
        terminal.say(f"  {count(states, 'state'):>18}  SDM {clean(section)}")
    alone = [r for r in results if r.alone]
    if alone:
        terminal.say()
        terminal.say("No second opinion but the reference interpreter's:")
        for r in alone:
            for line in wrap(f"{r.name}: {r.alone}", terminal.width, 2, 6):
                terminal.say(line)
    left = [(r, UNICORN_STATES[r.name.split()[0]]) for r in results if r.name.split()[0] in UNICORN_STATES]
    for r, (flag, why) in left:
        terminal.say()
        for line in wrap(f"{r.name}, {flag} set: Unicorn is not asked, {why}", terminal.width, 0, 6):
            terminal.say(line)
    terminal.say()
    wrong = [r for r in results if r.mismatches]
    for r in wrong:
        terminal.say(f"{clean(r.name)}: {count(r.mismatches, 'mismatch', 'mismatches')}", "bold red")
        for words in r.words:
            for line in wrap(words, terminal.width, 2, 6):
                terminal.say(line)
    if wrong:
        terminal.say(f"FAILED: {count(len(wrong), 'form')} on which engines disagree", "bold red")
    elif complete:
        terminal.say("PASSED: all engines agree", "bold green")
    else:
        terminal.say(f"NOT COMPLETE: {len(some) - len(results)} forms are not compared yet", "bold yellow")
    if not complete:
        terminal.say("next: the same command goes on where this one stopped")
