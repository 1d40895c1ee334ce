# SPDX-License-Identifier: GPL-2.0-only
"""`crosscheck` on single instructions: the engines agree, and a planted error in any of them is seen."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from atomicist.cli.main import main
from atomicist.crosscheck import engines
from atomicist.crosscheck.document import markdown
from atomicist.crosscheck.engines import Host, MissingError, Native, import_unicorn
from atomicist.crosscheck.forms import BAD, Form, form_of, forms
from atomicist.crosscheck.generate import Generator
from atomicist.crosscheck.run import FormResult, Kept, Options, compare_forms, crosscheck, key_of, spread
from atomicist.image.bare import BareConfig, build, kernel_source, load
from atomicist.isa.arithmetic import PURE
from atomicist.isa.ir import Code
from atomicist.isa.lift import Lifter
from atomicist.isa.registers import REGISTERS
from atomicist.machine.target import Target
from atomicist.native import expressions
from atomicist.native.build import BuildError, cache_dir
from tests.cli.command import run

QUICK = (
    "add reg64, imm64", "bt mem64gs, reg64", "btr mem64gs, reg64", "cmp reg64, reg64", "iretq", "pushfq",
    "mov reg64cr3, reg64", "popfq", "push mem64", "rep movsq mem64, mem64", "shr reg64, imm8", "swapgs",
    "lsl reg64, reg32", "rep stosq mem64, reg64", "sysretq", "wrgsbase reg64", "wrmsr", "xor reg32, reg32",
)  # fmt: skip


@pytest.fixture(scope="module")
def entry() -> Target:
    config = BareConfig()
    return load(build(kernel_source(), config, cache_dir()), config)


def host_works() -> bool:
    try:
        Host().close()
    except (MissingError, BuildError):
        return False
    return True


def test_forms_of_the_entry(entry: Target) -> None:
    found = forms([entry])
    names = {form.name for form in found}
    assert {"iretq", "push reg64", "mov mem64gs, reg64", "jb imm64"} <= names
    assert sum(len(form.encodings) for form in found) > 300
    assert {raw for form in found for raw in form.encodings} == {
        i.raw for va, i in entry.insns.items() if va not in entry.handlers
    }
    assert form_of(b"\x06") == BAD
    assert form_of(bytes.fromhex("65488b042508100000")) == "mov reg64, mem64gs"


def test_engines_agree_on_the_entry(entry: Target) -> None:
    some = tuple(f for f in forms([entry]) if f.name in QUICK)
    assert len(some) >= 10
    options = Options(states=400, reference=40, host=host_works())
    results = [r for half in (some[::2], some[1::2]) for r in compare_forms(half, options)]
    assert not [words for r in results for words in r.words]
    assert all(r.states == 400 and r.reference == 40 for r in results)
    for r in results:
        asked = r.unicorn or r.host
        assert asked or r.alone in engines.NO_OPINION.values(), r.name
        assert r.compiled > 40, r.name
    # what is left open is said, with its section
    undefined = {r.name: r.sections for r in results if r.open}
    assert any("SDM" in s or "vol. 2" in s for sections in undefined.values() for s in sections)


@pytest.mark.parametrize("engine", ["compiled", "interpreted", "reference"])
def test_a_planted_error_is_seen(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine says XOR for OR; the others tell."""
    raw = bytes.fromhex("4809d8")  # or rax, rbx
    if engine == "compiled":
        right = expressions._BINARY[Code.INT_OR]
        monkeypatch.setitem(expressions._BINARY, Code.INT_OR, lambda a, b: f"({right(a, b)}) ^ 1")
        wanted = "native interpreter"
    elif engine == "interpreted":
        lift = Lifter.lift

        def wrong(self: Lifter, va: int, code: bytes):  # type: ignore[no-untyped-def]
            insn = lift(self, va, code)
            ops = tuple(
                dataclasses.replace(o, code=Code.INT_XOR) if o.code is Code.INT_OR else o for o in insn.ops
            )
            return dataclasses.replace(insn, ops=ops)

        monkeypatch.setattr(Lifter, "lift", wrong)
        wanted = "unicorn"
    else:
        monkeypatch.setitem(PURE, Code.INT_OR, PURE[Code.INT_XOR])
        wanted = "reference"
    (result,) = compare_forms([Form("or reg64, reg64", (raw,), ("x",))], Options(states=60, reference=60))
    assert result.mismatches
    assert any(wanted in words for words in result.words), result.words


def test_what_is_undefined_is_not_compared_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rules, the engines differ in AF; with them they do not."""
    form = Form("shr reg64, imm8", (bytes.fromhex("48c1e805"),), ("x",))
    options = Options(states=100, reference=10, host=False)
    assert not compare_forms([form], options)[0].mismatches
    monkeypatch.setattr("atomicist.crosscheck.generate.undefined", lambda *_: frozenset())
    (result,) = compare_forms([form], options)
    assert result.mismatches
    assert "flags" in result.words[0]


def test_states_are_the_same_for_the_same_seed_and_favour_edges() -> None:
    native = Native(Lifter(), [bytes.fromhex("4801d8")])
    p, insn = native.prepared[0]
    one, two, other = Generator(p, insn, "a"), Generator(p, insn, "a"), Generator(p, insn, "b")
    first = [one().file for _ in range(300)]
    assert first == [two().file for _ in range(300)]
    assert first != [other().file for _ in range(300)]
    values = [file[REGISTERS["RAX"].slot] for file in first]
    assert values.count(0) + values.count(1) > 1
    assert len(set(values)) > 150
    native.close()


def test_encodings_are_spread() -> None:
    many = [bytes([n]) for n in range(200)]
    assert spread(many[:5]) == many[:5]
    chosen = spread(many)
    assert len(chosen) == 48
    assert chosen[0] == many[0]
    assert chosen[-1] >= many[190]


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    some = [Form(f"f{n}", (bytes([0x48, 0x01, 0xC0 + n]),), ("x",)) for n in range(14)]
    options = Options(states=10, reference=5, seconds=1e-9)
    place = tmp_path / "kept.json"
    none, complete = crosscheck(some, options, Kept(place), lambda *_: None)
    assert not complete
    half = compare_forms(some[:7], options)
    Kept(place).add(half)
    results, complete = crosscheck(
        some, dataclasses.replace(options, seconds=0), Kept(place), lambda *_: None
    )
    assert complete
    assert [r.name for r in results] == [f.name for f in some]
    assert results[:7] == half
    assert not none
    place.write_text(place.read_text()[:50])
    assert Kept(place).results == {}
    assert key_of(options) != key_of(dataclasses.replace(options, states=11))


def test_what_is_kept_is_of_the_same_encodings(tmp_path: Path) -> None:
    """Another image that has them is no reason to compare them again; another encoding is."""
    form = Form("add", (bytes.fromhex("4801c0"),), ("x",))
    options, place = Options(states=10, reference=5), tmp_path / "kept.json"
    first, _ = crosscheck([form], options, Kept(place), lambda *_: None)
    asked: list[int] = []
    moved = dataclasses.replace(form, images=("y", "z"))
    again, _ = crosscheck([moved], options, Kept(place), lambda done, *_: asked.append(done))
    assert asked == [1]
    assert again[0].images == ["y", "z"]
    more = dataclasses.replace(form, encodings=(*form.encodings, bytes.fromhex("4801c1")))
    other, _ = crosscheck([more], options, Kept(place), lambda done, *_: asked.append(done))
    assert asked == [1, 0, 1]
    assert other[0].key != first[0].key


def test_two_workers_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomicist.crosscheck.run.GROUP", 2)
    some = [Form(f"f{n}", (bytes([0x48, 0x01, 0xC0 + n]),), ("x",)) for n in range(4)]
    one, two = (
        crosscheck(some, Options(states=20, reference=5, workers=n), Kept(None), lambda *_: None)[0]
        for n in (1, 2)
    )
    assert one == two


def test_the_document_says_what_was_compared_and_what_differs() -> None:
    alone = FormResult("hlt", 1, 1, ["b"], 50, 0, 50, 50, alone=engines.NO_OPINION["hlt"])
    wrong = FormResult("add", 2, 9, ["a", "b"], 50, 50, 0, 50, 50, 40, mismatches=1, words=["add x: differs"])
    options = Options(states=50, reference=50)
    text = markdown([wrong, alone], options, {"processor": "some"}, complete=False)
    assert "| mismatches | 1 |" in text
    assert "- add x: differs" in text
    assert "| `add` | 2 of 9 | 50 | 50 | 50 | 40 | 0 | 1 |" in text
    assert f"- `hlt`: {engines.NO_OPINION['hlt']}" in text
    assert "was cut short" in text
    assert "was cut short" not in markdown([alone], options, {}, complete=True)


def test_unicorn_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(MissingError, match=r"pip install 'atomicist\[crosscheck\]'"):
        import_unicorn()


@pytest.mark.slow
def test_the_verb() -> None:
    done = run("crosscheck", "--states", "50", "--reference", "5", "--fresh", "--json", "--workers", "2")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["mismatches"] == 0
    assert document["complete"]
    assert len(document["compared"]) == document["forms"]
    again = run("crosscheck", "--states", "50", "--reference", "5", "--workers", "2")
    assert again.returncode == 0
    assert "PASSED: all engines agree" in again.stdout
    assert "No second opinion" in again.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--states", "0"), "at least 1"),
        (("--everything", "--specimen", "naive"), "leave out --specimen"),
        (("--everything", "--kernel", "nowhere"), "no such file"),
    ],
)
def test_bad_usage(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("atomicist.cli.crosscheck.specimens.specimens", tuple)
    if words[:2] == ("--everything", "--kernel"):
        monkeypatch.setattr("atomicist.cli.crosscheck.entries", tuple)
    assert main(["crosscheck", *words]) == 2
    assert message in capsys.readouterr().err
