# SPDX-License-Identifier: GPL-2.0-only
"""The command ``atomicist``: finds the verb, runs it, turns every failure into one line
and an exit status.

A verb is a module of this room with ``arguments(parser)`` and ``run(args) -> status``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from atomicist.cli.errors import BAD_INPUT, INTERRUPTED, UsageError

VERBS: Final = {
    "verify": "check an image at every instruction boundary",
    "replay": "run one schedule and explain what happens",
    "view": "make a page of one run: procedure, stacks, code",
    "specimens": "list the known-bad variants, to see the checker find them",
    "thunks": "turn the return thunks of an object file into jumps to where they return",
    "explain": "say what a property means and what to do about it",
}

EPILOG: Final = """\
exit status:
  0  nothing found, and nothing left to try
  1  a property is violated
  2  bad usage or input, said in one line
  3  nothing found, but not everything was covered
  130  interrupted by Ctrl-C (143: by SIGTERM)
"""

DEBUG: Final = "ATOMICIST_DEBUG"
"""Set in the environment: a failure that is a bug shows its traceback."""

_stopped_by: list[int] = []


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The command line; only the verbs that occur in ``argv`` are filled in."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = _Parser(
        prog="atomicist", allow_abbrev=False, epilog=EPILOG, formatter_class=formatter,
        description="Checks that an x86-64 kernel entry loses no context and no event.",
    )  # fmt: skip
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, about in VERBS.items():
        sub = verbs.add_parser(
            verb, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=EPILOG,
            allow_abbrev=False, formatter_class=formatter,
        )  # fmt: skip
        if verb in argv:
            module = importlib.import_module(f"atomicist.cli.{verb}")
            module.arguments(sub)
            sub.set_defaults(run=module.run)
    return top


def stop(number: int, _: FrameType | None = None) -> NoReturn:
    """Handle SIGTERM as Ctrl-C: end cleanly, say what was covered."""
    _stopped_by.append(number)
    raise KeyboardInterrupt


def status_of_interrupt() -> int:
    """The exit status of a run that was interrupted."""
    return INTERRUPTED + (_stopped_by[0] if _stopped_by else signal.SIGINT)


def _watch_signals() -> None:
    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:
        return  # not the main thread: its owner decides
    # Workers end at once when they are told to.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _fail(message: str) -> int:
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
    try:
        sys.stdout.flush()
        sys.stderr.write(f"atomicist: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
    return BAD_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status. Never raises for what a user can do wrong."""
    if argv is None:
        _watch_signals()
        argv = sys.argv[1:]
    try:
        return _run(argv)
    except KeyboardInterrupt:
        _fail("interrupted before the end")
        return status_of_interrupt()
    except UsageError as e:
        return _fail(str(e))
    except SystemExit as e:  # argparse, after --help
        return e.code if isinstance(e.code, int) else 0
    except BrokenPipeError:
        _close_quietly()
        return BAD_INPUT
    except Exception as e:
        if os.environ.get(DEBUG):
            raise
        return _fail(f"internal error, please report it: {type(e).__name__}: {e} ({DEBUG}=1 shows where)")


def _run(argv: Sequence[str]) -> int:
    if not argv:
        parser(argv).print_help()
        return BAD_INPUT
    args = parser(argv).parse_args(argv)
    known = importlib.import_module("atomicist.cli.failures")
    try:
        status: int = args.run(args)
    except known.KNOWN as e:
        return _fail(known.words(e))
    sys.stdout.flush()
    return status


def _close_quietly() -> None:
    """Keep the interpreter from complaining once more when it flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
