# SPDX-License-Identifier: GPL-2.0-only
"""Names of CPU features, as the kernel numbers them, and what a choice of them entails.

A name is the kernel's without X86_FEATURE_ (bugs: BUG_ instead of X86_BUG_).  Numbers are
arch/x86/include/asm/cpufeatures.h of v6.1.192: 32 * word + bit, bugs from word NCAPINTS = 22 on.  Listed are
those that some site in Debian's image is patched for.  Numbers may move between kernels, so `check_numbers`
compares the table with the names in the image itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from atomicist.image.elf import ElfImage
from atomicist.image.errors import ImageError

WORDS = 22 + 2
"""NCAPINTS + NBUGINTS of v6.1."""
_BUGS = 22 * 32

# word -> "bit name" pairs
_TABLE: dict[int, str] = {
    0: "19 CLFLUSH 27 SELFSNOOP",
    1: "20 NX 26 GBPAGES 27 RDTSCP",
    3: "14 SYSCALL32 15 SYSENTER32 16 REP_GOOD 18 LFENCE_RDTSC 21 ALWAYS 28 APERFMPERF",
    4: "3 MWAIT 5 VMX 13 CX16 17 PCID 23 POPCNT 26 XSAVE 27 OSXSAVE 30 RDRAND 31 HYPERVISOR",
    6: "8 3DNOWPREFETCH",
    7: "10 XCOMPACTED 11 PTI 12 KERNEL_IBRS 16 MSR_SPEC_CTRL 19 RSB_CTXSW 21 USE_IBPB 22 USE_IBRS_FW"
    " 23 SPEC_STORE_BYPASS_DISABLE 24 LS_CFG_SSBD 28 ZEN",
    8: "5 COHERENCY_SFW_NO 15 VMMCALL 16 XENPV 18 VMCALL 19 VMW_VMMCALL 20 PVUNLOCK 21 VCPUPREEMPT",
    9: "0 FSGSBASE 1 TSC_ADJUST 2 SGX 9 ERMS 10 INVPCID 16 AVX512F 18 RDSEED 20 SMAP 23 CLFLUSHOPT 24 CLWB",
    10: "0 XSAVEOPT 1 XSAVEC 3 XSAVES 4 XFD",
    11: "4 FENCE_SWAPGS_USER 5 FENCE_SWAPGS_KERNEL 9 SGX2 10 ENTRY_IBPB 12 RETPOLINE 13 RETPOLINE_LFENCE"
    " 14 RETHUNK 15 UNRET 16 USE_IBPB_FW 18 CLEAR_CPU_BUF 20 MSR_TSX_CTRL 24 SRSO 25 SRSO_ALIAS"
    " 27 APIC_MSRS_FENCE",
    13: "24 AMD_SSBD 25 VIRT_SSBD",
    14: "1 IDA 7 HWP",
    16: "2 UMIP 3 PKU 4 OSPKE 5 WAITPKG 16 LA57 29 ENQCMD 30 SGX_LC",
    17: "3 SMCA",
    18: "4 FSRM 9 SRBDS_CTRL 14 SERIALIZE 15 HYBRID_CPU 19 ARCH_LBR 20 IBT 24 AMX_TILE 31 SPEC_CTRL_SSBD",
    19: "10 SME_COHERENT",
    21: "0 AMD_LBR_PMC_FREEZE 1 CLEAR_BHB_LOOP 3 CLEAR_BHB_HW 5 INDIRECT_THUNK_ITS 14 IBPB_EXIT_TO_USER",
    22: "5 BUG_11AP 6 BUG_FXSAVE_LEAK 7 BUG_CLFLUSH_MONITOR 8 BUG_SYSRET_SS_ATTRS 10 BUG_NULL_SEG"
    " 11 BUG_SWAPGS_FENCE 12 BUG_MONITOR",
    23: "1 BUG_DIV0 4 BUG_IBPB_NO_RET 5 BUG_ITS",
}


def _numbers() -> dict[str, int]:
    numbers = {}
    for word, text in _TABLE.items():
        fields = text.split()
        for bit, name in zip(fields[::2], fields[1::2], strict=True):
            numbers[name] = 32 * word + int(bit)
    return numbers


NUMBERS: dict[str, int] = _numbers()
PRINTED = {"SELFSNOOP": "ss", "GBPAGES": "pdpe1gb", "MWAIT": "monitor"}
"""Names whose form in /proc/cpuinfo is not their own in lower case."""
NAMES: dict[int, str] = {number: name for name, number in NUMBERS.items()}

ALWAYS = frozenset({"ALWAYS"})
"""Set on every CPU (cpu/common.c, early_identify_cpu); those of required-features.h patch nothing here."""

REQUIRES: dict[str, tuple[str, ...]] = {
    "UNRET": ("RETHUNK",),
    "SRSO": ("RETHUNK", "UNRET"),
    "SRSO_ALIAS": ("RETHUNK", "UNRET"),
    "INDIRECT_THUNK_ITS": ("RETHUNK",),
    "BUG_ITS": ("RETHUNK",),
    "RETPOLINE_LFENCE": ("RETPOLINE",),
}
"""What cpu/bugs.c sets together (retbleed_select_mitigation, srso_select_mitigation, ...)."""

RETURN_THUNKS: tuple[tuple[str, str], ...] = (
    ("SRSO_ALIAS", "srso_alias_return_thunk"),
    ("SRSO", "srso_return_thunk"),
    ("UNRET", "retbleed_return_thunk"),
    ("INDIRECT_THUNK_ITS", "its_return_thunk"),
    ("BUG_ITS", "its_return_thunk"),
)
"""Feature -> x86_return_thunk, first match wins (cpu/bugs.c, set_return_thunk); else __x86_return_thunk.

BUG_ITS stands for indirect_target_selection=on beside retpolines, for which the kernel has no feature bit.
"""


def feature_name(number: int) -> str:
    """The name of feature `number`, or "word*32+bit" when the table has none."""
    return NAMES.get(number, f"{number // 32}*32+{number % 32}")


def feature_set(names: Iterable[str]) -> frozenset[str]:
    """`names` with ALWAYS added; ImageError for an unknown name or one without what it requires."""
    chosen = frozenset(names)
    for name in sorted(chosen):
        if name not in NUMBERS:
            near = ", ".join(sorted(n for n in NUMBERS if n.startswith(name[:2]))) or "PTI, FSGSBASE"
            raise ImageError(f"unknown CPU feature {name!r}: names as in cpufeatures.h, such as {near}")
        missing = [need for need in REQUIRES.get(name, ()) if need not in chosen]
        if missing:
            raise ImageError(f"the kernel sets {name} only together with {', '.join(missing)}: add it")
    if "SRSO" in chosen and "SRSO_ALIAS" in chosen:
        raise ImageError("SRSO and SRSO_ALIAS exclude each other (Zen 1/2 or Zen 3/4): choose one")
    return chosen | ALWAYS


def check_numbers(image: ElfImage, cap_flags: int, bug_flags: int) -> int:
    """Compare the table with the names that the kernel prints in /proc/cpuinfo; how many were compared.

    `cap_flags` and `bug_flags` are the addresses of x86_cap_flags and x86_bug_flags (cpu/capflags.c): one
    pointer to a name a number, null where the kernel does not print one.  ImageError if one differs.
    """
    compared = 0
    for name, number in NUMBERS.items():
        at = cap_flags + 8 * number if number < _BUGS else bug_flags + 8 * (number - _BUGS)
        pointer = int.from_bytes(image.read(at, 8), "little")
        if not pointer:
            continue
        segment = image.segment(pointer)
        start = pointer - segment.va
        found = bytes(segment.data[start : start + 40]).partition(b"\0")[0].decode("ascii", "replace")
        if found != PRINTED.get(name, name.removeprefix("BUG_").lower()):
            raise ImageError(
                f"this kernel calls CPU feature {feature_name(number)} ({number}) {found!r}: its numbers"
                " are not those of 6.1, features cannot be chosen by name"
            )
        compared += 1
    return compared
