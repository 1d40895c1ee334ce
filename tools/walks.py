# SPDX-License-Identifier: GPL-2.0-only
"""Walks schedules in Unicorn, on the reference interpreter and in the native model, and compares the ends.

All schedules of two events, and 10,200 random ones of three to five, of the entry, two of its specimens, a
naive entry and Debian's kernel, from user and from kernel mode.  What is done is kept in build/walks.json: a
run that was stopped goes on there, unless code has changed.  Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from atomicist.spec.events import EVENTS  # noqa: E402
from tests.crosscheck import test_walks as walks  # noqa: E402

PLACE: Final = ROOT / "build" / "walks.json"
CONTEXTS: Final = ("user", "kernel-task")
DEEPER: Final = ("entry", "naive", "debian")
CHUNK: Final = 100
CHUNKS: Final = 17

Task = tuple[str, str, str]
"""An image, a start context, and a first event or the number of a chunk of random schedules."""


def tasks() -> Iterator[Task]:
    """All of them, the random ones between the others."""
    for context in CONTEXTS:
        for name in walks.IMAGES:
            yield from ((name, context, first) for first in EVENTS)
            if name in DEEPER:
                yield from ((name, context, str(number)) for number in range(CHUNKS))


def digest() -> str:
    """Of all code that a result depends on."""
    made = hashlib.sha256()
    places = [Path(walks.__file__), *(ROOT / "src" / "atomicist").rglob("*")]
    for place in sorted(
        p for p in places if p.suffix in (".py", ".c", ".h") and p.parent.name not in OUTSIDE
    ):
        made.update(str(place.relative_to(ROOT)).encode() + b"\0" + place.read_bytes() + b"\0")
    for place in sorted((ROOT / "kernel").rglob("*")):
        made.update(place.read_bytes() if place.is_file() else b"")
    return made.hexdigest()


OUTSIDE: Final = ("cli", "report", "guest", "tree")


def work(task: Task) -> tuple[Task, tuple[int, int, list[str]]]:
    """Schedules, findings and differences of one task."""
    name, context, what = task
    if what in EVENTS:
        return task, walks.compare(name, context, what, 1)
    return task, walks.deeper(name, context, CHUNK, int(what))


def load(key: str) -> dict[str, Any]:
    """What an earlier run has done with the same code."""
    try:
        known = json.loads(PLACE.read_text())
        return known["done"] if known["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save(key: str, done: dict[str, Any]) -> None:
    """Keep it: the file is the old or the new one."""
    PLACE.parent.mkdir(exist_ok=True)
    new = PLACE.with_suffix(".new")
    new.write_text(json.dumps({"key": key, "done": done}, indent=1) + "\n")
    new.replace(PLACE)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare whole runs in three engines.")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=0, help="stop after this time")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and its processes with it
    key = digest()
    done = load(key)
    todo = [task for task in tasks() if " ".join(task) not in done]
    total, started = len(done) + len(todo), time.monotonic()
    for name in walks.IMAGES:  # made once, before processes are started
        walks.target(name)
    context = multiprocessing.get_context("fork")
    with context.Pool(
        args.workers, initializer=signal.signal, initargs=(signal.SIGTERM, signal.SIG_DFL)
    ) as pool:
        for task, result in pool.imap_unordered(work, todo):
            done[" ".join(task)] = result
            save(key, done)
            wrong = sum(len(r[2]) for r in done.values())
            said = f"{' '.join(task)}: {result[0]:,} schedules, {result[1]:,} findings"
            seconds = time.monotonic() - started
            print(f"walks: {len(done)}/{total}: {said}; {wrong} differences, {seconds:.0f} s", flush=True)
            if args.minutes and time.monotonic() - started > 60 * args.minutes:
                pool.terminate()
                break
    return show(done, total)


def show(done: dict[str, Any], total: int) -> int:
    """The sums; the exit status."""
    two = {t: r for t, r in done.items() if t.split()[2] in EVENTS}
    deep = {t: r for t, r in done.items() if t not in two}
    for name in walks.IMAGES:
        mine = [r for t, r in two.items() if t.split()[0] == name]
        more = [r for t, r in deep.items() if t.split()[0] == name]
        pair, rest = ([sum(r[n] for r in some) for n in (0, 1)] for some in (mine, more))
        print(f"  {name:24} of two events {pair[0]:7,}, with findings {pair[1]:6,}; "
              f"deeper {rest[0]:6,}, with findings {rest[1]:6,}")  # fmt: skip
    wrong = [words for r in done.values() for words in r[2]]
    for words in wrong[:20]:
        print(f"  DIFFERS: {words}")
    if len(done) < total:
        print("next: make walks    (goes on where this one stopped)")
        return 3 if not wrong else 1
    print("PASSED: all three end every schedule alike" if not wrong else f"FAILED: {len(wrong)} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nwalks: interrupted; make walks goes on where it stopped", file=sys.stderr)
        sys.exit(130)
