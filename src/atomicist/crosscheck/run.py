# SPDX-License-Identifier: GPL-2.0-only
"""Compares the engines on every form of some images: so many random states each.

All states go through the native model (compiled, and interpreted), Unicorn and, if asked, the processor;
the reference interpreter, which is slow, gets a stated share of them.  The work is cut into groups of
forms, each a compilation and a process; finished forms are kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from atomicist.crosscheck import engines
from atomicist.crosscheck.engines import BATCH, HOST, INTERPRETER, NO_OPINION, STOPPED, UNICORN, Host, Native
from atomicist.crosscheck.forms import BAD, Form
from atomicist.crosscheck.generate import Drawn, Generator
from atomicist.crosscheck.states import Prepared
from atomicist.crosscheck.undefined import RULES
from atomicist.isa.ir import Insn
from atomicist.isa.lift import Lifter
from atomicist.isa.registers import BY_SLOT
from atomicist.spec.properties import CODES

MAX_ENCODINGS: Final = 48
"""Encodings of one form that are compared; the branches of a form differ in nothing but their distance."""

GROUP: Final = 6
"""Forms in one compilation."""

MAX_MISMATCHES: Final = 5
"""Of one form, that are told in words."""


@dataclass(frozen=True, slots=True)
class Options:
    """``states`` of each form, of which ``reference`` go through the reference interpreter as well."""

    states: int = 100_000
    reference: int = 1_000
    unicorn: bool = True
    host: bool = False
    workers: int = 1
    seconds: float = 0


@dataclass(slots=True)
class FormResult:
    """What was compared of one form: how many states each engine ran, and what differed.

    ``compiled`` of the states ran in compiled code, the others in the native interpreter; in ``stopped``
    the instruction faults or is refused.  ``open``: states in which something is undefined, and ``sections``
    of the manual that say so.  ``alone``: why no other engine is asked, if none is.  ``key``: of its
    encodings, for a result that is kept."""

    name: str
    encodings: int
    encodings_known: int
    images: list[str]
    states: int = 0
    compiled: int = 0
    stopped: int = 0
    reference: int = 0
    unicorn: int = 0
    host: int = 0
    open: int = 0
    sections: list[str] = field(default_factory=list)
    mismatches: int = 0
    words: list[str] = field(default_factory=list)
    alone: str = ""
    key: str = ""


def spread(encodings: Sequence[bytes]) -> list[bytes]:
    """At most `MAX_ENCODINGS` of them, evenly."""
    count = len(encodings)
    if count <= MAX_ENCODINGS:
        return list(encodings)
    return [encodings[i * count // MAX_ENCODINGS] for i in range(MAX_ENCODINGS)]


def _how(p: Prepared) -> int:
    prefix, _, stem = p.insn.mnemonic.rpartition(" ")
    how = engines.TRY_HOST if engines.may_run_on_host(p) else 0
    if prefix.startswith("rep") and stem != "ret":
        how |= engines.REPEATS
        if stem[:4] in ("cmps", "scas"):
            how |= engines.WHILE_UNEQUAL if prefix == "repne" else engines.WHILE_EQUAL
    return how


class _Group:
    """Some forms in one `Native`."""

    def __init__(self, some: Sequence[Form], options: Options, lifter: Lifter) -> None:
        self.options = options
        self.forms = {form.name: spread(form.encodings) for form in some}
        encodings = [raw for chosen in self.forms.values() for raw in chosen]
        self.native = Native(lifter, encodings)
        self.host = Host() if options.host else None
        if options.unicorn:
            self.native.ask_unicorn()
        if self.host is not None:
            self.native.ask_host(self.host)

    def close(self) -> None:
        self.native.close()
        if self.host is not None:
            self.host.close()

    def compare(self, form: Form, first: int) -> FormResult:
        """All states of ``form``, whose first encoding is number ``first``."""
        count = len(self.forms[form.name])
        result = FormResult(form.name, count, len(form.encodings), list(form.images), key=encodings_key(form))
        mine = self.native.prepared[first : first + count]
        makers = [Generator(p, insn, f"{p.raw.hex()}") for p, insn in mine]
        hows = [_how(p) for p, _ in mine]
        # each encoding in a row of batches; a share of each batch for the reference
        share = max(1, self.options.states // max(1, self.options.reference))
        done = 0
        while done < self.options.states:
            size = min(BATCH, self.options.states - done)
            drawn = []
            for at in range(size):
                n = (done + at) % count
                state = makers[n]()
                how = hows[n] | (engines.OPEN_MEMORY if state.open_memory else 0)
                if self.options.unicorn and engines.may_ask_unicorn(mine[n][0], state):
                    how |= engines.TRY_UNICORN
                if state.system:
                    how |= engines.SYSTEM_STATE
                self.native.fill(at, first + n, state, how)
                drawn.append((n, state))
            self.native.run(size)
            self._judge(result, drawn, mine, done, share)
            done += size
        result.states = done
        stem = form.name.split()[0]
        if not result.unicorn and not result.host:
            result.alone = NO_OPINION.get(stem, "no other engine was asked")
        if result.open:
            result.sections = [rule.section for rule in RULES if form.name.split()[0] in rule.mnemonics]
        return result

    def _judge(
        self, result: FormResult, drawn: list[tuple[int, Drawn]], mine: Sequence[tuple[Prepared, Insn]],
        done: int, share: int,
    ) -> None:  # fmt: skip
        for at, (n, state) in enumerate(drawn):
            outcome = self.native.outcomes[at]
            asked = outcome.asked
            result.unicorn += asked >> UNICORN & 1
            result.host += asked >> HOST & 1
            result.compiled += not outcome.refused
            result.stopped += outcome.status == STOPPED
            result.open += bool(state.open_ or state.open_memory)
            if outcome.engine:
                self._mismatch(result, mine[n][0], done + at, _words(outcome))
            if (done + at) % share == share - 1:
                result.reference += 1
                words = self._refer(outcome, state)
                if words:
                    self._mismatch(result, mine[n][0], done + at, f"reference: {words}")

    @staticmethod
    def _mismatch(result: FormResult, p: Prepared, number: int, words: str) -> None:
        result.mismatches += 1
        if len(result.words) < MAX_MISMATCHES:
            result.words.append(f"{p.text} state {number}: {words}")

    def _refer(self, outcome: Any, state: Drawn) -> str:
        why, registers, arena = self.native.reference(state)
        if bool(why) != (outcome.status == STOPPED):
            return f"{why or 'goes on'}; native status {outcome.status}"
        if why:
            unknown = outcome.property == CODES["UNMODELLED"]
            return "" if unknown == (why == "unknown") else f"{why}; native property {outcome.property}"
        found = outcome.r[:]
        if registers != found:
            slot, one, other = next(
                (n, a, b) for n, (a, b) in enumerate(zip(registers, found, strict=True)) if a != b
            )
            return f"{BY_SLOT[slot]} {one:#x}, native {other:#x}"
        return "" if self.native.hash(arena) == outcome.hash else "memory differs"


def _words(outcome: Any) -> str:
    engine = {INTERPRETER: "native interpreter", UNICORN: "unicorn", HOST: "processor"}[outcome.engine]
    place = engines.PLACES.get(outcome.place) or BY_SLOT[outcome.place]
    return f"{engine}: {place} {outcome.ours:#x} ours, {outcome.theirs:#x} theirs"


def compare_forms(some: Sequence[Form], options: Options) -> list[FormResult]:
    """Compare ``some`` in this process. Raises `BuildError` or `MissingError`."""
    group = _Group(some, options, Lifter())
    try:
        results, first = [], 0
        for form in some:
            results.append(group.compare(form, first))
            first += len(group.forms[form.name])
        return results
    finally:
        group.close()


_OTHER: Final = frozenset(
    """
    walker.py walks.py walked_memory.py by_hand.py document.py
    api.c certify.c enumerate.c free.c observe.c shadow.c search.h
    """.split()  # noqa: SIM905 - it reads better
)
"""Files of the rooms below that have nothing to do with single instructions: walks, and the search."""


def key_of(options: Options) -> str:
    """A name for the run: forms compared in the same way, by the same code."""
    key = hashlib.sha256(repr((options.states, options.reference, options.unicorn, options.host)).encode())
    rooms = ("crosscheck", "isa", "machine", "native", "runtime")
    for place in sorted(Path(__file__).parents[1].rglob("*")):
        if place.suffix in (".py", ".c", ".h") and place.parent.name in rooms and place.name not in _OTHER:
            key.update(place.read_bytes())
    return key.hexdigest()[:24]


def encodings_key(form: Form) -> str:
    """A name for the encodings of a form; which images have them is no part of it."""
    return hashlib.sha256(repr(form.encodings).encode()).hexdigest()[:16]


class Kept:
    """Finished forms, in a file that is the old or the new one."""

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self.results: dict[str, FormResult] = {}
        if place is not None:
            try:
                known = json.loads(place.read_text())
                self.results = {name: FormResult(**fields) for name, fields in known.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                self.results = {}

    def add(self, results: Sequence[FormResult]) -> None:
        """Keep ``results``; a place that cannot be written is no error."""
        self.results |= {result.name: result for result in results}
        if self._place is None:
            return
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            new = self._place.with_suffix(f".{multiprocessing.current_process().pid}")
            new.write_text(json.dumps({name: asdict(r) for name, r in self.results.items()}))
            new.replace(self._place)
        except OSError:
            self._place = None


Told = Callable[[int, int, int], None]
"""Told of forms done, forms in all, mismatches."""


def crosscheck(
    some: Sequence[Form], options: Options, kept: Kept, told: Told
) -> tuple[list[FormResult], bool]:
    """Compare all of ``some``: results by name, and whether all were compared before the time was up."""
    for form in some:
        if form.name == BAD:
            nothing = FormResult(
                form.name,
                0,
                len(form.encodings),
                list(form.images),
                alone=NO_OPINION[BAD],
                key=encodings_key(form),
            )
            kept.results[form.name] = nothing
    known = {form.name: form for form in some}
    for name, result in list(kept.results.items()):
        if name in known and result.key != encodings_key(known[name]):
            del kept.results[name]
        elif name in known:
            result.images = list(known[name].images)
    todo = [form for form in some if form.name not in kept.results]
    # Long groups first would need an estimate; a mixture is good enough.
    groups = [todo[i :: -(-len(todo) // GROUP)] for i in range(-(-len(todo) // GROUP))] if todo else []
    end = time.monotonic() + options.seconds if options.seconds else None

    def tell() -> None:
        mine = [kept.results[form.name] for form in some if form.name in kept.results]
        told(len(mine), len(some), sum(r.mismatches for r in mine))

    tell()
    for results in _groups(groups, options, end):
        kept.add(results)
        tell()
    found = [kept.results[form.name] for form in some if form.name in kept.results]
    return found, len(found) == len(some)


def _groups(
    groups: Sequence[Sequence[Form]], options: Options, end: float | None
) -> Iterator[list[FormResult]]:
    def late() -> bool:
        return end is not None and time.monotonic() > end

    if options.workers <= 1 or len(groups) <= 1:
        for group in groups:
            if late():
                return
            yield compare_forms(group, options)
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(options.workers, maxtasksperchild=1) as pool:
        pending: list[Any] = []
        waiting = list(groups)
        while waiting or pending:
            while waiting and len(pending) < options.workers and not late():
                pending.append(pool.apply_async(compare_forms, (waiting.pop(0), options)))
            if not pending:
                return
            done = [p for p in pending if p.ready()]
            pending = [p for p in pending if p not in done]
            for p in done:
                yield p.get()
            if not done:
                time.sleep(0.05)


def undefined_sections(results: Sequence[FormResult]) -> Counter[str]:
    """How many states each section of the manual left something open in."""
    found: Counter[str] = Counter()
    for result in results:
        for section in result.sections:
            found[section] += result.open
    return found
