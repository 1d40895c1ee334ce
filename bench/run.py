#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measures the enumeration of our entry: a table here, and build/bench.json.

One core, process time, the median of some runs.  What is compared with is measured in the same run, since
other work on the machine slows all of it alike.
"""

from __future__ import annotations

import ctypes as c
import json
import os
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.isa.delivery import KERNEL_CS, KERNEL_DS
from atomicist.isa.registers import REGISTERS
from atomicist.machine.interpreter import Machine
from atomicist.machine.target import Target
from atomicist.native import codegen
from atomicist.native.build import cache_dir, compiler, shared_object
from atomicist.native.engine import Engine, NativeResult
from atomicist.spec.contexts import Context, contexts
from atomicist.spec.events import ERROR_TOKEN, EVENTS
from atomicist.spec.properties import CODES

HERE: Final = Path(__file__).parent
RESULT: Final = HERE.parent / "build" / "bench.json"
CONTEXTS: Final = ("user", "kernel-task")
DEPTH: Final = 4
SAMPLE: Final = 2_000_000
REPEATS: Final = 7
MAX_STEPS: Final = 20_000
NATIVE_LOOPS: Final = 2_000_000


def median(measure: Callable[[], float], repeats: int = REPEATS) -> float:
    """The median of some measurements."""
    return statistics.median(measure() for _ in range(repeats))


def timed(search: Callable[[], NativeResult]) -> tuple[float, NativeResult]:
    """Process seconds of ``search``, the median, and its result."""
    seconds, result = [], None
    for _ in range(REPEATS):
        started = time.process_time()
        result = search()
        seconds.append(time.process_time() - started)
    if result is None or result.findings:
        raise SystemExit("the search found something, or did not run: run atomicist verify first")
    return statistics.median(seconds), result


def full_depth(engine: Engine, code: codegen.Compiled, context: Context) -> dict[str, float]:
    """Speed of the walk over schedules of `DEPTH` events of any vector."""
    seconds, result = timed(
        lambda: engine.enumerate(
            context.registers, budget=DEPTH, offered=15, first=15, limit=SAMPLE, run=code.address
        )
    )
    return {
        "interleavings_per_s_core": result.executed / seconds,
        "guest_insns_per_s_core": result.guest_insns / seconds,
        "insns_per_interleaving": result.guest_insns / result.executed,
    }


def against_unicorn(
    target: Target, engine: Engine, code: codegen.Compiled, context: Context
) -> dict[str, float] | None:
    """The same schedules here and in Unicorn; None if that is not installed."""
    try:
        from bench import unicorn_walk  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return None
    vectors = EVENTS[1:]
    other = min(
        (unicorn_walk.walk(target, context, EVENTS[0], vectors) for _ in range(REPEATS)),
        key=lambda w: w.seconds,
    )

    def search(limit: int) -> NativeResult:
        return engine.enumerate(
            context.registers, budget=2, offered=15, first=1, limit=limit, run=code.address
        )

    # the sample is so small that the call itself would count
    idle, _ = timed(lambda: search(1))
    seconds, result = timed(lambda: search(other.schedules))
    seconds -= idle
    ours, theirs = result.executed / seconds, other.schedules / other.seconds
    return {
        "schedules": other.schedules,
        "ours_per_s": ours,
        "unicorn_per_s": theirs,
        "vs_unicorn": ours / theirs,
    }


def native_insns_per_s(target: Target, context: Context) -> float | None:
    """Speed of this processor on the stretch from the first push of an NMI's entry to its commit, None
    where it cannot be measured."""
    nmi, first = target.named_region("nmi_stack"), target.gates["NMI"].offset
    start = next(
        va for va in sorted(target.insns) if va >= first and target.insns[va].text.startswith("push")
    )
    label = target.symbols["atomic_ist_committed_nmi"]
    machine = Machine(target)
    machine.registers[:] = context.registers
    machine.deliver(target.gates["NMI"])
    count = 0
    while machine["RIP"] != label:
        count += machine["RIP"] >= start and machine["RIP"] not in range(first, start)
        machine.step()
    low = min(target.insns) & ~4095
    high = (max(va for va in target.insns if va < label + 4096) | 4095) + 1
    text = b"".join(target_bytes(target, at) for at in range(low, high, 4096))
    stacks = [r for r in target.regions if abs(r.bottom - nmi.bottom) < 1 << 20]
    bottom, top = min(r.bottom for r in stacks), max(r.top for r in stacks)
    registers = {name: context.registers[REGISTERS[name].slot] for name in ("RIP", "RSP")}
    frame = struct.pack("<5Q", registers["RIP"], KERNEL_CS, 0x202, registers["RSP"], KERNEL_DS)
    sources = {"native_loop.c": (HERE / "native_loop.c").read_text()}
    flags = ("-mno-red-zone",) if platform.machine() == "x86_64" else ()
    loop = c.CDLL(str(shared_object(sources, ("native_loop.c",), flags))).native_loop
    loop.restype = c.c_double
    loop.argtypes = [c.c_char_p, *[c.c_uint64] * 5, c.c_char_p, c.c_uint64, c.c_uint64]

    def once() -> float:
        rsp = nmi.top - len(frame) - bottom
        taken = loop(
            text, len(text), start - low, label - low, top - bottom, rsp, frame, len(frame), NATIVE_LOOPS
        )
        return float(taken)

    seconds = median(once)
    return count * NATIVE_LOOPS / seconds if seconds > 0 else None


def target_bytes(target: Target, base: int) -> bytes:
    """The page at ``base``, zeros if there is none."""
    return next((page.data for page in target.pages if page.base == base), bytes(4096))


def verify_seconds() -> float | None:
    """How long `atomicist verify` takes, None if there is no such command."""
    command = Path(sys.executable).with_name("atomicist")
    if not command.exists():
        return None
    started = time.monotonic()
    done = subprocess.run([command, "verify", "--json"], capture_output=True, check=False)
    return time.monotonic() - started if done.returncode == 0 else None


def fresh_compilation(target: Target) -> float:
    """How long the target's compilation takes that is not in the cache yet."""
    kept = os.environ.get("ATOMICIST_CACHE")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["ATOMICIST_CACHE"] = empty
        started = time.monotonic()
        codegen.compiled(target, CODES, EVENTS, ERROR_TOKEN)
        seconds = time.monotonic() - started
    del os.environ["ATOMICIST_CACHE"]
    if kept is not None:
        os.environ["ATOMICIST_CACHE"] = kept
    return seconds


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def measure() -> dict[str, Any]:
    """Everything, as it goes into the JSON file."""
    config = BareConfig()
    target = load(build(kernel_source(), config, cache_dir()), config)
    known = {context.name: context for context in contexts(target)}
    compile_seconds = fresh_compilation(target)
    code = codegen.compiled(target, CODES, EVENTS, ERROR_TOKEN)
    with Engine(target, CODES, EVENTS, ERROR_TOKEN, MAX_STEPS) as engine:
        by_context = {name: full_depth(engine, code, known[name]) for name in CONTEXTS}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        unicorn = against_unicorn(target, engine, code, known["kernel-task"])
    native = native_insns_per_s(target, known["kernel-task"])
    worst = {key: min(row[key] for row in by_context.values()) for key in by_context[CONTEXTS[0]]}
    return {
        "machine": processor(),
        "engine": f"IR compiled by {Path(compiler()).name}, {' '.join(codegen.FLAGS[:1])}, one core",
        "events": DEPTH,
        "interleavings_per_s_core": worst["interleavings_per_s_core"],
        "guest_insns_per_s_core": worst["guest_insns_per_s_core"],
        "vs_unicorn": unicorn and unicorn["vs_unicorn"],
        "vs_native": native and worst["guest_insns_per_s_core"] / native,
        "native_insns_per_s": native,
        "compile_seconds": compile_seconds,
        "verify_seconds": verify_seconds(),
        "peak_mb": peak,
        "contexts": by_context,
        "unicorn": unicorn,
    }


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"{result['engine']}\n{result['machine']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, row in result["contexts"].items():
        label = f"{name}, up to {result['events']} events"
        table.add_row(f"{label}: interleavings/s", f"{row['interleavings_per_s_core'] / 1e6:.2f} M")
        table.add_row(f"{label}: guest instructions/s", f"{row['guest_insns_per_s_core'] / 1e6:.0f} M")
    shown = (
        ("the same schedules in Unicorn take", "vs_unicorn", "{:.0f} times as long"),
        ("speed, of this processor's own", "vs_native", "{:.3f}"),
        ("compiling the image, once", "compile_seconds", "{:.1f} s"),
        ("atomicist verify", "verify_seconds", "{:.1f} s"),
        ("memory", "peak_mb", "{:.0f} MB"),
    )
    for label, key, form in shown:
        table.add_row(label, "not measured" if result[key] is None else form.format(result[key]))
    Console().print(table)


def main() -> None:
    """Measure, show, and write the file."""
    result = measure()
    show(result)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
