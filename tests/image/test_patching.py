# SPDX-License-Identifier: GPL-2.0-only
"""The text after boot: small sites by hand, the whole image against the kernel's own patching code."""

import struct

import pytest

from atomicist.image import features
from atomicist.image.alternatives import patch, site_lists
from atomicist.image.errors import ImageError
from atomicist.image.kernel import Kernel, parse_kernel
from atomicist.image.nops import NOPS, nops, optimise_nops
from tests.image import builders
from tests.image.builders import BASE
from tests.image.kernel_patcher import KernelPatcher

SITE, SPARE, LIST = BASE + 0x100, BASE + 0x800, BASE + 0xC00
PTI, NOT_PTI = 7 * 32 + 11, 7 * 32 + 11 | 1 << 15


def tiny(
    site: bytes, spare: bytes = b"", *entries: tuple[int, int, int, int, int], **lists: tuple[str, bytes]
) -> Kernel:
    """A kernel of one page: `site`, `spare`, and alt_instr entries (site, replacement, feature, lengths)."""
    page = bytearray(4096)
    page[0x100 : 0x100 + len(site)] = site
    page[0x800 : 0x800 + len(spare)] = spare
    at = 0xC00
    for where, replacement, feature, length, new in entries:
        struct.pack_into(
            "<iiHBB", page, at, where - BASE - at, replacement - BASE - at - 4, feature, length, new
        )
        at += 12
    symbols = {
        "_text": BASE,
        "_etext": BASE + 4096,
        "__alt_instructions": LIST,
        "__alt_instructions_end": BASE + at,
    }
    at = 0xE00
    for name, (end, body) in lists.items():
        page[at : at + len(body)] = body
        symbols |= {name: BASE + at, end: BASE + at + len(body)}
        at += len(body)
    symbols |= {"__x86_return_thunk": BASE + 0x20, "srso_return_thunk": BASE + 0x40}
    symbols |= {"retbleed_return_thunk": BASE + 0x60, "its_return_thunk": BASE + 0x80}
    symbols |= {"__x86_indirect_thunk_array": BASE + 0x400}
    return parse_kernel(builders.elf({BASE: bytes(page)}, symbols))


def after(kernel: Kernel, length: int, *names: str) -> str:
    return patch(kernel, frozenset(names)).read(SITE, length).hex()


def test_replacement_depends_on_the_feature() -> None:
    kernel = tiny(b"\xeb\x10", b"", (SITE, SPARE, PTI, 2, 0))
    assert after(kernel, 2) == "eb10"
    assert after(kernel, 2, "PTI") == "6690"
    kernel = tiny(b"\x90" * 3, b"\x0f\x01\xca", (SITE, SPARE, NOT_PTI, 3, 3))
    assert after(kernel, 3, "PTI") == "0f1f00"
    assert after(kernel, 3) == "0f01ca"


def test_a_patch_names_its_feature() -> None:
    text = patch(tiny(b"\x90" * 3, b"\x0f\x01\xca", (SITE, SPARE, NOT_PTI, 3, 3)), frozenset())
    (only,) = text.patches_in(SITE, SITE + 1)
    assert (only.va, only.before, only.after, only.kind, only.feature) == (
        SITE, b"\x90" * 3, b"\x0f\x01\xca", "alternative", "!PTI",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("opcode", "target", "result"),
    [
        (0xE8, SITE + 64, b"\xe8" + struct.pack("<i", 64 - 5)),
        (0xE9, SITE + 64, b"\xeb\x3e" + NOPS[3]),
        (0xE9, SITE + 129, b"\xeb\x7f" + NOPS[3]),
        (0xE9, SITE + 130, b"\xe9" + struct.pack("<i", 125)),
        (0xE9, SITE - 16, b"\xe9" + struct.pack("<i", -21)),  # the kernel never shortens a jump backwards
    ],
)
def test_moved_branches_arrive(opcode: int, target: int, result: bytes) -> None:
    spare = bytes([opcode]) + struct.pack("<i", target - SPARE - 5)
    assert after(tiny(b"\x90" * 5, spare, (SITE, SPARE, PTI, 5, 5)), 5, "PTI") == result.hex()


def test_a_later_entry_overwrites_an_earlier_one() -> None:
    kernel = tiny(b"\x90" * 3, b"\xfc\xfd", (SITE, SPARE, PTI, 3, 1), (SITE, SPARE + 1, PTI, 3, 1))
    assert after(kernel, 3, "PTI") == "fd6690"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((SITE, SPARE, PTI, 2, 3), "not 6.1's"),
        ((SITE, SPARE, 24 * 32, 2, 2), "not 6.1's"),
        ((SITE, SPARE, PTI, 255, 2), "not 6.1's"),
        ((BASE - 8, SPARE, PTI, 2, 2), "no segment"),
        ((SITE, BASE + 8192, PTI, 2, 2), "no segment"),
    ],
)
def test_impossible_entries_are_refused(entry: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        patch(tiny(b"\x90" * 8, b"", entry), frozenset({"PTI"}))


def returns(site: bytes, count: int = 1) -> Kernel:
    record = struct.pack("<i", SITE - BASE - 0xE00)
    return tiny(site, b"", __return_sites=("__return_sites_end", record * count))


@pytest.mark.parametrize(
    ("names", "target"),
    [
        ((), 0),
        (("RETHUNK",), BASE + 0x20),
        (("RETHUNK", "UNRET"), BASE + 0x60),
        (("RETHUNK", "UNRET", "SRSO"), BASE + 0x40),
        (("RETHUNK", "BUG_ITS"), BASE + 0x80),
    ],
)
def test_returns(names: tuple[str, ...], target: int) -> None:
    kernel = returns(b"\xe9" + struct.pack("<i", 0x20 - 0x105))
    wanted = b"\xe9" + struct.pack("<i", target - SITE - 5) if target else b"\xc3\xcc\xcc\xcc\xcc"
    assert after(kernel, 5, *names) == wanted.hex()


def test_a_return_site_that_is_none_is_refused() -> None:
    with pytest.raises(ImageError, match="no jump to the return thunk"):
        patch(returns(b"\xe9\0\0\0\0"), frozenset())
    odd = tiny(b"", b"", __return_sites=("__return_sites_end", bytes(6)))
    with pytest.raises(ImageError, match="not a list"):
        patch(odd, frozenset())


def retpoline(code: bytes, register: int) -> Kernel:
    code += struct.pack("<i", 0x400 + 32 * register - 0x100 - len(code) - 4)
    record = struct.pack("<i", SITE - BASE - 0xE00)
    return tiny(code, b"", __retpoline_sites=("__retpoline_sites_end", record))


@pytest.mark.parametrize(
    ("code", "register", "names", "result"),
    [
        (b"\xe8", 0, (), "ffd00f1f00"),
        (b"\x2e\xe8", 11, (), "41ffd30f1f00"),
        (b"\xe9", 2, (), "ffe2cc6690"),
        (b"\x0f\x84", 0, (), "7504ffe0cc90"),
        (b"\xe8", 0, ("RETPOLINE", "RETPOLINE_LFENCE"), "0faee8ffd0"),
    ],
)
def test_retpolines(code: bytes, register: int, names: tuple[str, ...], result: str) -> None:
    assert after(retpoline(code, register), len(result) // 2, *names) == result
    untouched = code.hex()
    assert after(retpoline(code, register), len(code), "RETPOLINE") == untouched


@pytest.mark.parametrize(("code", "register"), [(b"\x90", 0), (b"\xe8", 4), (b"\xe8", 17)])
def test_a_retpoline_site_that_is_none_is_refused(code: bytes, register: int) -> None:
    with pytest.raises(ImageError, match="retpoline site"):
        patch(retpoline(code, register), frozenset())


def test_nops() -> None:
    assert [len(text) for text in NOPS] == list(range(9))
    assert nops(13) == NOPS[8] + NOPS[5]
    assert optimise_nops(b"\x90") == b"\x90"
    assert optimise_nops(b"\x90" * 3 + b"\xc3" + b"\x90" * 2) == NOPS[3] + b"\xc3" + NOPS[2]
    # The operand is not a run of NOPs; nothing after a byte that is no instruction is looked at.
    assert optimise_nops(b"\xb8" + b"\x90" * 4) == b"\xb8" + b"\x90" * 4
    assert optimise_nops(b"\x06\x90\x90") == b"\x06\x90\x90"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"PTY"}, "unknown CPU feature 'PTY'"),
        ({"pti"}, "unknown CPU feature"),
        ({"UNRET"}, "only together with RETHUNK"),
        ({"SRSO", "SRSO_ALIAS", "UNRET", "RETHUNK"}, "exclude each other"),
    ],
)
def test_feature_names(names: set[str], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        features.feature_set(names)


def test_feature_numbers_are_the_kernels(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = kernel.symbol("x86_cap_flags"), kernel.symbol("x86_bug_flags")
    assert features.check_numbers(kernel.elf, *flags) > 50
    # PTI where the kernel has "hw_pstate": a table of another version must not pass.
    monkeypatch.setitem(features.NUMBERS, "PTI", 7 * 32 + 8)
    with pytest.raises(ImageError, match="its numbers are not those"):
        features.check_numbers(kernel.elf, *flags)


AMD = "RETPOLINE SRSO_ALIAS RETHUNK UNRET ENTRY_IBPB SMAP FSGSBASE ERMS FSRM REP_GOOD CLEAR_CPU_BUF LA57"
INTEL = "PTI PCID SMAP FSGSBASE KERNEL_IBRS FENCE_SWAPGS_USER FENCE_SWAPGS_KERNEL"
ITS = "INDIRECT_THUNK_ITS RETHUNK CLEAR_BHB_LOOP"


def differing(kernel: Kernel, patcher: KernelPatcher, names: frozenset[str]) -> set[str]:
    """Names of what differs after both have patched, by page and then by byte."""
    text = patch(kernel, names)
    found = set()
    for segment in kernel.elf.segments:
        if not segment.va:
            continue
        for va in range(segment.va, segment.va + len(segment.data), 4096):
            size = min(4096, segment.va + len(segment.data) - va)
            theirs, ours = patcher.read(va, size), text.read(va, size)
            if theirs != ours:
                found |= {kernel.where(va + n).split("+")[0] for n in range(size) if theirs[n] != ours[n]}
    return found


@pytest.mark.parametrize("names", [INTEL, AMD, ITS])
def test_the_kernels_own_patching_code_agrees(kernel: Kernel, names: str) -> None:
    """Every byte of the image; only what the harness and the code itself wrote as data may differ."""
    chosen = frozenset(names.split())
    patcher = KernelPatcher(kernel, chosen)
    patcher.run()
    assert differing(kernel, patcher, chosen) <= {"boot_cpu_data", "x86_return_thunk", "insn.0"}
    if names == INTEL:
        # The comparison sees a single feature's difference.
        assert "paranoid_entry" in differing(kernel, patcher, chosen - {"FSGSBASE"})


def test_unpatched_sites_are_listed(kernel: Kernel) -> None:
    lists = site_lists(kernel, (kernel.range("__noinstr_text_start", "__noinstr_text_end"),))
    assert lists["jump label"]
    assert lists["static call"]
    entry = site_lists(kernel, (kernel.range("__entry_text_start", "__entry_text_end"),))
    assert entry == {"jump label": (), "static call": ()}
