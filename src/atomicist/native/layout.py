# SPDX-License-Identifier: GPL-2.0-only
"""The C structures of runtime/model.h and search.h, for ctypes."""

from __future__ import annotations

import ctypes as c

from atomicist.isa.registers import SLOTS
from atomicist.native.tables import KEY_SLOTS

MAX_CHAIN = 12


class CVar(c.Structure):
    _fields_ = [("val", c.c_uint64), ("space", c.c_uint32), ("size", c.c_uint32)]


class COp(c.Structure):
    _fields_ = [("code", c.c_uint32), ("text", c.c_uint32), ("out", CVar), ("ins", CVar * 3)]


class CInsn(c.Structure):
    _fields_ = [
        ("va", c.c_uint64), ("first", c.c_uint32), ("count", c.c_uint32), ("size", c.c_uint32),
        ("flow", c.c_uint32), ("place", c.c_uint32), ("handler", c.c_uint32),
    ]  # fmt: skip


class CPage(c.Structure):
    _fields_ = [
        ("base", c.c_uint64), ("flags", c.c_uint32), ("region", c.c_uint32),
        ("rlimit", c.c_uint32 * 2), ("wlimit", c.c_uint32 * 2),
    ]  # fmt: skip


class CRegion(c.Structure):
    _fields_ = [
        ("bottom", c.c_uint64), ("top", c.c_uint64), ("kind", c.c_uint32), ("vector", c.c_uint32),
        ("live", c.c_uint64),
    ]  # fmt: skip


class CGate(c.Structure):
    _fields_ = [("first", c.c_uint32), ("count", c.c_uint32), ("number", c.c_uint32), ("present", c.c_uint32)]


class CImage(c.Structure):
    _fields_ = [
        ("ops", c.c_void_p), ("insns", c.c_void_p), ("ninsns", c.c_uint32), ("npages", c.c_uint32),
        ("nregions", c.c_uint32), ("ngates", c.c_uint32), ("pages", c.c_void_p), ("contents", c.c_void_p),
        ("regions", c.c_void_p), ("gates", c.c_void_p), ("user_root_bit", c.c_uint64),
        ("kernel_gsbase", c.c_uint64), ("kernel_cr3", c.c_uint64),
        ("kernel_spec_ctrl", c.c_uint64), ("claims", c.c_uint32),
        ("reserve", c.c_uint32), ("slot_bytes", c.c_uint32), ("exit_bytes", c.c_uint32),
        ("max_steps", c.c_uint32), ("ibrs", c.c_uint32), ("call_alignment", c.c_uint32),
    ]  # fmt: skip


class CEvent(c.Structure):
    _fields_ = [("vector", c.c_uint32), ("steps", c.c_uint32), ("rip", c.c_uint64)]


class CFinding(c.Structure):
    _fields_ = [
        ("property", c.c_uint32), ("nevents", c.c_uint32), ("events", CEvent * MAX_CHAIN),
        ("rip", c.c_uint64), ("expected", c.c_uint64), ("found", c.c_uint64),
        ("reg", c.c_uint32), ("text", c.c_uint32), ("address", c.c_uint64),
    ]  # fmt: skip


class CEmitted(c.Structure):
    _fields_ = [
        ("r", c.c_uint64 * len(KEY_SLOTS)), ("rip", c.c_uint64), ("source", c.c_uint32 * len(KEY_SLOTS)),
        ("relative", c.c_uint32), ("handler", c.c_uint32), ("nevents", c.c_uint32), ("steps", c.c_uint32),
        ("events", CEvent * MAX_CHAIN),
    ]  # fmt: skip


MAX_CELLS = 256


class CFree(c.Structure):
    _fields_ = (
        ("value", c.c_uint64 * MAX_CELLS),
        ("holds", c.c_uint8 * MAX_CELLS),
        ("n", c.c_uint32),
        ("unknown", c.c_uint32),
    )


class CTotals(c.Structure):
    _fields_ = [
        (name, c.c_uint64)
        for name in (
            "guest_insns", "interleavings", "executed", "boundaries", "hits", "misses", "worst_commit",
            "lowest_main", "findings", "emitted", "overflow", "broken_slot", "broken_where", "ends", "told",
        )
    ]  # fmt: skip


Registers = c.c_uint64 * SLOTS
