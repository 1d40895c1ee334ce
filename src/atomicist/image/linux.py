# SPDX-License-Identifier: GPL-2.0-only
"""Linux 6.1 as CPU 0 sees it: everything that a machine needs to run the kernel's own exception entries.

`describe` reads it from the image: entries and IST numbers from the boot-time IDT (def_idts), layouts from
BTF, code as patched for the chosen features, and from that code what it calls and touches.  Names and
formulas that only the source knows are the tables below, each with its file (Linux v6.1.192).

What the paths of NMI, #MC, #DB, #VC and #DF touch, found by following the patched code (a test keeps it so):

    always   the IST stacks, and the stack of the interrupted code only by way of #VC (vc_switch_off_ist);
             per-CPU cpu_current_top_of_stack, cpu_tss_rw.x86_tss.sp0 (entries from, returns to user mode)
    #VC      C code that runs for real: vc_switch_off_ist, get_stack_info_noinstr, in_task_stack,
             get_cpu_entry_area; per-CPU current_task, cpu_number, cea_exception_stacks, hardirq_stack_ptr,
             fixed_percpu_data+0x28 (stack protector); estack_pages; current's task_struct.stack
    user     sync_regs; after a fault of IRET fixup_bad_iret, memcpy
    SYSCALL  cpu_tss_rw.x86_tss.sp2 as scratch, which is why that page is in the user page tables
    PTI      MOV CR3; the stacks and code before it must be in the user page tables
    PTI + PCID      per-CPU cpu_tlbstate.user_pcid_flush_mask, by BT and BTR with a register bit index
    FSGSBASE        __per_cpu_offset[LSL(__CPUNODE_SEG) & 0xfff]: the GDT in memory, not GSBASE; never RDPID
    no FSGSBASE     RDMSR of GSBASE, whose sign tells kernel from user: per-CPU bases are "negative"
    KERNEL_IBRS     MSR SPEC_CTRL; per-CPU x86_spec_ctrl_current
    ENTRY_IBPB      entry_ibpb: MSR PRED_CMD; x86_pred_cmd
    UNRET, SRSO     entry_untrain_ret, return thunks, __handle_intr_saferet*, handle_interrupted_saferet
    IRET to an LDT stack segment    per-CPU espfix_waddr, espfix_stack (not laid out here)
    CLEAR_CPU_BUF   VERW of x86_verw_sel, which lies in the entry text

There are no paravirt sites, jump labels, static calls or indirect branches on them.
"""

from __future__ import annotations

from atomicist.image import linux_atomic
from atomicist.image.alternatives import PAGE, PatchedText, patch, site_lists
from atomicist.image.btf import Btf
from atomicist.image.elf import PF_W
from atomicist.image.errors import ImageError
from atomicist.image.features import check_numbers
from atomicist.image.kernel import Kernel
from atomicist.image.layout import Handler, LinuxLayout, Region, Stack, Vector, Word
from atomicist.image.reach import Reach, walk

CEA_RO_IDT = 0xFFFF_FE00_0000_0000
"""include/asm/pgtable_areas.h, CPU_ENTRY_AREA_RO_IDT: the IDT's read-only page, then CPU 0's area."""
PERCPU_BASE = 0xFFFF_8880_0A00_0000
"""Ours: the kernel allocates the area at boot, anywhere in the direct map, page-aligned."""
PMD = 2 << 20

KERNEL_CS, KERNEL_DS, USER_DS, USER_CS, TSS_SELECTOR, CPUNODE_SELECTOR = 0x10, 0x18, 0x2B, 0x33, 0x40, 0x7B
"""include/asm/segment.h, 64 bits."""
_CPUNODE = (15, 0x0040_F500_0000_0000)
"""GDT entry, and its descriptor for CPU 0, node 0 (cpu/common.c, setup_getcpu): limit 0 is the number."""

GS_BASE, STAR, LSTAR, FMASK, SPEC_CTRL = 0xC0000101, 0xC0000081, 0xC0000082, 0xC0000084, 0x48

# name, vector, entry, stack, pushes an error code, handler from kernel mode, from user mode
# (include/asm/idtentry.h; entry_64.S: idtentry_mce_db, idtentry_vc, idtentry_df, asm_exc_nmi)
VECTORS: tuple[tuple[str, int, str, str, bool, str, str], ...] = (
    ("db", 1, "asm_exc_debug", "DB", False, "exc_debug", "noist_exc_debug"),
    ("nmi", 2, "asm_exc_nmi", "NMI", False, "exc_nmi", "exc_nmi"),
    ("df", 8, "asm_exc_double_fault", "DF", True, "exc_double_fault", "exc_double_fault"),
    ("mc", 18, "asm_exc_machine_check", "MCE", False, "exc_machine_check", "noist_exc_machine_check"),
    ("vc", 29, "asm_exc_vmm_communication", "VC", True, "kernel_exc_vmm_communication",
     "user_exc_vmm_communication"),
)  # fmt: skip
STACKS = ("DF", "NMI", "DB", "MCE", "VC", "VC2")
SYSCALL_ENTRY, SYSCALL_HANDLER = "entry_SYSCALL_64", "do_syscall_64"
BEHIND_IRET = "repeat_nmi"
NOT_61 = "not a kernel of the 6.1 kind"
NO_RETURN = ("__stack_chk_fail", "panic")


def describe(kernel: Kernel, features: frozenset[str]) -> LinuxLayout:
    """What a machine needs to run `kernel`'s exception entries on a CPU with `features`.

    Raises ImageError when a feature is unknown or the kernel is not of the 6.1 kind.
    """
    btf = kernel.btf()
    check_numbers(kernel.elf, kernel.symbol("x86_cap_flags"), kernel.symbol("x86_bug_flags"))
    vectors = _vectors(kernel, btf)
    start, end = kernel.range("__entry_text_start", "__entry_text_end")
    text = patch(kernel, features)
    names = {name for _, _, entry, _, _, *both in VECTORS for name in both if kernel.has(entry)}
    names |= {name for name in linux_atomic.HANDLERS if kernel.has(name)} | {SYSCALL_HANDLER}
    handlers = tuple(Handler(name, kernel.symbol(name)) for name in sorted(names))
    syscall = kernel.symbol(SYSCALL_ENTRY)
    reach = walk(
        text,
        [vector.entry for vector in vectors] + [syscall] + _behind_iret(kernel, vectors),
        frozenset(handler.address for handler in handlers),
        frozenset(kernel.symbol(name) for name in NO_RETURN if kernel.has(name)),
    )
    stacks, entry_stack, thread_stack = _stacks(kernel, btf)
    tops = {stack.name: stack.top for stack in (entry_stack, *stacks)}
    area = CEA_RO_IDT + PAGE
    user_text = start & -PMD, -(-end & -PMD)
    return LinuxLayout(
        text=text,
        features=text.features,
        build_id=kernel.elf.build_id,
        vectors=vectors,
        syscall_entry=syscall,
        stacks=stacks,
        entry_stack=entry_stack,
        thread_stack=thread_stack,
        idt=CEA_RO_IDT,
        gdt=area + btf.offset("cpu_entry_area", "gdt"),
        tss=area + btf.offset("cpu_entry_area", "tss"),
        percpu_base=PERCPU_BASE,
        percpu_size=kernel.symbol("__per_cpu_end"),
        percpu_from=_percpu_from(kernel, reach),
        user_text=user_text,
        regions=_regions(kernel, btf, stacks, entry_stack, user_text),
        words=_words(kernel, btf, vectors, tops, text.features),
        msrs=_msrs(syscall, text.features),
        handlers=handlers,
        helpers=tuple(
            sorted(set(reach.functions) - {SYSCALL_ENTRY, BEHIND_IRET, *(v.symbol for v in vectors)})
        ),
        reach=reach,
        notes=_notes(kernel, text, reach),
    )


def _behind_iret(kernel: Kernel, vectors: tuple[Vector, ...]) -> list[int]:
    """Where an IRET within an entry leads: with CONFIG_DEBUG_ENTRY asm_exc_nmi unmasks NMIs by one."""
    legacy = any(vector.symbol == "asm_exc_nmi" for vector in vectors)
    return [kernel.symbol(BEHIND_IRET)] if legacy and kernel.has(BEHIND_IRET) else []


def _vectors(kernel: Kernel, btf: Btf) -> tuple[Vector, ...]:
    """The vectors of VECTORS that the kernel's IDT has, with the IST numbers it gives them."""
    gate = btf.struct("idt_data")
    number, bits, address = gate["vector"], gate["bits"], gate["addr"]
    table = kernel.symbol("def_idts")
    gates = {}
    for at in range(table, min(kernel.end(table), table + 256 * gate.size) - gate.size + 1, gate.size):
        entry = kernel.read(at, gate.size)
        where = int.from_bytes(entry[address.offset : address.offset + 8], "little")
        vector = int.from_bytes(entry[number.offset : number.offset + 4], "little")
        gates[vector] = (where, entry[bits.offset] & 7)  # idt_bits: ist is the lowest three
    vectors = []
    for name, vector, symbol, stack, error_code, from_kernel, from_user in VECTORS:
        if not kernel.has(symbol):
            continue
        entry_address, ist = gates.get(vector, (0, 0))
        if entry_address != kernel.symbol(symbol) or not ist:
            raise ImageError(f"def_idts gives vector {vector} no IST entry {symbol}: {NOT_61}")
        vectors.append(
            Vector(
                name, vector, ist, entry_address, symbol, stack, error_code,
                kernel.symbol(from_kernel), kernel.symbol(from_user),
            )
        )  # fmt: skip
    return linux_atomic.vectors(kernel, vectors)


def _stacks(kernel: Kernel, btf: Btf) -> tuple[tuple[Stack, ...], Stack, Stack]:
    """IST stacks, entry stack (arch/x86/mm/cpu_entry_area.c), and the idle task's kernel stack."""
    area = CEA_RO_IDT + PAGE
    mapped = area + btf.offset("cpu_entry_area", "estacks")
    storage = PERCPU_BASE + kernel.symbol("exception_stacks")
    cea, own = btf.struct("cea_exception_stacks"), btf.struct("exception_stacks")
    stacks = []
    for name in STACKS:
        member, guard = cea[f"{name}_stack"], cea[f"{name}_stack_guard"]
        bottom = mapped + member.offset
        backing = own[f"{name}_stack"]
        if backing.size == member.size:  # no storage for #VC's without CONFIG_AMD_MEM_ENCRYPT
            stacks.append(
                Stack(name, bottom, bottom + member.size, mapped + guard.offset, storage + backing.offset)
            )
    if linux_atomic.is_atomic(kernel):
        stacks += linux_atomic.stacks(kernel, btf, area, PERCPU_BASE)
    page = btf.member("cpu_entry_area", "entry_stack_page.stack")
    bottom = area + page.offset
    # The GDT's read-only page lies below and is the guard.
    gdt = area + btf.offset("cpu_entry_area", "gdt")
    entry = Stack(
        "entry", bottom, bottom + page.size, gdt, PERCPU_BASE + kernel.symbol("entry_stack_storage")
    )
    # The per-CPU area's first contents are linked at address 0.
    top = kernel.word(kernel.symbol("cpu_current_top_of_stack"))
    thread = Stack("thread", kernel.symbol("init_stack"), top, 0, kernel.symbol("init_stack"))
    # with room above it: code that goes from page to page of a stack must not wrap
    if not 0 < thread.top - thread.bottom <= 1 << 16 or thread.top >= (1 << 64) - PAGE:
        raise ImageError(f"cpu_current_top_of_stack does not start at init_stack: {NOT_61}")
    return tuple(stacks), entry, thread


def _regions(
    kernel: Kernel, btf: Btf, stacks: tuple[Stack, ...], entry: Stack, user_text: tuple[int, int]
) -> tuple[Region, ...]:
    """All memory, and what of it the user page tables have (mm/pti.c, pti_clone_user_shared)."""
    area = CEA_RO_IDT + PAGE
    tss = btf.member("cpu_entry_area", "tss")
    gdt = btf.member("cpu_entry_area", "gdt")
    shared = PERCPU_BASE + kernel.symbol("cpu_tss_rw")
    size = -(-kernel.symbol("__per_cpu_end") & -PAGE)
    table = kernel.symbol("idt_table")
    low, high = user_text
    start, end = kernel.symbol("_text"), -(-kernel.symbol("_etext") & -PAGE)
    # Boot takes execution from all but text, and writing from text and read-only data.
    regions = [
        Region("image", part.va, part.size, part.va, bool(part.flags & PF_W), False, False)
        for part in kernel.elf.segments
        if part.va >= start
    ]
    regions += [
        Region("text", start, end - start, start, False, True, False),
        Region("entry text", low, high - low, low, False, True, True),
        Region("per-CPU area", PERCPU_BASE, size, PERCPU_BASE, True, False, False),
        # One page for the sake of the scratch word sp2.
        Region("cpu_tss_rw", shared, PAGE, shared, True, False, True),
        Region("IDT", CEA_RO_IDT, PAGE, table, False, False, True),
        Region(
            "GDT", area + gdt.offset, gdt.size, PERCPU_BASE + kernel.symbol("gdt_page"), False, False, True
        ),
        Region("TSS", area + tss.offset, tss.size, shared, False, False, True),
    ]
    for stack in (entry, *stacks):
        length = stack.top - stack.bottom
        regions += [Region(f"{stack.name} stack", stack.bottom, length, stack.backing, True, False, True)]
    return tuple(regions)


def _words(
    kernel: Kernel, btf: Btf, vectors: tuple[Vector, ...], tops: dict[str, int], features: frozenset[str]
) -> tuple[Word, ...]:
    """What boot writes and entry code reads; words whose value in the image is right are not listed."""
    hardware = btf.struct("x86_hw_tss")
    tss = PERCPU_BASE + kernel.symbol("cpu_tss_rw") + btf.offset("tss_struct", "x86_tss")
    area = CEA_RO_IDT + PAGE
    slot, descriptor = _CPUNODE
    words = [
        Word(kernel.symbol("__per_cpu_offset"), 8, PERCPU_BASE, "__per_cpu_offset[0]"),
        Word(PERCPU_BASE + kernel.symbol("this_cpu_off"), 8, PERCPU_BASE, "this_cpu_off"),
        Word(PERCPU_BASE + kernel.symbol("cpu_number"), 4, 0, "cpu_number"),
        Word(PERCPU_BASE + kernel.symbol("gdt_page") + 8 * slot, 8, descriptor, "GDT: __CPUNODE_SEG, CPU 0"),
        Word(tss + hardware["sp0"].offset, 8, tops["entry"], "TSS.sp0: top of the entry stack"),
        Word(tss + hardware["sp2"].offset, 8, 0, "TSS.sp2: SYSCALL's scratch word"),
        Word(
            PERCPU_BASE + kernel.symbol("cea_exception_stacks"), 8,
            area + btf.offset("cpu_entry_area", "estacks"), "cea_exception_stacks",
        ),
    ]  # fmt: skip
    for vector in vectors:
        if vector.stack in tops:
            at = tss + hardware["ist"].offset + 8 * (vector.ist - 1)
            words.append(Word(at, 8, tops[vector.stack], f"TSS.ist[{vector.ist}]: {vector.stack}"))
    if "KERNEL_IBRS" in features:
        current = PERCPU_BASE + kernel.symbol("x86_spec_ctrl_current")
        words.append(Word(current, 8, 1, "SPEC_CTRL of kernel mode: IBRS"))
    return tuple(words)


def _msrs(syscall: int, features: frozenset[str]) -> dict[int, int]:
    """cpu/common.c, syscall_init; cpu_kernelmode_gs_base; spec_ctrl of KERNEL_IBRS."""
    return {
        GS_BASE: PERCPU_BASE,
        STAR: (0x23 << 16 | KERNEL_CS) << 32,
        LSTAR: syscall,
        # CF PF AF ZF SF TF IF DF OF IOPL NT RF AC ID
        FMASK: 0x0025_7FD5,
        SPEC_CTRL: int("KERNEL_IBRS" in features),
    }


def _percpu_from(kernel: Kernel, reach: Reach) -> str:
    start, end = kernel.range("paranoid_entry", "paranoid_exit")
    used = {i.text.split()[0] for at, i in reach.instructions.items() if start <= at < end}
    for mnemonic, how in (("rdpid", "rdpid"), ("lsl", "lsl"), ("rdmsr", "gsbase sign")):
        if mnemonic in used:
            return how
    raise ImageError(f"paranoid_entry finds the per-CPU area in a way we do not know: {NOT_61}")


def _notes(kernel: Kernel, text: PatchedText, reach: Reach) -> tuple[str, ...]:
    notes = [
        "no KASLR: addresses are those of the link",
        f"the per-CPU area of CPU 0 is placed at {PERCPU_BASE:#x}; the task is the idle task, on init_stack",
    ]
    if kernel.has("_cea_offset"):
        notes.append("the kernel draws each CPU's slot in the cpu_entry_area at random: slot 0 is taken")
    if "PTI" in text.features and "PCID" not in text.features:
        notes.append(
            "pti=on is assumed: with pti=auto and no PCID all kernel text is in the user page tables"
        )
    notes.append("the #VC stacks are mapped, as in an SEV-ES guest; other kernels leave them out")
    notes.append(
        "the IDT's page is empty, `vectors` say what boot writes there; TR and TSS descriptor likewise"
    )
    notes.append("espfix64 is not laid out: IRET to a stack segment of the LDT leaves the model")
    low = min(reach.instructions, default=0)
    high = max(reach.instructions, default=0) + 1
    for what, sites in site_lists(kernel, ((low, high),)).items():
        notes += [
            f"{what} at {kernel.where(site)} is left as linked"
            for site in sites
            if site in reach.instructions
        ]
    if kernel.has("__fentry__") and "__fentry__" in reach.functions:
        notes.append("ftrace's calls of __fentry__ are left as linked, boot makes them NOPs")
    return tuple(notes + [f"unknown: {line}" for line in reach.unknown])
