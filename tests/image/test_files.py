# SPDX-License-Identifier: GPL-2.0-only
"""From a file to memory and symbols: bzImage, ELF, kallsyms, BTF; each check has a file it must reject."""

import bz2
import lzma
import struct
import time
from pathlib import Path

import pytest

from atomicist.image import bzimage, elf, kallsyms
from atomicist.image.btf import Btf
from atomicist.image.errors import ImageError
from atomicist.image.kernel import Kernel, load_kernel, parse_kernel
from tests.image import builders
from tests.image.builders import BASE, BtfBuilder


def tail(data: bytes) -> bytes:
    return struct.pack("<I", len(data))


SMALL = builders.elf({BASE: b"\xc3" * 64}, {"_text": BASE})
PACKED = {
    "gzip": builders.gzip(SMALL),
    "xz": lzma.compress(SMALL, lzma.FORMAT_XZ) + tail(SMALL),
    "lzma": lzma.compress(SMALL, lzma.FORMAT_ALONE) + tail(SMALL),
    "bzip2": bz2.compress(SMALL) + tail(SMALL),
}


@pytest.mark.parametrize("name", PACKED)
def test_payload_is_unpacked(name: str) -> None:
    assert bzimage.extract_vmlinux(builders.bzimage(PACKED[name])) == SMALL


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a bzImage"),
        (builders.bzimage(PACKED["gzip"])[:0x240], "cut inside its setup header"),
        (builders.bzimage(PACKED["gzip"])[:-9], "is cut"),
        (builders.bzimage(PACKED["gzip"], version=0x207), "boot protocol"),
        (builders.bzimage(b"\x28\xb5\x2f\xfd" + bytes(8)), "zstd, which we cannot unpack"),
        (builders.bzimage(b"\x02\x21\x4c\x18" + bytes(8)), "lz4, which we cannot unpack"),
        (builders.bzimage(b"what is this"), "not a compressor we know"),
        (builders.bzimage(PACKED["xz"][:-20]), "trailer says"),
        (builders.bzimage(PACKED["xz"][:40] + b"!!" + PACKED["xz"][42:]), "damaged"),
        (builders.bzimage(PACKED["bzip2"][:-4] + bytes(4)), "trailer says"),
        (builders.bzimage(builders.gzip(b"not a kernel at all")), "not an ELF file"),
    ],
)
def test_bad_bzimage_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        bzimage.extract_vmlinux(data)


def test_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bzimage, "MAX_VMLINUX", 1 << 20)
    for packed in (builders.gzip(bytes(3 << 20)), lzma.compress(bytes(3 << 20)) + bytes(4)):
        with pytest.raises(ImageError, match="unpacks to more than"):
            bzimage.extract_vmlinux(builders.bzimage(packed))


def test_elf_memory_symbols_and_build_id() -> None:
    image = elf.read_elf(builders.elf({BASE: b"abcd"}, {"one": BASE, "two": BASE + 2}, build_id=b"\1\2\3\4"))
    assert image.read(BASE + 1, 2) == b"bc"
    assert [(s.name, s.address, s.type) for s in image.symbols] == [
        ("one", BASE, "T"),
        ("two", BASE + 2, "T"),
    ]
    assert image.build_id == "01020304"
    assert image.section(".symtab")
    with pytest.raises(ImageError, match="leave their segment"):
        image.read(BASE + 3, 2)
    with pytest.raises(ImageError, match="in no segment"):
        image.read(BASE - 1, 1)


def test_bss_is_zeros_without_memory() -> None:
    data = bytearray(builders.elf({BASE: b"abcd"}))
    struct.pack_into("<Q", data, 64 + 40, 1 << 30)  # p_memsz
    image = elf.read_elf(bytes(data))
    assert image.read(BASE + 2, 4) == b"cd\0\0"
    assert image.read(BASE + (1 << 29), 2) == bytes(2)
    with pytest.raises(ImageError, match="leave their segment"):
        image.read(BASE, (1 << 30) + 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MZ", "not an ELF file"),
        (SMALL[:70], "damaged|cut"),
        (SMALL[:-200], "damaged|cut"),
        (builders.elf({BASE: b"x"}, machine=183), "give an x86-64 kernel"),
        (builders.elf({}), "nothing to load"),
        (builders.elf({BASE: b"abcd", BASE + 2: b"xy"}), "overlap"),
        (builders.elf({(1 << 64) - 2: b"abcd"}), "larger than its memory"),
    ],
)
def test_bad_elf_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        elf.read_elf(data)


LONG = "x" * 300
TABLE = [("percpu", "A", 0x20)] + [(f"s{n}", "t", BASE + n) for n in range(700)] + [(LONG, "T", BASE + 999)]


def stripped(table: bytes) -> bytes:
    return builders.elf({BASE: b"0\x001\0noise123" + bytes(4) + table})


def test_kallsyms_gives_back_what_went_in() -> None:
    symbols = kallsyms.decode_kallsyms(elf.read_elf(stripped(builders.kallsyms(TABLE))))
    assert [(s.name, s.type, s.address) for s in symbols] == TABLE


def test_damaged_kallsyms_is_refused() -> None:
    good = builders.kallsyms(TABLE)
    offsets = -(-4 * len(TABLE) // 8) * 8
    names = offsets + 16
    for place in (offsets, offsets + 8, names, len(good) - 1, len(good) - 700):
        bad = bytearray(good)
        bad[place] ^= 0x15
        with pytest.raises(ImageError, match="kallsyms"):
            kallsyms.decode_kallsyms(elf.read_elf(stripped(bytes(bad))))


def test_kallsyms_lookalikes_end() -> None:
    """Every place looks like a start, none is one: an answer all the same, and soon."""
    noise = b"".join(b"%d\0" % digit for digit in range(10)) * 100_000
    start = time.monotonic()
    with pytest.raises(ImageError, match="no symbol table"):
        kallsyms.decode_kallsyms(elf.read_elf(stripped(noise)))
    assert time.monotonic() - start < 5


def layouts() -> BtfBuilder:
    types = BtfBuilder()
    u64 = types.integer("u64", 8)
    alias = types.add("alias", 8, u64)
    row = types.array(alias, 7)
    inner = types.struct("inner", 56, ("words", row, 0))
    hidden = types.struct("", 16, ("left", u64, 0), ("right", u64, 64))
    types.struct("outer", 80, ("first", u64, 0), ("", hidden, 64), ("body", inner, 192))
    types.struct("bits", 8, ("three", u64, 3 << 24), ("byte", u64, 8), flag=1)
    return types


def test_btf_layouts() -> None:
    btf = Btf(layouts().build())
    outer = btf.struct("outer")
    assert (outer.size, {name: (m.offset, m.size) for name, m in outer.members.items()}) == (
        80,
        {"first": (0, 8), "left": (8, 8), "right": (16, 8), "body": (24, 56)},
    )
    assert btf.offset("outer", "body.words") == 24
    assert list(btf.struct("bits").members) == ["byte"]
    for path, message in (("nothing", "no member nothing"), ("first.x", "no structure")):
        with pytest.raises(ImageError, match=message):
            btf.offset("outer", path)
    with pytest.raises(ImageError, match="no struct missing"):
        btf.struct("missing")


def test_damaged_btf_is_refused() -> None:
    good = layouts().build()
    for bad, message in ((b"", "no BTF"), (good[:-5], "cut"), (good[:31] + b"\x1e" + good[32:], "kind")):
        with pytest.raises(ImageError, match=message):
            Btf(bad)


def test_btf_without_end_is_refused() -> None:
    itself = BtfBuilder()
    itself.struct("self", 8, ("", 1, 0))
    wide = BtfBuilder()
    for level in range(8):
        wide.struct("self" if level == 7 else "", 8, *[("", level, 0)] * 200)
    loop = BtfBuilder()
    loop.add("self_t", 8, 1)
    loop.struct("self", 8, ("member", 1, 0))
    for types in (itself, wide, loop):
        with pytest.raises(ImageError):
            Btf(types.build()).struct("self")


def test_a_kernel_needs_btf() -> None:
    with pytest.raises(ImageError, match="CONFIG_DEBUG_INFO_BTF"):
        parse_kernel(SMALL).btf()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot read"):
        load_kernel(tmp_path / "nothing")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(bzimage.MAX_FILE + 1)
    with pytest.raises(ImageError, match="larger than"):
        load_kernel(large)


def test_debian_kernel(kernel: Kernel) -> None:
    assert len(kernel.elf.build_id) == 40
    assert sum(map(len, kernel.names.values())) > 90_000
    for name in ("asm_exc_nmi", "paranoid_entry", "__alt_instructions", "cpu_tss_rw"):
        kernel.symbol(name)
    assert kernel.symbol("cpu_tss_rw") < kernel.symbol("__per_cpu_end") < 1 << 20
    assert kernel.where(kernel.symbol("asm_exc_nmi") + 4) == "asm_exc_nmi+0x4"
    with pytest.raises(ImageError, match="no symbol asm_exc_nothing"):
        kernel.symbol("asm_exc_nothing")
    twice = next(name for name, at in kernel.names.items() if len(at) == 2)
    with pytest.raises(ImageError, match="2 symbols"):
        kernel.symbol(twice)


def test_debian_kernel_with_a_symbol_table(kernel: Kernel) -> None:
    """The same kernel with the .symtab of a vmlinux straight from the linker reads the same."""
    parts = {s.va: bytes(s.data) for s in kernel.elf.segments}
    known = {name: at[0] for name, at in kernel.names.items() if len(at) == 1}
    other = parse_kernel(builders.elf(parts, known))
    assert {name: at[0] for name, at in other.names.items()} == known
    assert other.btf().struct("cpu_entry_area") == kernel.btf().struct("cpu_entry_area")


def test_debian_layouts(kernel: Kernel) -> None:
    btf = kernel.btf()
    # The processor's own layout (SDM vol. 3, 64-bit TSS), which the kernel's has to be.
    tss = btf.struct("x86_hw_tss")
    assert (tss.size, tss["sp0"].offset, tss["ist"].offset, tss["ist"].size) == (104, 4, 36, 56)
    assert btf.struct("pt_regs")["orig_ax"].offset == 0x78  # asm_exc_vmm_communication: [rsp + 0x78]
    assert btf.struct("cpu_entry_area").size % 4096 == 0


@pytest.mark.slow
def test_damage_anywhere_is_an_image_error(vmlinux: bytes) -> None:
    """Headers and tables with bytes changed: an answer or an ImageError, nothing else."""
    small = builders.elf({BASE: builders.kallsyms(TABLE)}, build_id=b"1234")
    refused = 0
    for place in range(0, len(small), 11):
        for value in (0xFF, small[place] ^ 0x40):
            bad = small[:place] + bytes([value]) + small[place + 1 :]
            try:
                parse_kernel(bad)
            except ImageError:
                refused += 1
    assert refused > 100
    for size in (0, 3, 64, 200, 1 << 20, len(vmlinux) // 2):
        with pytest.raises(ImageError):
            parse_kernel(vmlinux[:size])
