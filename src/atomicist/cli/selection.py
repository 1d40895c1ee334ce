# SPDX-License-Identifier: GPL-2.0-only
"""Which image: the options that verify and replay share, and the target they mean."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from atomicist.cli.errors import UsageError
from atomicist.image import bare, specimens, vmlinux
from atomicist.image.bare import BUILDS, VARIANTS, BareConfig
from atomicist.image.source_lines import SourceLines
from atomicist.image.source_text import SourceText
from atomicist.machine.target import Target
from atomicist.native.build import cache_dir
from atomicist.report.places import Source, no_lines
from atomicist.report.text import clean, shell

_BARE = ("cc", "variant", "mitigation", "no_pti", "no_pcid", "no_fsgsbase")

_VALUED = ("cc", "variant", "mitigation")


@dataclass(frozen=True, slots=True)
class Image:
    """A target; the ``options`` that select it again; where its source lines are; start
    ``contexts`` in which its defect shows, if it is a specimen; the ``text`` of a line."""

    target: Target
    options: tuple[str, ...]
    source: Source = no_lines
    contexts: tuple[str, ...] = ()
    text: SourceText | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("image", "without --specimen and --kernel: the entry in kernel/")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--specimen", metavar="NAME", help="a known-bad variant (see atomicist specimens)")
    which.add_argument("--kernel", metavar="FILE", help="a vmlinuz or vmlinux")
    group.add_argument("--features", metavar="A,B", help="with --kernel: CPU features, as in cpufeatures.h")
    group.add_argument("--cc", choices=("gcc", "clang"), help="compiler of the entry (gcc)")
    group.add_argument(
        "--variant",
        choices=VARIANTS,
        help="how the entry copies before its commit (1c)",
    )
    group.add_argument("--mitigation", choices=BUILDS, help="what makes return predictions safe (none)")
    for name, about in (("pti", "page-table isolation"), ("pcid", "PCIDs"), ("fsgsbase", "FSGSBASE")):
        group.add_argument(f"--no-{name}", action="store_true", help=f"the entry without {about}")


def select(args: argparse.Namespace) -> Image:
    """The image that ``args`` asks for. Raises `UsageError` or `ImageError`."""
    chosen = tuple(name for name in _BARE if getattr(args, name))
    if args.kernel is not None:
        if chosen:
            option = chosen[0].replace("_", "-")
            raise UsageError(f"--{option} is for the entry that is built here, not for --kernel")
        return _kernel(args.kernel, args.features)
    if args.features is not None:
        raise UsageError("--features is for --kernel; without it, use --no-pti, --no-pcid and --no-fsgsbase")
    config = BareConfig(
        args.cc or "gcc", not args.no_pti, not args.no_pcid, not args.no_fsgsbase, args.mitigation or "none",
        args.variant or "1c",
    )  # fmt: skip
    options = tuple(
        word
        for name in chosen
        for word in (
            (f"--{name}", getattr(args, name)) if name in _VALUED else (f"--{name.replace('_', '-')}",)
        )
    )
    if args.specimen is None:
        path = bare.build(bare.kernel_source(), config, cache_dir())
        return Image(bare.load(path, config), options, SourceLines(path), text=SourceText())
    found = specimens.find(args.specimen)
    path = specimens.build(found, config, cache_dir())
    target = bare.load(path, found.configured(config), found.name)
    return Image(
        target, ("--specimen", found.name, *options), SourceLines(path), found.contexts, SourceText(found)
    )


def _kernel(file: str, features: str | None) -> Image:
    words = [f.strip().upper() for f in (features or "").split(",")]
    names = None if features is None else frozenset(filter(None, words))
    try:
        path = Path(file)
        if not path.is_file():
            why = "it is no regular file" if path.exists() else "there is no such file"
            raise UsageError(f"cannot read {clean(file)}: {why}")
        target = vmlinux.load(path, names)
    except ValueError as e:
        raise UsageError(f"cannot read {clean(file)}: {e}") from e
    options = ("--kernel", file, *(("--features", features) if features is not None else ()))
    return Image(target, options, SourceLines(path))


def command(verb: str, *words: str) -> str:
    """A command line that runs ``verb`` the way this one was run."""
    start = sys.argv[0] if sys.argv else ""
    name = Path(start).name
    if name == "__main__.py":
        python = Path(sys.executable).name
        found = shutil.which(python) == sys.executable
        program: tuple[str, ...] = (python if found else sys.executable, "-m", "atomicist")
    elif name == "atomicist" and shutil.which("atomicist") is None:
        program = (start,)
    else:
        program = ("atomicist",)
    return shell((*program, verb, *words))
