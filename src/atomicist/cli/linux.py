# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux``: a table of verbs of its own, each a module ``linux_<verb>`` of this room."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import Final

VERBS: Final = {
    "prepare": "unpack Debian's kernel source and configure it",
    "apply": "put the atomic entry into a source tree, or take it out",
    "series": "make a series of patches",
    "build": "build the kernel, and check what is ours in it",
    "boot": "boot it under QEMU, and run the self-test",
    "stress": "boot it, and let NMI, #DB and #MC arrive at random",
    "traces": "compare stack traces taken inside handlers with what was called",
    "inject": "deliver events at every instruction boundary of the running kernel",
    "cost": "count the instructions of an NMI, legacy and atomic",
    "run": "all of them, one after the other",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs that are there."""
    verbs = parser.add_subparsers(dest="linux_verb", required=True, metavar="VERB")
    for verb, about in VERBS.items():
        name = f"atomicist.cli.linux_{verb}"
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        sub = verbs.add_parser(
            verb, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=parser.epilog,
            allow_abbrev=False, formatter_class=parser.formatter_class,
        )  # fmt: skip
        module.arguments(sub)
        sub.set_defaults(run_linux=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the verb; its exit status."""
    status: int = args.run_linux(args)
    return status
