# SPDX-License-Identifier: GPL-2.0-only
"""The page where it is read: Debian's chromium, without a window, driven by Playwright.

The browser is the system's; nothing is downloaded.  A page that loads anything else than
itself, says anything on its console, or opens a dialog, fails every test here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, Playwright, expect, sync_playwright

from atomicist.cli.main import main
from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.native.build import cache_dir
from atomicist.report.page import html_page
from atomicist.report.run_data import run_data
from atomicist.search.recording import record
from atomicist.search.schedule import parse

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "build" / "kernel-image" / "vmlinuz"
HOLE = "user:NMI,MC@asm_exc_nmi,NMI@asm_exc_nmi"
COMMIT = 3
"""A step of this kind, in the data of a page."""

NESTED = "user:NMI,MC@asm_exc_nmi+0x4"
MAX_PAGE = 2_000_000
LONG = "user:VC," + ",".join(
    "VC@exc_debug" if i % 2 else "DB@exc_vmm_communication" for i in range(11)
)  # fmt: skip
HOSTILE = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "--><b>&lt;")


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("chromium is not installed: run tools/bootstrap --browser")
    # as root, as CI runs, chromium has no sandbox; what it opens is our own file
    started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    yield started
    started.close()


class Watched:
    """A page, and everything that it should not do."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", lambda m: self.wrong.append(f"console: {m.text}"))
        page.on("pageerror", lambda e: self.wrong.append(f"error: {e}"))
        page.on("dialog", self._dialog)
        page.on("request", lambda r: None if r.url.startswith("file:") else self.wrong.append(r.url))

    def _dialog(self, dialog: Dialog) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: Path, fragment: str = "") -> Page:
        self.page.goto(f"{path.as_uri()}{fragment}")
        self.page.wait_for_function("window.atomicist !== undefined")
        return self.page


@pytest.fixture(params=[1280, 390])
def watched(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": request.param, "height": 860})
    made = Watched(context.new_page())
    yield made
    context.close()
    assert made.wrong == []


@pytest.fixture
def wide(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme="dark")
    made = Watched(context.new_page())
    yield made
    context.close()
    assert made.wrong == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def hole(pages: Path) -> Path:
    """The known hole of Debian's kernel."""
    if not IMAGE.exists():
        subprocess.run([ROOT / "tools" / "kernel-image"], check=True, cwd=ROOT)
    path = pages / "hole.html"
    assert main(["view", "--kernel", str(IMAGE), HOLE, "-o", str(path)]) == 1
    return path


@pytest.fixture(scope="module")
def specimen(pages: Path) -> Path:
    path = pages / "specimen.html"
    assert main(["view", "--specimen", "naive", HOLE, "--against", "entry", "-o", str(path)]) == 1
    return path


@pytest.fixture(scope="module")
def long(pages: Path) -> Path:
    path = pages / "long.html"
    assert main(["view", LONG, "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def whole(pages: Path) -> Path:
    path = pages / "whole.html"
    words = ["--specimen", "naive", "--vector", "nmi,mc", "--context", "user", "--quiet"]
    assert main(["verify", *words, "--html", str(path)]) == 1
    return path


def fits(page: Page) -> bool:
    """Nothing is wider than the window."""
    wide: bool = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return wide


def test_the_lost_slot_is_the_first_thing_one_sees(watched: Watched, hole: Path) -> None:
    page = watched.open(hole)
    expect(page.locator("h1")).to_contain_text("IST001Violated: the handler sees exactly")
    lost = page.get_by_role("region", name="What is lost")
    expect(lost).to_be_in_viewport()
    expect(lost).to_contain_text("0x555555554321")
    assert page.locator("main article > *").nth(1).get_attribute("aria-label") == "What is lost"
    first = page.locator("section.stack").first
    expect(first.locator("tr.lost")).to_have_count(5)
    # said in words, not by colour alone
    expect(first.locator("tr.lost").first).to_contain_text("LOST")
    expect(first.locator("tr[data-address='0xfffffe000000dfd8']")).to_contain_text("was user RIP")
    assert fits(page)


def test_clicking_through_a_counterexample(watched: Watched, hole: Path) -> None:
    page = watched.open(hole)
    output = page.locator("output")
    expect(output).to_have_text("step 98 of 315")
    page.get_by_role("button", name="Previous event").click()
    expect(output).to_have_text("step 62 of 315")
    expect(page.locator(".now")).to_contain_text("exc_machine_check() runs")
    page.get_by_role("button", name="Previous event").click()
    expect(page.locator(".now")).to_contain_text("#MC is delivered")
    page.get_by_role("button", name="Step back").click()
    expect(output).to_have_text("step 0 of 315")
    frame = page.locator("tr[data-address='0xfffffe000000dfd8']")
    expect(frame).to_contain_text("0x555555554321")
    expect(frame).to_contain_text("will be lost at step 98")
    expect(page.locator("tr.lost")).to_have_count(0)
    page.wait_for_url("**#step=0")
    page.get_by_role("button", name="Go to where it is lost").click()
    expect(page.locator("tr.lost")).to_have_count(5)
    # who wrote the slot, who overwrote it, and back to the first of them
    expect(page.locator(".detail")).to_contain_text("overwrites what was needed")
    page.locator(".detail").get_by_role("button", name="step 0", exact=True).click()
    expect(output).to_have_text("step 0 of 315")
    assert fits(page)


def test_keys(wide: Watched, hole: Path) -> None:
    page = wide.open(hole, "#step=10")
    output = page.locator("output")
    expect(output).to_have_text("step 10 of 315")
    for key, step in (
        ("ArrowRight", "11"), ("ArrowLeft", "10"), ("n", "62"), ("p", "1"), ("]", "2"), ("End", "315"),
        ("Home", "\u2013"), ("Shift+ArrowRight", "0"), ("l", "98"),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect(output).to_have_text(f"step {step} of 315")
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    expect(output).to_have_text("step 99 of 315")
    page.get_by_role("button", name="Step on").focus()
    page.keyboard.press("Enter")
    expect(output).to_have_text("step 100 of 315")
    page.locator("h1").click()
    page.clock.install()
    page.clock.pause_at(page.evaluate("Date.now()") + 1000)
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play or pause")).to_contain_text("pause")
    page.clock.run_for(340)
    expect(output).to_have_text("step 103 of 315")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play or pause")).to_contain_text("play")
    page.clock.run_for(340)
    expect(output).to_have_text("step 103 of 315")


def test_the_fragment_is_a_link_to_a_step(wide: Watched, hole: Path) -> None:
    page = wide.open(hole, "#step=62")
    expect(page.locator("output")).to_have_text("step 62 of 315")
    page.evaluate("location.hash = '#step=5'")
    expect(page.locator("output")).to_have_text("step 5 of 315")
    page = wide.open(hole, "#step=99999999")
    page.reload()
    expect(page.locator("output")).to_have_text("step 315 of 315")


def test_a_click_into_the_procedure(wide: Watched, hole: Path) -> None:
    page = wide.open(hole, "#step=0")
    bar = page.locator("svg.proc g", has=page.locator("title", has_text="the #MC: Handler")).first
    bar.click()
    expect(page.locator("output")).to_have_text("step 62 of 315")
    expect(page.locator("svg.proc")).to_contain_text("hit by #MC")
    expect(page.locator("svg.proc")).to_contain_text("LOST here")


def test_clicking_through_a_labelled_specimen(wide: Watched, pages: Path) -> None:
    """Registers of the wrong entry: from the handler that sees them back to who saved the right ones."""
    path = pages / "labelled.html"
    wrong = "user:NMI,DB@asm_exc_nmi+0x20"
    assert main(["view", "--specimen", "m01-registers-from-ongoing", wrong, "-o", str(path)]) == 1
    page = wide.open(path)
    output = page.locator("output")
    expect(page.locator("h1")).to_contain_text("IST001Violated")
    expect(output).to_have_text(re.compile(r"^step (\d+) of \1$"))
    lost = page.get_by_role("region", name="What is lost")
    expect(lost).to_contain_text("Wrong: RDI")
    slot = page.get_by_role("region", name="task stack").locator("tr.lost")
    expect(slot).to_have_count(1)
    expect(slot).to_contain_text("was user RDI")
    for word in ("Save 2", "Walk", "Commit", "copy of NMI", "hit by #DB"):
        expect(page.locator("svg.proc")).to_contain_text(word)
    # copied from the main stack, and there from the #DB's own stack
    for place in ("main stack", "DB stack"):
        page.locator(".detail").get_by_role("button", name="show that slot").last.click()
        expect(page.locator(".detail h3")).to_contain_text(place)
    page.locator(".detail").get_by_role("button", name="step 24", exact=True).click()
    expect(output).to_have_text(re.compile(r"^step 24 of \d+$"))
    expect(page.locator(".now")).to_contain_text("push rdi")
    expect(page.locator(".now")).to_contain_text("the #DB, Save 2")
    expect(page.locator("tr.lost")).to_have_count(0)
    # the right value lies on the NMI's stack until the commit
    right = page.get_by_role("region", name="NMI stack").locator("tr[data-address]", has_text="RDI").first
    expect(right).to_contain_text("user RDI")
    page.locator("svg.proc g", has=page.locator("title", has_text="the #DB: Set up kernel")).first.click()
    expect(page.locator(".now")).to_contain_text("the #DB, Set up kernel")
    expect(page.get_by_role("region", name="NMI stack").locator("tr.gap")).to_contain_text("free")
    page.get_by_role("button", name="Go to where it is lost").click()
    expect(slot).to_contain_text("LOST")


def test_two_runs_side_by_side(watched: Watched, specimen: Path) -> None:
    page = watched.open(specimen)
    expect(page.locator("article.run")).to_have_count(2)
    old, new = page.locator("article.run").all()
    expect(old).to_contain_text("IST001Violated")
    expect(new).to_contain_text("nothing lost")
    expect(new).to_contain_text("right behind the next IRET instead")
    expect(new.locator(".now")).to_contain_text("the second NMI")
    old.get_by_role("button", name="Previous event").click()
    old.get_by_role("button", name="Previous event").click()
    expect(old.locator(".now")).to_contain_text("#MC is delivered")
    expect(new.locator(".now")).to_contain_text("#MC is delivered")
    page.get_by_label("step both together").uncheck()
    old.get_by_role("button", name="Next event").click()
    expect(new.locator(".now")).to_contain_text("#MC is delivered")
    assert fits(page)


def test_what_it_draws_of_our_entry(wide: Watched, pages: Path) -> None:
    path = pages / "ours.html"
    data = pages / "ours.json"
    assert main(["view", NESTED, "-o", str(path), "--json", str(data)]) == 0
    commit = next(
        i for i, step in enumerate(json.loads(data.read_text())["runs"][0]["steps"]) if step[0] == COMMIT
    )
    page = wide.open(path, f"#step={commit}")
    drawn = page.locator("svg.proc")
    for words in ("Save 1", "Save 2", "Walk", "Commit", "copy of NMI", "commit", "hit by #MC", "IRET"):
        expect(drawn).to_contain_text(words)
    main_stack = page.get_by_role("region", name="main stack")
    rip = main_stack.locator("tr[data-address]", has_text="user RIP").first
    expect(rip).to_contain_text("NMI")  # whose it is
    expect(rip).to_contain_text("#MC: \N{HORIZONTAL ELLIPSIS}walk_mc")  # who wrote it
    rip.get_by_role("button").click()
    expect(page.locator(".detail")).to_contain_text("copied from")
    page.locator(".detail").get_by_role("button", name="show that slot").click()
    expect(page.locator(".detail")).to_contain_text("NMI stack")
    # behind the commit what lies on IST stacks is free
    expect(page.get_by_role("region", name="MC stack").locator("tr.gap")).to_contain_text("free")


def test_a_whole_search(watched: Watched, whole: Path) -> None:
    page = watched.open(whole)
    expect(page.locator("h1")).to_contain_text("failed")
    function = page.locator("details.func", has_text="asm_exc_nmi").first
    function.locator("summary").click()
    cell = page.get_by_role("button", name="#MC at asm_exc_nmi+0x0", exact=False)
    expect(cell).to_contain_text("\u2715")
    cell.click()
    expect(page.locator(".found")).to_contain_text("the worst is IST001.")
    shown = page.locator(".found .list button").first
    schedule = (shown.text_content() or "").removeprefix("\u25b8 ")
    shown.click()
    expect(page.locator(".picture .run .schedule")).to_have_text(schedule)
    expect(page.locator(".picture tr.lost").first).to_contain_text("LOST")
    assert fits(page)
    page.wait_for_url("**run=*step=*")
    page.reload()  # the fragment names the picture
    expect(page.locator(".picture .run .schedule")).to_have_text(schedule)
    page.locator("details", has_text="kernel/atomic_ist_vector.S").last.locator("summary").click()
    expect(page.locator("table.lines")).to_contain_text("pushq")
    assert fits(page)


def test_names_of_an_image_are_only_text(watched: Watched, pages: Path) -> None:
    config = BareConfig()
    target = load(build(kernel_source(), config, cache_dir()), config)
    entry = target.symbols["asm_exc_nmi"]
    # shorter names win where two are at one address
    named = {n: a for n, a in target.symbols.items() if a != entry} | {HOSTILE[0]: entry}
    named[HOSTILE[1]] = entry + 0x8
    hostile = replace(target, name=HOSTILE[1], build_id=HOSTILE[2], config=HOSTILE, symbols=named)
    recording = record(hostile, parse("user:NMI,MC@atomic_ist_copy_nmi", hostile))
    data = run_data(recording, command=HOSTILE[0], source=lambda _: HOSTILE[1], text=lambda _: HOSTILE[0])
    path = pages / "hostile.html"
    path.write_text(html_page(HOSTILE[1], {"page": "run", "runs": [data]}), encoding="utf-8")
    page = watched.open(path, "#step=1")
    expect(page.locator(".now")).to_contain_text(HOSTILE[0])
    expect(page.locator(".facts").first).to_contain_text(HOSTILE[1])
    expect(page.locator(".src code")).to_have_text(HOSTILE[0])
    for step in (0, 1, 5, 30, 200):
        page.evaluate(f"location.hash = '#step={step}'")
    assert page.title() == HOSTILE[1]
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0


def test_the_policy_lets_nothing_else_run(wide: Watched, hole: Path) -> None:
    page = wide.open(hole)
    page.evaluate(
        """() => {
            window.ran = 0;
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.ran = 2'>");
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") == 0
    assert any("Content Security Policy" in text for text in wide.wrong)
    wide.wrong.clear()


def test_a_long_run(wide: Watched, long: Path, record_property: Callable[[str, object], None]) -> None:
    assert long.stat().st_size < MAX_PAGE
    page = wide.open(long)
    assert page.evaluate("atomicist.views[0].run.length") > 2_000
    times = page.evaluate(
        """() => {
            const view = atomicist.views[0], took = [];
            for (let step = 0; step <= view.run.last; step += 7) {
                const before = performance.now();
                view.go(step);
                document.body.getBoundingClientRect();
                took.push(performance.now() - before);
            }
            took.sort((a, b) => a - b);
            return { median: took[took.length >> 1], worst: took[took.length - 1] };
        }"""
    )
    # a step leaves the rows alone that stay: what is moved is measured again
    moved = page.evaluate(
        """() => {
            const view = atomicist.views[0];
            view.go(1);
            const observer = new MutationObserver(() => {});
            for (const body of document.querySelectorAll("table.slots tbody")) observer.observe(body, { childList: true });
            for (let step = 2; step <= 18; step++) view.go(step);
            return observer.takeRecords().reduce((n, r) => n + r.addedNodes.length + r.removedNodes.length, 0);
        }"""  # noqa: E501
    )
    assert 0 < moved <= 2 * 17
    page.keyboard.press("End")
    # reported, not asserted: another machine, other times
    record_property("bytes", long.stat().st_size)
    record_property("ready_ms", page.evaluate("atomicist.ready"))
    record_property("step_ms", times)
    expect(page.locator("output")).to_contain_text(re.compile(r"step (2,\d{3}) of \1"))


def test_readers_of_the_screen_and_of_paper(watched: Watched, hole: Path) -> None:
    page = watched.open(hole)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, summary, svg[role=img], section, article")]
            .filter((e) => !(e.getAttribute("aria-label") || e.textContent || "").trim()).length"""
    )
    assert nameless == 0
    assert page.locator("html").get_attribute("lang") == "en"
    expect(page.locator("[role=status]")).to_contain_text("step 98 of 315")
    expect(page.locator("tbody th[scope=row], thead th[scope=col]").first).to_be_attached()
    page.emulate_media(media="print")
    expect(page.locator(".controls")).to_be_hidden()
    expect(page.locator("tr.lost").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(browser: Browser, hole: Path, scheme: str) -> None:
    """WCAG's contrast of at least 4.5, of the words on what lies behind them."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 860})  # type: ignore[arg-type]
    page = Watched(context.new_page()).open(hole)
    low = page.evaluate(
        """() => {
            const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 && m[3] === 0 ? null : m; };
            const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c) return c; } return [255, 255, 255]; };
            const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const bad = [];
            for (const e of document.querySelectorAll("#page *:not(svg *)")) {
                if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
                const a = light(parse(getComputedStyle(e).color).slice(0, 3)), b = light(behind(e).slice(0, 3));
                const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                if (ratio < 4.5) bad.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
            }
            return bad;
        }"""  # noqa: E501
    )
    context.close()
    assert low == []
