# SPDX-License-Identifier: GPL-2.0-only
"""The pictures of the README: pages that atomicist makes, as chromium shows them.

tools/pictures
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Browser, sync_playwright

from atomicist.cli.main import main as atomicist

ROOT: Final = Path(__file__).resolve().parent.parent
OUT: Final = ROOT / "docs" / "pictures"
IMAGE: Final = "build/kernel-image/vmlinuz"
HOLE: Final = "user:NMI,MC@asm_exc_nmi,NMI@asm_exc_nmi"
NESTED: Final = "user:NMI,MC@asm_exc_nmi+0x4"

WIDTH: Final = 1280


def make(place: Path, name: str, *words: str) -> Path:
    """The page that a command line makes."""
    page = place / f"{name}.html"
    status = atomicist([*words, "--html" if words[0] == "verify" else "-o", str(page)])
    if status not in {0, 1} or not page.is_file():
        raise SystemExit(f"pictures: atomicist {' '.join(words)} ended with {status}")
    return page


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture called ``name`` of what a page shows at ``fragment``."""

    name: str
    fragment: str
    height: int
    scheme: Literal["light", "dark"]


def shoot(browser: Browser, page: Path, shot: Shot) -> None:
    """One picture."""
    view = browser.new_page(viewport={"width": WIDTH, "height": shot.height}, color_scheme=shot.scheme)
    view.goto(f"{page.as_uri()}{shot.fragment}")
    view.wait_for_function("window.atomicist !== undefined")
    first = view.locator("details.func summary").first
    if first.count():
        first.click()
        view.locator("section.card", has=first).evaluate("card => scrollTo(0, card.offsetTop - 8)")
    view.wait_for_timeout(300)
    view.screenshot(path=OUT / f"{shot.name}.png")
    view.close()


def main() -> int:
    """Make them all."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("pictures: chromium is not installed: run tools/bootstrap --browser", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        place = Path(work)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        hole = make(place, "hole", "view", "--kernel", IMAGE, HOLE)
        ours = make(place, "ours", "view", NESTED)
        both = make(place, "both", "view", "--kernel", IMAGE, HOLE, "--against", "entry")
        naive = make(place, "naive", "verify", "--specimen", "naive", "--vector", "nmi,mc", "--quiet")
        shoot(browser, hole, Shot("counterexample", "", 860, "light"))
        shoot(browser, ours, Shot("commit", "#step=193", 860, "dark"))
        shoot(browser, both, Shot("side-by-side", "", 1180, "light"))
        shoot(browser, naive, Shot("whole-search", "", 900, "light"))
        browser.close()
    for picture in sorted(OUT.glob("*.png")):
        print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
