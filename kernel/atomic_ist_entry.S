/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: the same assembler for each of the four vectors, in a section of
 * its own for each, so that RIP tells the vector.
 */
#include "atomic_ist.h"

#define __CAT(a, b)	a##b
#define CAT(a, b)	__CAT(a, b)

/* <name>_<v> for the vector v in hand */
#define V(name)		CAT(name##_, VECTOR)

#define VECTOR		nmi
#define STUB		asm_exc_nmi
#define HAS_ERROR_CODE	0
	.section .entry.text.atomic_ist.nmi, "ax"
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1A
#define PAD_TOP		ATOMIC_IST_NMI_TOP
#include "atomic_ist_copy.S"
#undef PAD_TOP
#endif
#include "atomic_ist_vector.S"

#define VECTOR		db
#define STUB		asm_exc_debug
#define HAS_ERROR_CODE	0
	.section .entry.text.atomic_ist.db, "ax"
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1A
#define PAD_TOP		ATOMIC_IST_DB_TOP
#include "atomic_ist_copy.S"
#undef PAD_TOP
#endif
#include "atomic_ist_vector.S"

#define VECTOR		mc
#define STUB		asm_exc_machine_check
#define HAS_ERROR_CODE	0
	.section .entry.text.atomic_ist.mc, "ax"
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1A
#define PAD_TOP		ATOMIC_IST_MC_TOP
#include "atomic_ist_copy.S"
#undef PAD_TOP
#endif
#include "atomic_ist_vector.S"

#define VECTOR		vc
#define STUB		asm_exc_vmm_communication
#define HAS_ERROR_CODE	1
	.section .entry.text.atomic_ist.vc, "ax"
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1A
#define PAD_TOP		ATOMIC_IST_VC_TOP
#include "atomic_ist_copy.S"
#undef PAD_TOP
#endif
#include "atomic_ist_vector.S"

#if ATOMIC_IST_KERNELIZE
/* The general registers of the pt_regs at RSP; RSP behind them. */
.macro POP_REGISTERS
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rax
	popq	%rcx
	popq	%rdx
	popq	%rsi
	popq	%rdi
.endm

/*
 * CR3, GSBASE and SPEC_CTRL are the interrupted kernel context's. RDI points to where they
 * were saved, below its pt_regs.
 */
	.section .entry.text.atomic_ist.exit, "ax"
SYM_CODE_START(atomic_ist_restored)
	leaq	ATOMIC_IST_SAVE3_SIZE(%rdi), %rsp
	UNWIND_HINT_REGS
	POP_REGISTERS
	addq	$8, %rsp
	UNWIND_HINT_IRET_REGS
	iretq
SYM_CODE_END(atomic_ist_restored)

#if ATOMIC_IST_EXIT_SIZE
/*
 * As before, but for CR3, which will be the user's. In place of RAX is the value for CR3, and in
 * place of the error code the address on the entry stack, where RAX is, and a frame for IRET. The
 * main stack is left in one instruction, and only then is it no longer mapped.
 */
SYM_CODE_START(atomic_ist_leave)
	leaq	ATOMIC_IST_SAVE3_SIZE(%rdi), %rsp
	UNWIND_HINT_EMPTY
	POP_REGISTERS
	popq	%rsp
	UNWIND_HINT_IRET_REGS offset=8
	movq	%rax, %cr3
	popq	%rax
	UNWIND_HINT_IRET_REGS
	iretq
SYM_CODE_END(atomic_ist_leave)
#endif
#endif
