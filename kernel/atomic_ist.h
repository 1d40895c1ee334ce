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

/*
 * How an entry copies before return predictions are safe (RETBLEED). One source, five
 * ways; the differences are this table, COMMIT() and WALK() in atomic_ist.c, and
 * atomic_ist_stages.S:
 *
 *	1a	the copy is assembler (atomic_ist_copy.S)
 *	1b	the copy is C that returns, reached by JMP; a tool rewrites its one return
 *		thunk into a jump to its one return address
 *	1c	the copy is C that does not return, but jumps to the commit (the default)
 *	2	the copy is C that is called; what makes its RET safe comes before, on the
 *		user's CR3 and GSBASE, the rest after the commit
 *	3	as 2, but CR3, GSBASE and SPEC_CTRL are saved (save 3) and set to the kernel's
 *		(kernelize) before
 *	rfc-v1	the copy is C that is called, and returns, as it comes: not safe
 */
#define ATOMIC_IST_1A		0x1a
#define ATOMIC_IST_1B		0x1b
#define ATOMIC_IST_1C		0x1c
#define ATOMIC_IST_2		0x2
#define ATOMIC_IST_3		0x3
#define ATOMIC_IST_RFC_V1	0xfc1
#ifndef ATOMIC_IST_VARIANT
#define ATOMIC_IST_VARIANT	ATOMIC_IST_1C
#endif

/* Are CR3, GSBASE and SPEC_CTRL the kernel's before the commit? */
#define ATOMIC_IST_KERNELIZE	(ATOMIC_IST_VARIANT == ATOMIC_IST_3)

/* IBRS cannot be set early without keeping what SPEC_CTRL was, in a place that can be found. */
#define ATOMIC_IST_SAVE3	(ATOMIC_IST_KERNELIZE ||	\
				 (ATOMIC_IST_VARIANT == ATOMIC_IST_2 && ATOMIC_IST_IBRS))

/* Is the copy called, on the IST stack? */
#define ATOMIC_IST_CALLED	(ATOMIC_IST_KERNELIZE ||			\
				 ATOMIC_IST_VARIANT == ATOMIC_IST_2 ||	\
				 ATOMIC_IST_VARIANT == ATOMIC_IST_RFC_V1)

/* Save 3, from RSP at the commit on. */
#define ATOMIC_IST_SAVED_SPEC_CTRL	0
#define ATOMIC_IST_SAVED_GSBASE		8
#define ATOMIC_IST_SAVED_CR3		16

#ifdef ATOMIC_IST_BARE
#include "bare/env.h"
#else
#include <asm/atomic_ist_env.h>
#endif

/* The number of atomic vectors: no chain of interrupted entries is longer. */
#define ATOMIC_IST_NR_VECTORS		4

#define ATOMIC_IST_PTREGS_SIZE		168

#if ATOMIC_IST_SAVE3
/*
 * Save 3: three words directly below a pt_regs, on the IST stack and on the main stack.
 * What need not be saved is 0.
 *
 *	16-byte aligned	+----------------------+ stack top, or ALIGN_DOWN(RSP, 16)
 *			| ss ... r15           | struct pt_regs: +24
 *			+----------------------+
 *			| cr3                  | +16
 *			| gsbase               | +8
 *			| spec_ctrl            | +0
 *	RSP at commit	+----------------------+ next slot's top
 */
#define ATOMIC_IST_SAVE3_SIZE		24
#define ATOMIC_IST_SLOT_SIZE		192
#else
#define ATOMIC_IST_SAVE3_SIZE		0
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
#endif

/*
 * Variant 3: the main stack need not be in the user's page table. What an entry needs of the entry
 * stack, which is, to leave for a context that had the user's CR3. Contexts near our stacks begin there.
 */
#if ATOMIC_IST_KERNELIZE && CONFIG_PAGE_TABLE_ISOLATION
#define ATOMIC_IST_EXIT_SIZE		48
#define ATOMIC_IST_NEAR_BOTTOM		ATOMIC_IST_ENTRY_STACK_BOTTOM
#else
#define ATOMIC_IST_EXIT_SIZE		0
#define ATOMIC_IST_NEAR_BOTTOM		ATOMIC_IST_PADS_BOTTOM
#endif

/* What aligns RSP to 16 bytes for a call below a frame. */
#define ATOMIC_IST_CALL_PADDING		(ATOMIC_IST_SLOT_SIZE - ATOMIC_IST_FRAME_SIZE)

/* What lies from RSP at the commit to the end of the pt_regs. */
#define ATOMIC_IST_FRAME_SIZE		(ATOMIC_IST_SAVE3_SIZE + ATOMIC_IST_PTREGS_SIZE)

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
