# SPDX-License-Identifier: GPL-2.0-only
"""The verb ``linux boot``: boot in several ways, and run a short self-test in each."""

from __future__ import annotations

import argparse
from typing import Final

from atomicist.cli import linux_stress

SECONDS: Final = 5.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    linux_stress.add_arguments(parser, SECONDS)


def run(args: argparse.Namespace) -> int:
    """Boot; the exit status."""
    return linux_stress.run_boots(args, "boot", (), "stress")
