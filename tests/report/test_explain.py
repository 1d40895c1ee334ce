# SPDX-License-Identifier: GPL-2.0-only
"""A counterexample is explained so that one sees what was lost, by whom, and whose task it was."""

import shutil
from pathlib import Path

import pytest

from atomicist.image import bare
from atomicist.image.bare import BareConfig
from atomicist.image.source_lines import SourceLines
from atomicist.native.build import cache_dir
from atomicist.report.explain import Explanation, trace
from atomicist.report.history import History
from atomicist.report.values import Values
from atomicist.search.replay import Replay, replay
from atomicist.search.schedule import parse
from atomicist.spec.events import ERROR_TOKEN
from atomicist.spec.instance import POISON
from tests.report.results import ENTRY, HOSTILE, INTERRUPTED, TOP, overwritten


def flat(text: str) -> str:
    """Without line breaks and indents."""
    return " ".join(text.split())


def explained(
    shown: Replay, width: int = 80, *, ascii_only: bool = True, lines: SourceLines | None = None
) -> str:
    source = lines or SourceLines(None)
    made = Explanation(shown, width, ascii_only=ascii_only, source=source)
    return "\n".join(line.text for line in made.lines())


@pytest.fixture(scope="module")
def broken_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our entry with < for <= in "had finished save 2"."""
    tree = tmp_path_factory.mktemp("broken") / "kernel"
    shutil.copytree(bare.kernel_source(), tree)
    source = (tree / "atomic_ist.c").read_text(encoding="utf-8")
    changed = source.replace("if (sp <= (unsigned long)next)", "if (sp < (unsigned long)next)")
    assert changed != source
    (tree / "atomic_ist.c").write_text(changed, encoding="utf-8")
    return bare.build(tree, BareConfig(), cache_dir())


@pytest.fixture(scope="module")
def broken(broken_image: Path) -> Replay:
    target = bare.load(broken_image, BareConfig(), "broken")
    return replay(target, parse("user:NMI,MC@atomic_ist_copy_nmi", target))


def test_the_story_of_a_broken_entry(broken: Replay, broken_image: Path) -> None:
    text = flat(explained(broken, lines=SourceLines(broken_image)))
    for part in (
        "Counterexample: user:NMI,MC@atomic_ist_copy_nmi",
        "1. The NMI arrives in user mode. Hardware pushes SS, RSP, RFLAGS, CS, RIP on nmi_stack",
        "2. The #MC arrives at atomic_ist_copy_nmi",
        "[kernel/atomic_ist.c:",
        "the NMI has not committed",
        "commit at atomic_ist_committed_mc",
        "This commits the NMI and the #MC.",
        "exc_nmi(), the handler of NMI, is called. Here it shows.",
        "IST001: the handler sees exactly the interrupted context",
        "RDI expected: 0xa70a11c0de075a07, the user context's RDI",
        "an address on nmi_stack, 168 bytes below its top",
        'The right value was saved at 0xfffffe0000008fc8 on nmi_stack by asm_exc_nmi+0x6 "push rdi"',
        "It was there until atomic_ist_committed_mc",
        "here it was for the #MC to copy the frame and the original registers of the NMI to the main stack",
        "<-- the right value",
        "<-- LOST: wrong",
    ):
        assert part in text, part


def test_a_frame_that_was_overwritten() -> None:
    text = explained(overwritten())
    said = flat(text)
    assert "RSP, RFLAGS, RIP and SS" not in said
    for part in (
        "The second NMI arrives at asm_exc_nmi: right behind the IRET at asm_exc_nmi+0x8",
        "SS, RSP, RFLAGS and RIP were overwritten by the hardware delivery of the second NMI",
        "the stack of its gate starts at the same top of nmi_stack again",
        "It was the IRET of the first NMI at asm_exc_nmi+0x8 that let the second NMI in.",
        f"There is no other copy of RIP ({INTERRUPTED:#x}) and RSP",
        "Before: the first NMI is in progress",
        "After: overwritten by the second NMI",
    ):
        assert part in said, part
    rows = [line for line in text.splitlines() if "LOST" in line]
    assert [row.split("|")[1].split()[0] for row in rows] == ["SS", "RSP", "RFLAGS", "RIP"]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_lines_fit(broken: Replay, width: int, ascii_only: bool) -> None:
    for shown in (broken, overwritten()):
        text = explained(shown, width, ascii_only=ascii_only)
        assert text.isascii() == ascii_only
        assert [line for line in text.splitlines()[1:] if len(line) > width and " " in line.strip()] == []


def test_two_pictures_stand_side_by_side_where_there_is_room() -> None:
    both = [line for line in explained(overwritten(), 180).splitlines() if "Before:" in line]
    assert "After:" in both[0]


def test_nothing_lost(broken: Replay) -> None:
    fine = replay(broken.target, parse("user:NMI", broken.target))
    text = flat(explained(fine))
    assert "Nothing is violated: the interrupted context runs again, unchanged" in text
    assert "LOST" not in text


def test_hostile_names_do_nothing() -> None:
    shown = overwritten(HOSTILE, HOSTILE, HOSTILE)
    for line in [*Explanation(shown, 80).lines(), *trace(shown, source=lambda _: HOSTILE)]:
        assert line.text.isprintable()
    assert "[red]" in explained(shown)


def test_trace_has_every_step(broken: Replay) -> None:
    lines = [line.text for line in trace(broken)]
    assert len(lines) == len(broken.steps)
    assert "--- deliver: NMI ---" in lines[0]
    assert lines[1].split()[1:] == ["asm_exc_nmi", "clac"]


def test_values() -> None:
    values = Values(History(overwritten()))
    assert values.short(INTERRUPTED) == "interrupted RIP"
    assert values.short(TOP) == "nmi_stack top"
    assert values.short(TOP - 40) == "nmi_stack top-0x28"
    assert values.short(0x10, "CS") == "kernel CS"
    assert values.short(0x33, "CS") == "user CS"
    assert values.short(0x202, "RFLAGS") == "IF"
    assert values.short((1 << 64) - 1) == "placeholder -1"
    assert values.short(ERROR_TOKEN) == "#VC's error code"
    assert values.short(POISON | 0x8FD8) == "freed memory"
    assert values.short(POISON | 0xF0F0F0) == "handler's leftover"
    assert values.short(7) == ""


def test_history_knows_who_did_what() -> None:
    history = History(overwritten())
    first, second = history.deliveries
    assert (first.who, second.who) == ("the first NMI", "the second NMI")
    assert second.inside == first.number
    assert second.handled == 3
    assert first.handled == -1
    assert history.affected() is first
    assert [d.slot for d in history.damage(first)] == ["RIP", "RFLAGS", "RSP", "SS"]
    assert history.damage(second) == []


def test_source_lines_are_never_in_the_way(tmp_path: Path, broken_image: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x7fELF" + bytes(range(256)) * 40)
    for path in (None, tmp_path, tmp_path / "missing", junk):
        assert SourceLines(path)(ENTRY) == ""
    lines = SourceLines(broken_image)
    assert lines(0) == ""
    target = bare.load(broken_image, BareConfig())
    found = lines(target.symbols["asm_exc_nmi"])
    assert found.startswith("kernel/atomic_ist_vector.S:")
    assert lines(target.symbols["atomic_ist_walk_nmi"]).startswith("kernel/atomic_ist.c:")
