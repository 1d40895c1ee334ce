/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The environment of the bare build: what Linux would provide to the atomic IST
 * entry, for its C, its assembler and the linker script, which all include this.
 * The names are those of Linux, the values and the code are our own.
 *
 * Configuration, 0 or 1 each: CONFIG_PAGE_TABLE_ISOLATION, ATOMIC_IST_PCID,
 * ATOMIC_IST_FSGSBASE, ATOMIC_IST_IBRS, ATOMIC_IST_UNRET, ATOMIC_IST_SRSO, ATOMIC_IST_IBPB.
 */
#ifndef _ATOMIC_IST_BARE_ENV_H
#define _ATOMIC_IST_BARE_ENV_H

#if !defined(CONFIG_PAGE_TABLE_ISOLATION) || !defined(ATOMIC_IST_PCID) || \
	!defined(ATOMIC_IST_FSGSBASE) || !defined(ATOMIC_IST_IBRS) || \
	!defined(ATOMIC_IST_UNRET) || !defined(ATOMIC_IST_SRSO) || \
	!defined(ATOMIC_IST_IBPB)
#error "the configuration is incomplete"
#endif

#define PAGE_SIZE			4096

/*
 * The cpu entry area, in pages from its start. It is mapped by the kernel's and by
 * the user's page table. Pages not named are not mapped.
 */
#define AREA_GDT			0
#define AREA_ENTRY_STACK		2
#define AREA_TSS			3
#define AREA_DF				5
#define AREA_NMI			7
#define AREA_DB				9
#define AREA_MC				11
#define AREA_VC				13
#if ATOMIC_IST_KERNELIZE
/* Variant 3: the main stack is at a distance of it, and mapped by the kernel's page table only. */
#define AREA_END			15
#define AREA_MAIN			24
#else
#define AREA_MAIN			15
#define AREA_END			18
#endif

#define ATOMIC_IST_STACK_SIZE		PAGE_SIZE
#define ATOMIC_IST_PADS_BOTTOM		(AREA_NMI * PAGE_SIZE)
#define ATOMIC_IST_NMI_TOP		((AREA_NMI + 1) * PAGE_SIZE)
#define ATOMIC_IST_DB_TOP		((AREA_DB + 1) * PAGE_SIZE)
#define ATOMIC_IST_MC_TOP		((AREA_MC + 1) * PAGE_SIZE)
#define ATOMIC_IST_VC_TOP		((AREA_VC + 1) * PAGE_SIZE)
#define ATOMIC_IST_MAIN_GUARD		PAGE_SIZE
#define ATOMIC_IST_MAIN_BOTTOM		(AREA_MAIN * PAGE_SIZE)
#define ATOMIC_IST_MAIN_TOP		((AREA_MAIN + 2) * PAGE_SIZE)
#define ATOMIC_IST_RESERVE		512
#define ATOMIC_IST_ENTRY_STACK_SIZE	PAGE_SIZE
#define ATOMIC_IST_ENTRY_STACK_BOTTOM	(AREA_ENTRY_STACK * PAGE_SIZE)

/* Offsets in struct pt_regs. */
#define R15				0
#define R14				8
#define R13				16
#define R12				24
#define RBP				32
#define RBX				40
#define R11				48
#define R10				56
#define R9				64
#define R8				72
#define RAX				80
#define RCX				88
#define RDX				96
#define RSI				104
#define RDI				112
#define ORIG_RAX			120
#define RIP				128
#define CS				136
#define EFLAGS				144
#define RSP				152
#define SS				160

#ifndef LINKER_SCRIPT
#include "calling.h"
#endif

#if defined(__ASSEMBLY__) && !defined(LINKER_SCRIPT)

/* To @gap, if @ip lies where the kernel runs on the user's RSP. */
.macro ATOMIC_IST_JUMP_IN_SYSCALL_GAP ip:req gap:req
	cmpq	$entry_SYSCALL_64, \ip
	jb	.Lnot_syscall_\@
	cmpq	$entry_SYSCALL_64_safe_stack, \ip
	jb	\gap
.Lnot_syscall_\@:
	cmpq	$entry_SYSRETQ_unsafe_stack, \ip
	jb	.Lnot_sysret_\@
	cmpq	$entry_SYSRETQ_end, \ip
	jb	\gap
.Lnot_sysret_\@:
.endm

#define SYM_INNER_LABEL(name, linkage)	\
	linkage(name);			\
	name:
#define SYM_L_GLOBAL(name)		.globl name
#define SYM_CODE_START(name)		SYM_INNER_LABEL(name, SYM_L_GLOBAL)
#define SYM_CODE_END(name)		\
	.type name STT_NOTYPE;		\
	.size name, . - name

/* Linux's unwinder and indirect branch tracking: nothing here. */
.macro UNWIND_HINT_EMPTY
.endm
.macro UNWIND_HINT_IRET_REGS base=%rsp offset=0
.endm
.macro UNWIND_HINT_REGS base=%rsp offset=0
.endm
#define ENDBR

#define ASM_CLAC			clac

#elif !defined(__ASSEMBLY__)

#include <stdbool.h>
#include <stddef.h>

#define __always_inline			inline __attribute__((__always_inline__))
#define __noreturn			__attribute__((__noreturn__))
#define likely(x)			__builtin_expect(!!(x), 1)
#define BUILD_BUG_ON(condition)		_Static_assert(!(condition), #condition)
#define READ_ONCE(x)			(*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value)		(*(volatile __typeof__(x) *)&(x) = (value))

#define __atomic_ist_text(v)		\
	__attribute__((__noinline__, __section__(".entry.text.atomic_ist." #v ".c")))
#define __atomic_ist_exit_text		\
	__attribute__((__noinline__, __section__(".entry.text.atomic_ist.exit")))
#define ATOMIC_IST_JUMP_HINT		""

struct pt_regs {
	unsigned long r15;
	unsigned long r14;
	unsigned long r13;
	unsigned long r12;
	unsigned long bp;
	unsigned long bx;
	unsigned long r11;
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long flags;
	unsigned long sp;
	unsigned long ss;
};

_Static_assert(offsetof(struct pt_regs, bp) == RBP, "RBP");
_Static_assert(offsetof(struct pt_regs, ax) == RAX, "RAX");
_Static_assert(offsetof(struct pt_regs, di) == RDI, "RDI");
_Static_assert(offsetof(struct pt_regs, orig_ax) == ORIG_RAX, "ORIG_RAX");
_Static_assert(offsetof(struct pt_regs, cs) == CS, "CS");
_Static_assert(offsetof(struct pt_regs, ss) == SS, "SS");

/* The cpu entry area once more, as C sees it; the holes are guard pages. */
struct cpu_entry_area {
	char gdt[PAGE_SIZE];
	char entry_stack_guard[PAGE_SIZE];
	char entry_stack[PAGE_SIZE];
	char tss[PAGE_SIZE];
	char df_guard[PAGE_SIZE];
	char df_stack[PAGE_SIZE];
	char nmi_guard[PAGE_SIZE];
	char nmi_stack[ATOMIC_IST_STACK_SIZE];
	char db_guard[PAGE_SIZE];
	char db_stack[ATOMIC_IST_STACK_SIZE];
	char mc_guard[PAGE_SIZE];
	char mc_stack[ATOMIC_IST_STACK_SIZE];
	char vc_guard[PAGE_SIZE];
	char vc_stack[ATOMIC_IST_STACK_SIZE];
#if !ATOMIC_IST_KERNELIZE
	char main_guard[ATOMIC_IST_MAIN_GUARD];
	char main_stack[2 * PAGE_SIZE];
#endif
	char end_guard[PAGE_SIZE];
};

#define AREA_CHECK(member, page)	\
	_Static_assert(offsetof(struct cpu_entry_area, member) == (page) * PAGE_SIZE, #member)
AREA_CHECK(gdt, AREA_GDT);
AREA_CHECK(entry_stack, AREA_ENTRY_STACK);
AREA_CHECK(tss, AREA_TSS);
AREA_CHECK(df_stack, AREA_DF);
AREA_CHECK(nmi_stack, AREA_NMI);
AREA_CHECK(db_stack, AREA_DB);
AREA_CHECK(mc_stack, AREA_MC);
AREA_CHECK(vc_stack, AREA_VC);
#if !ATOMIC_IST_KERNELIZE
AREA_CHECK(main_stack, AREA_MAIN);
#endif
_Static_assert(sizeof(struct cpu_entry_area) == AREA_END * PAGE_SIZE, "area");

extern char entry_SYSCALL_64[], entry_SYSCALL_64_safe_stack[];
extern char entry_SYSRETQ_unsafe_stack[], entry_SYSRETQ_end[];

/* Between SYSCALL or SYSRET and the change of stacks, RSP is the user's. */
static __always_inline bool ip_within_syscall_gap(struct pt_regs *regs)
{
	const unsigned long ip = regs->ip;

	return (ip >= (unsigned long)entry_SYSCALL_64 &&
		ip < (unsigned long)entry_SYSCALL_64_safe_stack) ||
	       (ip >= (unsigned long)entry_SYSRETQ_unsafe_stack &&
		ip < (unsigned long)entry_SYSRETQ_end);
}

/*
 * What kernelize and restore need: CR3, GSBASE and MSRs. Each access is one instruction
 * that stays where it is, for from one to the next the memory that is mapped changes.
 */
static __always_inline unsigned long read_cr3(void)
{
	unsigned long value;

	asm volatile("movq %%cr3, %0" : "=r" (value) : : "memory");
	return value;
}

static __always_inline void write_cr3(unsigned long value)
{
	asm volatile("movq %0, %%cr3" : : "r" (value) : "memory");
}

static __always_inline void wrmsr(unsigned int msr, unsigned long value)
{
	asm volatile("wrmsr" : : "c" (msr), "a" ((unsigned int)value),
		     "d" ((unsigned int)(value >> 32)) : "memory");
}

/* Without FSGSBASE this is the MSR: slower, but absolute as well. */
static __always_inline void write_gsbase(unsigned long value)
{
#if ATOMIC_IST_FSGSBASE
	asm volatile("wrgsbase %0" : : "r" (value) : "memory");
#else
	wrmsr(MSR_GS_BASE, value);
#endif
}

/* The kernel's GSBASE of this CPU, from no register that a user controls. */
static __always_inline unsigned long kernel_gsbase(void)
{
	unsigned int cpu = __CPUNODE_SEG;
	unsigned long base;

	asm volatile("lsl %0, %0" : "+r" (cpu));
	asm volatile("movq __per_cpu_offset(, %1, 8), %0"
		     : "=r" (base) : "r" ((unsigned long)(cpu & 0xfff)) : "memory");
	return base;
}

/* The top of the stack by which the user's page table is left and entered. Needs the kernel's GSBASE. */
static __always_inline unsigned long entry_stack_top(void)
{
	unsigned long top;

	asm volatile("movq %%gs:cpu_tss_sp0, %0" : "=r" (top) : : "memory");
	return top;
}

/* Needs the kernel's GSBASE. */
static __always_inline unsigned int kernel_spec_ctrl(void)
{
	unsigned int value;

	asm volatile("movl %%gs:x86_spec_ctrl_current, %0" : "=r" (value) : : "memory");
	return value;
}

static __always_inline unsigned long read_spec_ctrl(void)
{
	unsigned int low, high;

	asm volatile("rdmsr" : "=a" (low), "=d" (high) : "c" (MSR_SPEC_CTRL) : "memory");
	return low | (unsigned long)high << 32;
}

/* Whether the translations of @pcid have to be flushed; once. Needs the kernel's GSBASE. */
static __always_inline bool take_user_pcid_flush(unsigned long pcid)
{
	bool flush;

	asm volatile("btrq %1, %%gs:user_pcid_flush_mask" : "=@ccc" (flush) : "r" (pcid) : "memory");
	return flush;
}

#endif
#endif /* _ATOMIC_IST_BARE_ENV_H */
