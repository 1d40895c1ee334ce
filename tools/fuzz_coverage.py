# SPDX-License-Identifier: GPL-2.0-only
"""Lets atheris look for inputs that reach new code of the readers, one reader after the other.

    tools/fuzz_coverage.py [READER ...] [--minutes M]    M minutes for each (1), from damaged files on

It needs `pip install '.[fuzz]'`; `make fuzz ATHERIS=1` does that.  What atheris found worth keeping stays
in build/fuzz/corpus-READER, and the next run begins with it.  A crash, 20 s for one input or more than
1.5 GB end the reader's run: its input is kept in build/fuzz, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PLACE: Final = ROOT / "build" / "fuzz"
SEEDS: Final = 100
WATCHED: Final = ["atomicist.image", "atomicist.search.schedule"]
"""Whose branches count as new code."""


def one(name: str, seconds: int) -> None:
    """Fuzz one reader; atheris ends the process."""
    import atheris  # noqa: PLC0415 - an extra

    with atheris.instrument_imports(include=WATCHED):
        from tests.fuzz.readers import CPU_SECONDS, MEMORY, READERS, attempt, case  # noqa: PLC0415

    corpus = PLACE / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(SEEDS):
        (corpus / f"seed-{number}").write_bytes(case(name, number))
    options = [
        f"-max_total_time={seconds}", f"-rss_limit_mb={(MEMORY >> 20) + 512}", f"-timeout={CPU_SECONDS}",
        f"-artifact_prefix={PLACE}/{name}-", "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: attempt(READERS[name], data) and None)
    atheris.Fuzz()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Feed readers what reaches new code.")
    parser.add_argument("readers", nargs="*", metavar="READER")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    try:
        import atheris  # noqa: F401, PLC0415
    except ImportError:
        print("fuzz: atheris is not installed: .venv/bin/pip install '.[fuzz]'", file=sys.stderr)
        return 2
    if args.here:
        one(args.readers[0], max(1, int(60 * args.minutes)))
    from tests.fuzz.readers import READERS  # noqa: PLC0415

    if unknown := set(args.readers) - set(READERS):
        parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    failed = []
    for name in args.readers or READERS:
        command = [sys.executable, __file__, "--here", name, "--minutes", str(args.minutes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        stats = dict(line.removeprefix("stat::").split(":", 1) for line in done.stderr.splitlines()
                     if line.startswith("stat::"))  # fmt: skip
        runs, new, peak = (stats.get(key, "?").strip() for key in (
            "number_of_executed_units", "new_units_added", "peak_rss_mb"))  # fmt: skip
        print(f"fuzz: {name}: {runs} inputs, {new} reached new code, at most {peak} MB, "
              f"{'no crash' if not done.returncode else 'FAILED'}", flush=True)  # fmt: skip
        if done.returncode:
            failed.append(name)
            print(done.stderr[-2000:], file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
