/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: what Linux provides to arch/x86/entry/atomic_ist*, in the terms of
 * arch/x86/entry/atomic_ist.h. Others include it for constants, with
 * ATOMIC_IST_CONSTANTS_ONLY.
 */
#ifndef _ASM_X86_ATOMIC_IST_ENV_H
#define _ASM_X86_ATOMIC_IST_ENV_H

#ifdef __ASSEMBLY__
#include <../entry/atomic_ist_calling.S>
#else /* !__ASSEMBLY__ */

#include <linux/bug.h>
#include <linux/compiler.h>
#include <linux/linkage.h>
#include <linux/ptrace.h>
#include <linux/types.h>
#include <asm/atomic_ist.h>
#include <asm/unwind_hints.h>

/* As noinstr, but next to the assembler of the vector. */
#define __atomic_ist_text(v)						\
	noinline notrace __section(".entry.text.atomic_ist." #v ".c")	\
	__no_kcsan __no_sanitize_address __no_profile			\
	__no_sanitize_coverage __no_sanitize_memory

/*
 * For objtool: these functions are entered by JMP, with RSP at a struct pt_regs and no
 * return address, and left by JMP, to where assembler states anew what the stack is. The
 * local name makes a relocation by section, the only one that objtool takes here.
 */
#define __ATOMIC_IST_ENTERED_WITH_REGS(symbol)				\
	asm(".set .L" #symbol ", " #symbol "\n\t"			\
	    ".pushsection .discard.unwind_hints\n\t"			\
	    ".long .L" #symbol " - .\n\t"				\
	    ".short 0\n\t"						\
	    ".byte " __stringify(ORC_REG_SP) "\n\t"			\
	    ".byte " __stringify(UNWIND_HINT_TYPE_REGS) "\n\t"		\
	    ".byte 0\n\t"						\
	    ".balign 4\n\t"						\
	    ".popsection")

#if defined(CONFIG_OBJTOOL) && !defined(ATOMIC_IST_CONSTANTS_ONLY)
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_copy_nmi);
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_walk_nmi);
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_copy_db);
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_walk_db);
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_copy_mc);
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_walk_mc);
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_copy_vc);
__ATOMIC_IST_ENTERED_WITH_REGS(atomic_ist_walk_vc);
#endif

#define ATOMIC_IST_JUMP_HINT						\
	UNWIND_HINT(ORC_REG_SP, 8, UNWIND_HINT_TYPE_FUNC, 0)

/* Offsets in struct cea_atomic_ist. */
#define ATOMIC_IST_STACK_SIZE		PAGE_SIZE
#define ATOMIC_IST_PADS_BOTTOM		offsetof(struct cea_atomic_ist, NMI_pad)
#define ATOMIC_IST_NMI_TOP		offsetofend(struct cea_atomic_ist, NMI_pad)
#define ATOMIC_IST_DB_TOP		offsetofend(struct cea_atomic_ist, DB_pad)
#define ATOMIC_IST_MC_TOP		offsetofend(struct cea_atomic_ist, MC_pad)
#define ATOMIC_IST_VC_TOP		offsetofend(struct cea_atomic_ist, VC_pad)
#define ATOMIC_IST_MAIN_GUARD		PAGE_SIZE
#define ATOMIC_IST_MAIN_BOTTOM		offsetof(struct cea_atomic_ist, main)
#define ATOMIC_IST_MAIN_TOP		offsetofend(struct cea_atomic_ist, main)

/* What a handler needs at least. */
#define ATOMIC_IST_RESERVE		1024

/* For the rest of the kernel. */
asmlinkage void asm_exc_nmi_atomic(void);
asmlinkage void asm_exc_debug_atomic(void);
asmlinkage void asm_exc_machine_check_atomic(void);
asmlinkage void asm_exc_vmm_communication_atomic(void);
extern char atomic_ist_committed_nmi[], atomic_ist_committed_db[];
extern char atomic_ist_committed_mc[], atomic_ist_committed_vc[];
extern char __atomic_ist_text_start[], __atomic_ist_text_end[];

#endif /* !__ASSEMBLY__ */
#endif /* _ASM_X86_ATOMIC_IST_ENV_H */
