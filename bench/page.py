#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measures the page of a long run in chromium: its size, how long it takes to open, and a step.

    .venv/bin/python bench/page.py

By the browser: performance.now from the start of navigation until the page is drawn; the time
that its main thread runs for a step (script, style and layout), which other work on the machine
does not change; and by the clock, the median of all steps.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, CDPSession, sync_playwright

from atomicist.cli.main import main as atomicist

EVENTS: Final = 12
REPEATS: Final = 7
SCHEDULE: Final = "user:VC," + ",".join(
    "VC@exc_debug" if i % 2 else "DB@exc_vmm_communication" for i in range(EVENTS - 1)
)  # fmt: skip
STEPS: Final = """() => {
    const view = atomicist.views[0], took = [];
    for (let step = 0; step <= view.run.last; step += 3) {
        const before = performance.now();
        view.go(step);
        document.body.getBoundingClientRect();
        took.push(performance.now() - before);
    }
    return took;
}"""


PARTS: Final = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")


def busy(session: CDPSession) -> float:
    """Milliseconds that the main thread has run so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return 1000 * sum(m["value"] for m in metrics if m["name"] in PARTS)


def measure(browser: Browser, path: Path, width: int) -> tuple[list[float], list[float], float]:
    """Milliseconds until the page was there, of each step by the clock, of a step's work."""
    opened, stepped, work = [], [], 0.0
    for repeat in range(REPEATS):
        page = browser.new_page(viewport={"width": width, "height": 860})
        page.goto(path.as_uri())
        page.wait_for_function("window.atomicist !== undefined")
        opened.append(page.evaluate("atomicist.ready"))
        if repeat == 0:
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            before = busy(session)
            stepped = page.evaluate(STEPS)
            work = (busy(session) - before) / len(stepped)
        page.close()
    return opened, stepped, work


def main() -> int:
    """Print the figures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("page: chromium is not installed: run tools/bootstrap --browser", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        path = Path(work, "page.html")
        atomicist(["view", SCHEDULE, "-o", str(path)])
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"{platform.machine()}, chromium {browser.version}, page of {path.stat().st_size:,} bytes")
        for width in (1280, 390):
            opened, stepped, work_ms = measure(browser, path, width)
            print(
                f"{width} px, {len(stepped):,} of its steps: opens in {statistics.median(opened):.0f} ms "
                f"(median of {REPEATS}); a step is {work_ms:.1f} ms of work (mean), "
                f"{statistics.median(stepped):.1f} ms by the clock (median)"
            )
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
