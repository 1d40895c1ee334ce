# SPDX-License-Identifier: GPL-2.0-only
"""Small files in the formats that the image room reads, made from what a test wants them to say."""

import struct
import zlib

BASE = 0xFFFF_FFFF_8100_0000


def elf(
    segments: dict[int, bytes],
    symbols: dict[str, int] | None = None,
    machine: int = 62,
    build_id: bytes = b"",
) -> bytes:
    """An x86-64 executable with RWX segments at given addresses, and a .symtab unless `symbols` is None."""
    bodies = list(segments.items())
    note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id if build_id else b""
    headers = len(bodies) + bool(note)
    at = 64 + 56 * headers
    programs, blob = b"", b""
    for va, body in bodies:
        programs += struct.pack("<IIQQQQQQ", 1, 7, at + len(blob), va, va, len(body), len(body), 1)
        blob += body
    if note:
        programs += struct.pack("<IIQQQQQQ", 4, 4, at + len(blob), 0, 0, len(note), len(note), 4)
        blob += note
    sections, count = b"", 0
    if symbols is not None:
        names = b"\0" + b"".join(name.encode() + b"\0" for name in symbols)
        table = bytes(24)
        place = 1
        for name, value in symbols.items():
            table += struct.pack("<IBBHQQ", place, 0x12, 0, 1, value, 0)
            place += len(name) + 1
        strings = b"\0.symtab\0.strtab\0.text\0"
        spots = [at + len(blob), at + len(blob) + len(table), at + len(blob) + len(table) + len(names)]
        blob += table + names + strings
        row = "<IIQQQQIIQQ"
        sections = struct.pack(row, *[0] * 10)
        sections += struct.pack(row, 17, 1, 6, BASE, 0, 0, 0, 0, 1, 0)
        sections += struct.pack(row, 1, 2, 0, 0, spots[0], len(table), 3, 1, 8, 24)
        sections += struct.pack(row, 9, 3, 0, 0, spots[1], len(names), 0, 0, 1, 0)
        sections += struct.pack(row, 9, 3, 0, 0, spots[2], len(strings), 0, 0, 1, 0)
        count = 5
    sections_at = at + len(blob) if count else 0
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    numbers = 2, machine, 1, 0, 64, sections_at, 0, 64, 56, headers, 64, count, 4 if count else 0
    header += struct.pack("<HHIQQQIHHHHHH", *numbers)
    return header + programs + blob + sections


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(data) + packer.flush()


def bzimage(payload: bytes, version: int = 0x20F) -> bytes:
    """A boot sector, one sector of setup, then `payload` at offset 16 of the protected-mode code."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x208] = b"HdrS" + struct.pack("<H", version)
    setup[0x248:0x250] = struct.pack("<II", 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def kallsyms(symbols: list[tuple[str, str, int]], base: int = BASE) -> bytes:
    """kallsyms of (name, type, address) in Linux 6.1's layout, uncompressed: each character is a token."""

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 8)

    offsets, names, markers = b"", b"", []
    for number, (name, letter, address) in enumerate(symbols):
        offsets += struct.pack("<i", address if address < 1 << 31 else base - 1 - address)
        if number % 256 == 0:
            markers.append(len(names))
        text = (letter + name).encode()
        size = bytes([len(text)]) if len(text) < 128 else bytes([len(text) & 127 | 128, len(text) >> 7])
        names += size + text
    texts = [bytes([i]) if 33 <= i < 127 else b"" for i in range(256)]
    table, index = b"", b""
    for text in texts:
        index += struct.pack("<H", len(table))
        table += text + b"\0"
    head = pad(offsets) + struct.pack("<Q", base) + pad(struct.pack("<I", len(symbols))) + pad(names)
    head += pad(struct.pack(f"<{len(markers)}I", *markers)) + pad(bytes(3 * len(symbols)))
    return head + pad(table) + index


class BtfBuilder:
    """BTF types added one by one; each method gives the new type's number."""

    def __init__(self) -> None:
        self.types, self.strings, self.count = b"", b"\0", 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, name: str, kind: int, size: int, tail: bytes = b"", *, vlen: int = 0, flag: int = 0) -> int:
        self.types += struct.pack("<III", self.name(name), flag << 31 | kind << 24 | vlen, size) + tail
        self.count += 1
        return self.count

    def integer(self, name: str, size: int) -> int:
        return self.add(name, 1, size, bytes(4))

    def array(self, of: int, number: int) -> int:
        return self.add("", 3, 0, struct.pack("<III", of, of, number))

    def struct(
        self, name: str, size: int, *members: tuple[str, int, int], kind: int = 4, flag: int = 0
    ) -> int:
        """Members are (name, type, bit offset)."""
        tail = b"".join(struct.pack("<III", self.name(member), of, bits) for member, of, bits in members)
        return self.add(name, kind, size, tail, vlen=len(members), flag=flag)

    def build(self) -> bytes:
        sizes = struct.pack("<IIII", 0, len(self.types), len(self.types), len(self.strings))
        return b"\x9f\xeb\x01\0" + struct.pack("<I", 24) + sizes + self.types + self.strings
