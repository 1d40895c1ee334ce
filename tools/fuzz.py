# SPDX-License-Identifier: GPL-2.0-only
"""Feeds damaged files to every reader: a count of cases, or until a time is up, resumed where it stopped.

    tools/fuzz.py [--cases N] [--minutes M] [--workers N]    all readers
    tools/fuzz.py --case elf:1234                            one case again, with its traceback

A crash is any exception but the reader's own, the death of the process, 20 s of CPU time for one case, or
more than 1 GB of memory.  Its bytes are kept in build/fuzz/, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.fuzz.readers import CPU_SECONDS, MEMORY, READERS, attempt, case  # noqa: E402

PLACE: Final = ROOT / "build" / "fuzz"
CHUNK: Final = 500
ADDRESS_SPACE: Final = 8 << 30


@dataclass
class State:
    """What has been done: of each reader, the chunks, the cases that were read, and the crashes."""

    chunks: dict[str, list[int]] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0

    @staticmethod
    def load(place: Path) -> State:
        """The state that an earlier run left, or a new one."""
        try:
            return State(**json.loads(place.read_text()))
        except (OSError, ValueError, TypeError):
            return State()

    def save(self, place: Path) -> None:
        """Keep it: the file is the old or the new one."""
        new = place.with_suffix(".new")
        new.write_text(json.dumps(self.__dict__, indent=1))
        new.replace(place)

    def cases(self) -> int:
        """Cases done, in whole chunks."""
        return CHUNK * sum(map(len, self.chunks.values()))


def _work(reader: str, chunk: int, current: Any, read: Any, pipe: Any) -> None:
    """Run one chunk in this process; what is behind `current` is done.  Each crash is sent at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(max(chunk * CHUNK, current.value), (chunk + 1) * CHUNK):
        current.value = number
        data = case(reader, number)
        # The default action of SIGPROF is to end the process, also within a library.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            read.value += attempt(READERS[reader], data)
        except Exception:  # noqa: BLE001 - that is what is looked for
            pipe.send((number, traceback.format_exc()))
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if peak > MEMORY:
            pipe.send((number, f"the process holds {peak >> 20} MB\n"))
            current.value = number + 1
            break
    else:
        current.value = (chunk + 1) * CHUNK
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)


class Worker:
    """A process with a chunk; it is started anew where a case ends it."""

    def __init__(self, reader: str, chunk: int) -> None:
        self.reader, self.chunk = reader, chunk
        self.current = multiprocessing.Value("q", chunk * CHUNK, lock=False)
        self.read = multiprocessing.Value("q", 0, lock=False)
        self.crashes: list[tuple[int, str]] = []
        self.peak = 0
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.Process(
            target=_work, args=(self.reader, self.chunk, self.current, self.read, theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def done(self) -> bool:
        """Whether the chunk is finished; goes on behind a case that was the end of the process."""
        peak = None
        try:
            # a process that has ended closes its end, but what it sent before is still there
            while self._pipe.poll():
                answer = self._pipe.recv()
                if isinstance(answer, tuple):
                    self.crashes.append(answer)
                else:
                    peak = answer
        except EOFError:
            pass
        else:
            if peak is None:
                return False
        self.process.join()
        if peak is None:
            number = self.current.value
            self.crashes.append((number, f"the process ended, exit code {self.process.exitcode}\n"))
            self.current.value = number + 1
        else:
            self.peak = max(self.peak, peak)
        if self.current.value >= (self.chunk + 1) * CHUNK:
            return True
        self._start()
        return False


def _next(state: State, running: list[Worker], cases: int) -> tuple[str, int] | None:
    """The chunk of the reader that is furthest behind its share; None when all have theirs."""
    behind = []
    total = sum(reader.share for reader in READERS.values())
    for name, reader in READERS.items():
        busy = [w.chunk for w in running if w.reader == name]
        done = state.chunks.get(name, [])
        want = -(-cases * reader.share // total // CHUNK)
        if len(done) + len(busy) < want:
            first = next(n for n in range(want + len(busy) + 1) if n not in done and n not in busy)
            behind.append(((len(done) + len(busy)) / want, name, first))
    return min(behind)[1:] if behind else None


def _finish(state: State, worker: Worker) -> None:
    state.chunks.setdefault(worker.reader, []).append(worker.chunk)
    state.read[worker.reader] = state.read.get(worker.reader, 0) + worker.read.value
    state.peak = max(state.peak, worker.peak)
    for number, words in worker.crashes:
        name = f"{worker.reader}-{number}"
        (PLACE / f"{name}.bin").write_bytes(case(worker.reader, number))
        (PLACE / f"{name}.txt").write_text(
            f"{words}\nagain: .venv/bin/python tools/fuzz.py --case {worker.reader}:{number}\n"
        )
        state.crashes.append(name)
        print(f"fuzz: {name}: {words.strip().splitlines()[-1][:200]}", flush=True)
    state.save(PLACE / "state.json")


def run(cases: int, minutes: float, workers: int) -> int:
    """Run until ``cases`` are done in all, or the time is up; the exit status."""
    PLACE.mkdir(parents=True, exist_ok=True)
    state = State.load(PLACE / "state.json")
    for name in READERS:  # seeds are made once, before processes are started
        case(name, 0)
        attempt(READERS[name], case(name, 0)) if name in ("dwarf", "schedule") else None
    started, said, before = time.monotonic(), 0.0, state.seconds
    running: list[Worker] = []
    while True:
        for worker in [w for w in running if w.done()]:
            running.remove(worker)
            _finish(state, worker)
        state.seconds = before + time.monotonic() - started
        up = minutes and time.monotonic() - started > 60 * minutes
        while len(running) < workers and not up and (new := _next(state, running, cases)):
            running.append(Worker(*new))
        if time.monotonic() - said > 10 or not running:
            said = time.monotonic()
            print(f"fuzz: {state.cases():,} of {cases:,} cases, {state.seconds:.0f} s, "
                  f"{len(state.crashes)} crashes, at most {state.peak >> 20} MB", flush=True)  # fmt: skip
        if not running:
            break
        time.sleep(0.02)
    state.save(PLACE / "state.json")
    for name in READERS:
        count = CHUNK * len(state.chunks.get(name, ()))
        print(f"  {name:13} {count:9,} cases, {state.read.get(name, 0):9,} read in spite of the damage")
    if state.cases() < cases and not state.crashes:
        print("next: make fuzz    (goes on where this one stopped)")
    return 1 if state.crashes else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Feed damaged files to every reader.")
    parser.add_argument("--cases", type=int, default=1_000_000, help="in all, those of earlier runs included")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this time")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--case", metavar="READER:NUMBER", help="run one case here")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and its processes with it
    if args.case:
        name, _, number = args.case.partition(":")
        if name not in READERS or not number.isdecimal():
            parser.error(f"--case is READER:NUMBER, the readers are {', '.join(READERS)}")
        print("read" if attempt(READERS[name], case(name, int(number))) else "refused")
        return 0
    return run(args.cases, args.minutes, args.workers)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nfuzz: interrupted; make fuzz goes on where it stopped", file=sys.stderr)
        sys.exit(130)
