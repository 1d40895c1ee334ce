# SPDX-License-Identifier: GPL-2.0-only
"""What a Linux tree gets: whole files of ours, and a few lines at named places in its own files.

A place is named by one line, or by consecutive lines, each a regular expression for the whole line without
the white space around it. It has to be there exactly once: in the file, or, with ``inside``, it is the first
one behind the only line that matches that. No more of the kernel's text is here than finding a place takes.

Both are grouped by step: a step is one patch of the series, and builds and boots with those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Step(Enum):
    """The patches, in order."""

    OBJTOOL = 1
    STACKS = 2
    GATES = 3
    ENTRY = 4
    NMI = 5
    MC = 6
    DB = 7
    VC = 8
    DOCUMENTATION = 9


class Where(Enum):
    """On which side of its anchor a hook goes."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Hook:
    """``text`` (whole lines) goes ``where`` of ``anchor`` in ``file``; the search starts at ``inside``."""

    step: Step
    file: str
    anchor: tuple[str, ...]
    where: Where
    text: str
    inside: str = ""


@dataclass(frozen=True, slots=True)
class OwnFile:
    """``source``, below kernel/, goes to ``file``.

    A line that matches a pattern of ``later`` belongs to that later step, and is left out until then.
    """

    step: Step
    source: str
    file: str
    later: tuple[tuple[str, Step], ...] = ()


BEFORE: Final = Where.BEFORE
AFTER: Final = Where.AFTER

ENTRY_FILES: Final = ("atomic_ist.c", "atomic_ist.h", "atomic_ist_entry.S", "atomic_ist_vector.S")
"""The one source of the entry: copied byte for byte."""

OWN_FILES: Final = (
    OwnFile(Step.STACKS, "linux/atomic_ist.h", "arch/x86/include/asm/atomic_ist.h"),
    OwnFile(Step.STACKS, "linux/atomic_ist_stacks.c", "arch/x86/kernel/atomic_ist_stacks.c"),
    OwnFile(
        Step.GATES, "linux/atomic_ist_gates.c", "arch/x86/kernel/atomic_ist_gates.c",
        later=tuple(
            (rf'\tGATE\("{step.name.lower()}",.*', step) for step in (Step.NMI, Step.MC, Step.DB, Step.VC)
        ),
    ),
    OwnFile(Step.GATES, "linux/atomic_ist_env.h", "arch/x86/include/asm/atomic_ist_env.h"),
    OwnFile(Step.ENTRY, "linux/atomic_ist_calling.S", "arch/x86/entry/atomic_ist_calling.S"),
    OwnFile(Step.ENTRY, "linux/atomic_ist.lds", "arch/x86/kernel/atomic_ist.lds"),
    OwnFile(Step.ENTRY, "linux/atomic_ist_handlers.c", "arch/x86/kernel/atomic_ist_handlers.c"),
    *(OwnFile(Step.ENTRY, name, f"arch/x86/entry/{name}") for name in ENTRY_FILES),
    OwnFile(Step.DOCUMENTATION, "linux/atomic_ist.rst", "Documentation/x86/atomic_ist.rst"),
)  # fmt: skip

_OBJTOOL = "tools/objtool/check.c"
_AREA_H = "arch/x86/include/asm/cpu_entry_area.h"
_AREA_C = "arch/x86/mm/cpu_entry_area.c"
_TRACE_H = "arch/x86/include/asm/stacktrace.h"
_TRACE_C = "arch/x86/kernel/dumpstack_64.c"
_CPU = "arch/x86/kernel/cpu/common.c"
_IDT = "arch/x86/kernel/idt.c"
_LDS_H = "include/asm-generic/vmlinux.lds.h"
_LDS_S = "arch/x86/kernel/vmlinux.lds.S"
_ENTRY = "arch/x86/entry/Makefile"
_KERNEL = "arch/x86/kernel/Makefile"
_TRAPS = "arch/x86/kernel/traps.c"
_SEV = "arch/x86/kernel/sev.c"
_PARAMETERS = "Documentation/admin-guide/kernel-parameters.txt"

_INCLUDE = "#include <asm/atomic_ist.h>\n"

HOOKS: Final = (
    # Entry text in sections of other names is held to the same rules.
    Hook(
        Step.OBJTOOL, _OBJTOOL, (r'!strcmp\(sec->name, "\.entry\.text"\) \|\|',), AFTER,
        '\t\t    !strncmp(sec->name, ".entry.text.", 12) ||\n',
    ),
    Hook(
        Step.OBJTOOL, _OBJTOOL, (r"return warnings;",), BEFORE,
        "\tfor_each_sec(file, sec) {\n"
        '\t\tif (strncmp(sec->name, ".entry.text.", 12))\n'
        "\t\t\tcontinue;\n"
        "\t\twarnings += validate_section(file, sec);\n"
        "\t\twarnings += validate_unwind_hints(file, sec);\n"
        "\t}\n\n",
        inside=r"static int validate_noinstr_sections\(.*",
    ),
    Hook(
        Step.STACKS, "arch/x86/Kconfig", (r"config X86_UMIP",), BEFORE,
        "config X86_ATOMIC_IST\n"
        '\tbool "Atomic entry of NMI, #DB, #MC and #VC"\n'
        "\tdepends on X86_64\n"
        "\tdefault y\n"
        "\thelp\n"
        "\t  NMI, #DB, #MC and #VC arrive on stacks that start at the same place\n"
        "\t  each time. If one of them interrupts the first instructions of\n"
        "\t  another, its return lets in a further NMI, which overwrites what the\n"
        "\t  first one has not saved yet.\n\n"
        "\t  With this, an entry that is interrupted there is completed by the\n"
        "\t  one that interrupts it, and all of them share one stack. Boot with\n"
        "\t  ist_entry=legacy to have the other entries.\n\n"
        "\t  It takes 12 pages for each CPU.\n\n"
        "\t  If unsure, say Y.\n\n",
    ),
    Hook(Step.STACKS, _AREA_H, (r"#include <linux/percpu-defs\.h>",), AFTER, _INCLUDE),
    Hook(
        Step.STACKS, _AREA_H, (r"struct cea_exception_stacks estacks;",), AFTER,
        "#ifdef CONFIG_X86_ATOMIC_IST\n\tstruct cea_atomic_ist atomic_ist;\n#endif\n",
    ),
    Hook(
        Step.STACKS, _AREA_C, (r"per_cpu\(cea_exception_stacks, cpu\) = .*",), AFTER,
        "\tatomic_ist_map_stacks(cpu);\n",
    ),
    Hook(
        Step.STACKS, _TRACE_H, (r"STACK_TYPE_EXCEPTION_LAST = .*",), AFTER,
        "#ifdef CONFIG_X86_ATOMIC_IST\n"
        "\tSTACK_TYPE_ATOMIC_IST_MAIN,\n"
        "\tSTACK_TYPE_ATOMIC_IST_PAD,\n"
        "#endif\n",
    ),
    Hook(
        Step.STACKS, _TRACE_C, (r"return NULL;",), BEFORE,
        "#ifdef CONFIG_X86_ATOMIC_IST\n"
        "\tif (type == STACK_TYPE_ATOMIC_IST_MAIN)\n"
        '\t\treturn "IST";\n'
        "\tif (type == STACK_TYPE_ATOMIC_IST_PAD)\n"
        '\t\treturn "IST-PAD";\n'
        "#endif\n\n",
        inside=r"const char \*stack_type_name\(.*",
    ),
    Hook(
        Step.STACKS, _TRACE_C, (r"if \(in_irq_stack\(.*",), BEFORE,
        "\tif (in_atomic_ist_stack(stack, info))\n\t\treturn true;\n\n",
    ),
    Hook(
        Step.STACKS, _KERNEL, (r"obj-y\s*\+= .*dumpstack\.o nmi\.o",), AFTER,
        "obj-$(CONFIG_X86_ATOMIC_IST)	+= atomic_ist_stacks.o\n",
    ),
    Hook(
        Step.GATES, _KERNEL, (r"obj-\$\(CONFIG_X86_ATOMIC_IST\)\s*\+= atomic_ist_stacks\.o",), AFTER,
        "obj-$(CONFIG_X86_ATOMIC_IST)	+= atomic_ist_gates.o\n",
    ),
    Hook(
        Step.GATES, _CPU, (r"tss->x86_tss\.ist\[IST_INDEX_VC\] = .*",), AFTER,
        "\tatomic_ist_setup_tss(tss);\n",
    ),
    Hook(
        Step.GATES, _IDT, (r"/\*\*", r"\* idt_setup_traps - .*"), BEFORE,
        "#ifdef CONFIG_X86_ATOMIC_IST\n"
        "void __init idt_setup_atomic_ist(unsigned int vector, const void *entry, unsigned int ist)\n"
        "{\n"
        "\tstruct idt_data data = ISTG(vector, entry, ist);\n\n"
        "\tidt_setup_from_table(idt_table, &data, 1, true);\n"
        "}\n"
        "#endif\n\n",
    ),
    Hook(
        Step.GATES, _IDT, (r"idt_setup_from_table\(.*def_idts.*",), AFTER,
        "\tatomic_ist_setup_idt();\n",
    ),
    Hook(
        Step.GATES, _PARAMETERS, (r"iucv=.*",), BEFORE,
        "\tist_entry=	[X86-64] How NMI, #MC, #DB and #VC enter the kernel:\n"
        "\t\t\tatomic -- an entry that is interrupted before it has\n"
        "\t\t\t  saved its context is completed by the one that\n"
        "\t\t\t  interrupts it (default)\n"
        "\t\t\tlegacy -- each on a stack of its own\n"
        "\t\t\tnmi,mc,db,vc -- those listed are atomic, the others\n"
        "\t\t\t  legacy\n"
        "\t\t\tNeeds CONFIG_X86_ATOMIC_IST.\n\n",
    ),
    Hook(
        Step.ENTRY, _KERNEL, (r"obj-\$\(CONFIG_X86_ATOMIC_IST\)\s*\+= atomic_ist_gates\.o",), AFTER,
        "obj-$(CONFIG_X86_ATOMIC_IST)	+= atomic_ist_handlers.o\n",
    ),
    Hook(
        Step.ENTRY, _ENTRY, (r"obj-y\s*\+= common\.o",), AFTER,
        "obj-$(CONFIG_X86_ATOMIC_IST)	+= atomic_ist.o atomic_ist_entry.o\n",
    ),
    Hook(
        Step.ENTRY, _ENTRY, (r"CFLAGS_common\.o\s*\+= -fno-stack-protector",), AFTER,
        "\n# Text only: no data, no calls, nothing that a tool has added.\n"
        "CFLAGS_REMOVE_atomic_ist.o	= $(CC_FLAGS_FTRACE)\n"
        "CFLAGS_atomic_ist.o		+= -fno-stack-protector -fno-jump-tables\n"
        "CFLAGS_atomic_ist.o		+= $(call cc-option,-fno-tree-loop-distribute-patterns)\n",
    ),
    Hook(
        Step.ENTRY, _LDS_H, (r"#define ENTRY_TEXT.*",), BEFORE,
        "#ifndef ATOMIC_IST_ENTRY_TEXT\n#define ATOMIC_IST_ENTRY_TEXT\n#endif\n\n",
    ),
    Hook(
        Step.ENTRY, _LDS_H, (r"\*\(\.entry\.text\)\s*\\",), AFTER,
        "\t\tATOMIC_IST_ENTRY_TEXT					\\\n",
    ),
    Hook(
        Step.ENTRY, _LDS_S, (r"#include <asm-generic/vmlinux\.lds\.h>",), BEFORE,
        "#include \"atomic_ist.lds\"\n",
    ),
    Hook(
        Step.ENTRY, _TRAPS, (r'pr_emerg\("PANIC: double fault.*',), BEFORE,
        "\tatomic_ist_explain_double_fault(regs->sp);\n",
    ),
    Hook(Step.ENTRY, _TRAPS, (r"#include <asm/realmode\.h>",), BEFORE, _INCLUDE),
    # The stack of #VC is moved so that an NMI in its entry does not overwrite it. It does not any more.
    Hook(
        Step.VC, _SEV, (r"/\* Read old IST entry \*/",), BEFORE,
        "\tif (atomic_ist_enabled(X86_TRAP_VC))\n\t\treturn;\n\n",
    ),
    Hook(
        Step.VC, _SEV, (r"/\* Read IST entry \*/",), BEFORE,
        "\tif (atomic_ist_enabled(X86_TRAP_VC))\n\t\treturn;\n\n",
    ),
    Hook(Step.DOCUMENTATION, "Documentation/x86/index.rst", (r"entry_64",), AFTER, "   atomic_ist\n"),
)  # fmt: skip
