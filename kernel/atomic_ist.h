/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: what its C and its assembler have in common.
 *
 * NMI, #DB, #MC and #VC arrive on IST stacks. IST rewinds: the same vector
 * arriving again starts at the same stack top and overwrites the first frame.
 * So the IST stacks are but landing pads here. Each entry saves its context on
 * its pad, copies it to one stack that the four vectors share (the main stack),
 * and moves RSP there with one instruction, the commit. An entry that interrupts
 * others before their commit does their work too, and commits for all of them.
 *
 * The environment (ATOMIC_IST_BARE: bare/env.h, else <asm/atomic_ist_env.h>)
 * provides
 *
 *   for C	struct pt_regs, READ_ONCE(), WRITE_ONCE(), ip_within_syscall_gap(),
 *		__always_inline, __noreturn, likely(), BUILD_BUG_ON(),
 *		__atomic_ist_text(v): attributes of a function of vector v,
 *		ATOMIC_IST_JUMP_HINT: a string, put before a jump out of C
 *   layout	offsets from the start of the area that holds all the stacks:
 *		ATOMIC_IST_{NMI,DB,MC,VC}_TOP, ATOMIC_IST_STACK_SIZE (of each),
 *		ATOMIC_IST_MAIN_BOTTOM, ATOMIC_IST_MAIN_TOP,
 *		ATOMIC_IST_MAIN_GUARD: size of the hole below the main stack,
 *		ATOMIC_IST_PADS_BOTTOM: the lowest bottom of the four;
 *		ATOMIC_IST_RESERVE: bytes of main stack left to a handler
 *   for asm	R15 ... SS: offsets in struct pt_regs; SYM_*, UNWIND_HINT_*, ENDBR,
 *		ASM_CLAC, ATOMIC_IST_TOP_OF_TASK_STACK, ATOMIC_IST_*_HANDLER_<v>
 *		and the macros of bare/calling.h
 *
 * and its linker script places, for each vector v in {nmi, db, mc, vc}, section
 * .entry.text.atomic_ist.<v>.c directly before .entry.text.atomic_ist.<v>, with
 * the symbol __atomic_ist_<v>_text before both, and __atomic_ist_text_start and
 * __atomic_ist_text_end around all of them.
 */
#ifndef _ATOMIC_IST_H
#define _ATOMIC_IST_H

#ifdef ATOMIC_IST_BARE
#include "bare/env.h"
#else
#include <asm/atomic_ist_env.h>
#endif

/* The number of atomic vectors: no chain of interrupted entries is longer. */
#define ATOMIC_IST_NR_VECTORS		4

#define ATOMIC_IST_PTREGS_SIZE		168

/*
 * A pt_regs on the main stack, with the padding that ALIGN_DOWN(RSP, 16) leaves
 * between two of them:
 *
 *	16-byte aligned	+----------------------+ stack top, or ALIGN_DOWN(RSP, 16)
 *			| ss                   | +160
 *			| sp                   | +152
 *			| flags                | +144
 *			| cs                   | +136
 *			| ip                   | +128
 *			| orig_ax              | +120  error code or -1
 *			| di ... r15           | +112 ... +0
 *	RSP at commit	+----------------------+ <- struct pt_regs *
 *			| padding              | -8
 *	16-byte aligned	+----------------------+ next slot's top
 */
#define ATOMIC_IST_SLOT_SIZE		176

/* RFLAGS of an entry that has just committed: the bit that is always set. */
#define ATOMIC_IST_COMMITTED_FLAGS	0x2

/*
 * A deliberate double fault: its reason is in EAX, and in the low byte of the
 * interrupted RSP, which is no canonical address with 48 or 57 bits.
 */
#define ATOMIC_IST_TWICE		1	/* a vector met twice */
#define ATOMIC_IST_CONTRADICTION	2	/* RIP and RSP name different entries */
#define ATOMIC_IST_OVERFLOW		3	/* the main stack is exhausted */
#define ATOMIC_IST_DOUBLE_FAULT_RSP	0xdeada70000000000

#endif /* _ATOMIC_IST_H */
