# SPDX-License-Identifier: GPL-2.0-only
"""A bootable kernel (bzImage) -> the ELF file (vmlinux) that is compressed inside it.

The setup header says where the compressed payload lies (Documentation/x86/boot.rst, protocol 2.08+):
`payload_offset` bytes from the start of the protected-mode code, which begins after the boot sector and
`setup_sects` sectors of real-mode code.  The build appends the uncompressed size to the payload as four
bytes (scripts/Makefile.lib, size_append); gzip's own trailer is the same four bytes.  That makes a cut or
damaged payload recognisable whatever the compressor.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

from atomicist.image.errors import ImageError

SECTOR = 512
MAX_FILE = 256 << 20
"""Bytes; a distribution's kernel has 8 to 15 MB, and an unstripped vmlinux without DWARF about 80 MB."""
MAX_VMLINUX = 256 << 20
"""Bytes; Debian's 6.1 vmlinux has 66 MB."""
MAX_DECODER = 256 << 20
"""Bytes of dictionary that an xz or lzma stream may ask for."""

_SETUP_SECTS = 0x1F1
_HDRS = 0x202
_VERSION = 0x206
_PAYLOAD = 0x248
_HEADER_END = 0x250
_PAYLOAD_PROTOCOL = 0x0208


def _gzip(data: memoryview) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, MAX_VMLINUX + 1)


def _lzma(data: memoryview) -> bytes:
    return lzma.LZMADecompressor(memlimit=MAX_DECODER).decompress(data, MAX_VMLINUX + 1)


def _bzip2(data: memoryview) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, MAX_VMLINUX + 1)


_Decoder = Callable[[memoryview], bytes]

COMPRESSORS: tuple[tuple[bytes, str, _Decoder | None], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _lzma),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"BZh", "bzip2", _bzip2),
    (b"\x28\xb5\x2f\xfd", "zstd", None),
    (b"\x02\x21\x4c\x18", "lz4", None),
    (b"\x89LZO", "lzo", None),
)
"""First bytes -> name, decoder; None: not in the standard library of the Python we run on."""


def is_bzimage(data: bytes) -> bool:
    """Whether `data` starts like a bzImage (the boot protocol's magic "HdrS" at 0x202)."""
    return data[_HDRS : _HDRS + 4] == b"HdrS"


def extract_vmlinux(data: bytes) -> bytes:
    """The ELF file inside the bzImage `data`.

    Raises ImageError when the header is not a bzImage's, the payload is cut, damaged, larger than
    MAX_VMLINUX, not an ELF file, or compressed in a way that we cannot read.
    """
    if not is_bzimage(data):
        raise ImageError("not a bzImage (no HdrS at 0x202): give a vmlinuz or vmlinux of an x86-64 kernel")
    if len(data) < _HEADER_END:
        raise ImageError("bzImage is cut inside its setup header: fetch it again")
    (version,) = struct.unpack_from("<H", data, _VERSION)
    if version < _PAYLOAD_PROTOCOL:
        raise ImageError(
            f"bzImage speaks boot protocol {version:#x}, payload known from 0x208: too old a kernel"
        )
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    # 0 stands for 4 sectors, for the sake of boot loaders of the last century.
    start = ((data[_SETUP_SECTS] or 4) + 1) * SECTOR + offset
    if length < 8 or start + length > len(data):
        raise ImageError(
            f"bzImage is cut: payload at {start:#x}, {length} bytes, file has {len(data)}: fetch it again"
        )
    return _unpack(memoryview(data)[start : start + length])


def _unpack(payload: memoryview) -> bytes:
    name, decoder = next(
        ((name, decode) for magic, name, decode in COMPRESSORS if payload[: len(magic)] == magic), ("", None)
    )
    if not name:
        raise ImageError(f"bzImage payload starts with {payload[:4].hex()}: not a compressor we know")
    if decoder is None:
        raise ImageError(
            f"bzImage payload is {name}, which we cannot unpack: give what scripts/extract-vmlinux makes"
        )
    try:
        vmlinux = decoder(payload)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise ImageError(f"bzImage payload ({name}) is damaged ({error}): fetch it again") from None
    except MemoryError:
        raise ImageError(
            f"bzImage payload ({name}) asks for too much memory: damaged, fetch it again"
        ) from None
    if len(vmlinux) > MAX_VMLINUX:
        raise ImageError(
            f"bzImage payload ({name}) unpacks to more than {MAX_VMLINUX >> 20} MB: not a kernel"
        )
    (size,) = struct.unpack("<I", payload[-4:])
    if len(vmlinux) != size:
        raise ImageError(
            f"bzImage payload ({name}) gave {len(vmlinux)} bytes, its trailer says {size}: fetch it again"
        )
    if vmlinux[:4] != b"\x7fELF":
        raise ImageError(f"bzImage payload ({name}) is not an ELF file: not an x86-64 Linux kernel")
    return vmlinux
