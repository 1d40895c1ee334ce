/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Switching CR3, GSBASE and SPEC_CTRL between the user's, or whatever they were, and
 * the kernel's. Where Linux decides while it boots, with alternatives, this decides
 * when it is built.
 */
#ifndef _ATOMIC_IST_BARE_CALLING_H
#define _ATOMIC_IST_BARE_CALLING_H

#define __KERNEL_CS			0x10
#define __USER_CS			0x33
#define __USER_DS			0x2b
#define __CPUNODE_SEG			0x7b

#define MSR_SPEC_CTRL			0x48
#define SPEC_CTRL_IBRS			1
#define MSR_PRED_CMD			0x49
#define PRED_CMD_IBPB			1
#define MSR_GS_BASE			0xc0000101
#define MSR_KERNEL_GS_BASE		0xc0000102

/* The user's page table is the page after the kernel's, its PCID is 0x800 more. */
#define CR3_USER_PGTABLE_BIT		12
#define CR3_USER_PGTABLE		0x1000
#define CR3_USER_PCID			0x800
#define CR3_USER_MASK			(CR3_USER_PGTABLE | CR3_USER_PCID)
#define CR3_KERNEL_PCID_MASK		0x7ff
#define CR3_NOFLUSH_BIT			63
#define CR3_NOFLUSH			0x8000000000000000

#define PER_CPU_VAR(variable)		%gs:variable

/* Where a handler of an event from user mode runs. */
#define ATOMIC_IST_TOP_OF_TASK_STACK	PER_CPU_VAR(cpu_current_top_of_stack)

/* Handlers for events that interrupted kernel or user mode. */
#define ATOMIC_IST_KERNEL_HANDLER_nmi	exc_nmi
#define ATOMIC_IST_KERNEL_HANDLER_db	exc_debug
#define ATOMIC_IST_KERNEL_HANDLER_mc	exc_machine_check
#define ATOMIC_IST_KERNEL_HANDLER_vc	exc_vmm_communication
#define ATOMIC_IST_USER_HANDLER_nmi	exc_nmi
#define ATOMIC_IST_USER_HANDLER_db	exc_debug
#define ATOMIC_IST_USER_HANDLER_mc	exc_machine_check
#define ATOMIC_IST_USER_HANDLER_vc	exc_vmm_communication

#ifdef __ASSEMBLY__

.macro ATOMIC_IST_TO_KERNEL_CR3 cr3:req
	andq	$~CR3_USER_MASK, \cr3
#if ATOMIC_IST_PCID
	btsq	$CR3_NOFLUSH_BIT, \cr3
#endif
	movq	\cr3, %cr3
.endm

/* From user mode: CR3 is the user's. */
.macro ATOMIC_IST_SWITCH_TO_KERNEL_CR3 scratch:req
#if CONFIG_PAGE_TABLE_ISOLATION
	movq	%cr3, \scratch
	ATOMIC_IST_TO_KERNEL_CR3 \scratch
#endif
.endm

/*
 * To user mode: the user's page table has a PCID of its own, whose translations are
 * kept unless the kernel wants them flushed. Needs the kernel's GSBASE.
 */
.macro ATOMIC_IST_SWITCH_TO_USER_CR3 scratch:req pcid:req
#if CONFIG_PAGE_TABLE_ISOLATION
	movq	%cr3, \scratch
#if ATOMIC_IST_PCID
	movq	\scratch, \pcid
	andq	$CR3_KERNEL_PCID_MASK, \pcid
	btrq	\pcid, PER_CPU_VAR(user_pcid_flush_mask)
	jc	.Lflush_\@
	btsq	$CR3_NOFLUSH_BIT, \scratch
.Lflush_\@:
	orq	$CR3_USER_MASK, \scratch
#else
	orq	$CR3_USER_PGTABLE, \scratch
#endif
	movq	\scratch, %cr3
#endif
.endm

/* From kernel mode: CR3 may be either, on the way from or to user mode. */
.macro ATOMIC_IST_SAVE_AND_SWITCH_TO_KERNEL_CR3 scratch:req save:req
#if CONFIG_PAGE_TABLE_ISOLATION
	movq	%cr3, \save
	btq	$CR3_USER_PGTABLE_BIT, \save
	jnc	.Lkernel_cr3_\@
	movq	\save, \scratch
	ATOMIC_IST_TO_KERNEL_CR3 \scratch
.Lkernel_cr3_\@:
#endif
.endm

/* To kernel mode: what was not changed need not be restored. Needs kernel GSBASE. */
.macro ATOMIC_IST_RESTORE_CR3 scratch:req save:req
#if CONFIG_PAGE_TABLE_ISOLATION
	btq	$CR3_USER_PGTABLE_BIT, \save
	jnc	.Lkernel_cr3_\@
#if ATOMIC_IST_PCID
	movq	\save, \scratch
	andq	$CR3_KERNEL_PCID_MASK, \scratch
	btrq	\scratch, PER_CPU_VAR(user_pcid_flush_mask)
	jc	.Lflush_\@
	btsq	$CR3_NOFLUSH_BIT, \save
.Lflush_\@:
#endif
	movq	\save, %cr3
.Lkernel_cr3_\@:
#endif
.endm

/* From user mode: GSBASE is the user's, and a guess that it is not must not be used. */
.macro ATOMIC_IST_SWAPGS_FROM_USER
	swapgs
	lfence
.endm

/*
 * From kernel mode: GSBASE may be either. With FSGSBASE the user chooses any value,
 * so nothing can be concluded from it: it is saved, and the kernel's is written, found
 * by the CPU number in the limit of a segment. The write leaves nothing to guess.
 * Needs the kernel's CR3.
 *
 * Without, only the kernel has a negative one. @save is 1 if GSBASE was swapped; on
 * entry it is 0, like all registers after the commit. Either outcome may have been
 * guessed, so there is a fence on both ways.
 *
 * Clobbers RAX, RCX and RDX.
 */
.macro ATOMIC_IST_SAVE_AND_SET_KERNEL_GSBASE save:req save32:req
#if ATOMIC_IST_FSGSBASE
	rdgsbase \save
	movl	$__CPUNODE_SEG, %eax
	lsl	%eax, %eax
	andl	$0xfff, %eax
	movq	__per_cpu_offset(, %rax, 8), %rax
	wrgsbase %rax
#else
	movl	$MSR_GS_BASE, %ecx
	rdmsr
	testl	%edx, %edx
	js	.Lkernel_gsbase_\@
	movl	$1, \save32
	swapgs
.Lkernel_gsbase_\@:
	lfence
#endif
.endm

/*
 * Save 3: push CR3, GSBASE and SPEC_CTRL, 0 for what this entry does not change before its
 * commit. Clobbers RAX, RCX and RDX.
 */
.macro ATOMIC_IST_PUSH_SAVE3
#if ATOMIC_IST_KERNELIZE && CONFIG_PAGE_TABLE_ISOLATION
	movq	%cr3, %rax
	pushq	%rax
#else
	pushq	$0
#endif
#if ATOMIC_IST_KERNELIZE && ATOMIC_IST_FSGSBASE
	rdgsbase %rax
	pushq	%rax
#elif ATOMIC_IST_KERNELIZE
	movl	$MSR_GS_BASE, %ecx
	rdmsr
	shlq	$32, %rdx
	orq	%rdx, %rax
	pushq	%rax
#else
	pushq	$0
#endif
#if ATOMIC_IST_IBRS
	movl	$MSR_SPEC_CTRL, %ecx
	rdmsr
	shlq	$32, %rdx
	orq	%rdx, %rax
	pushq	%rax
#else
	pushq	$0
#endif
.endm

/*
 * After kernelize, from user mode: what SWAPGS will make the user's GSBASE. Written, not
 * swapped: GSBASE is the kernel's already. Clobbers RAX, RCX and RDX.
 */
.macro ATOMIC_IST_SET_USER_GSBASE from:req
	movl	$MSR_KERNEL_GS_BASE, %ecx
	movl	\from, %eax
	movl	4+\from, %edx
	wrmsr
.endm

.macro ATOMIC_IST_RESTORE_GSBASE save:req save32:req
#if ATOMIC_IST_FSGSBASE
	wrgsbase \save
#else
	testl	\save32, \save32
	jz	.Lkernel_gsbase_\@
	swapgs
.Lkernel_gsbase_\@:
#endif
.endm

/*
 * RETBLEED: before the first RET or indirect branch of the kernel, and after the last one.
 * Return predictions are made safe by IBRS, which is set for the kernel, and restored
 * or cleared; by untraining the one RET of the kernel; or by an IBPB. IBRS is kept in
 * SPEC_CTRL, of which x86_spec_ctrl_current holds the kernel's value. The user's is the same
 * without IBRS. All need the kernel's CR3 and GSBASE. Clobber RAX, RCX and RDX.
 */
.macro ATOMIC_IST_SPEC_WRITE value:req
	movl	$MSR_SPEC_CTRL, %ecx
	movl	\value, %eax
	xorl	%edx, %edx
	wrmsr
.endm

.macro ATOMIC_IST_IBPB_WRITE
	movl	$MSR_PRED_CMD, %ecx
	movl	$PRED_CMD_IBPB, %eax
	xorl	%edx, %edx
	wrmsr
.endm

.macro ATOMIC_IST_UNTRAIN
#if ATOMIC_IST_UNRET
	call	entry_untrain_ret
#endif
.endm

.macro ATOMIC_IST_SPEC_ENTER_FROM_USER
	ATOMIC_IST_UNTRAIN
#if ATOMIC_IST_IBRS
	ATOMIC_IST_SPEC_WRITE PER_CPU_VAR(x86_spec_ctrl_current)
#elif ATOMIC_IST_IBPB
	ATOMIC_IST_IBPB_WRITE
#endif
.endm

/*
 * Early: what is possible with the user's CR3 and GSBASE. IBRS is added to what SPEC_CTRL is,
 * which save 3 has just left in RAX: to do it again changes nothing. Clobber RAX, RCX and RDX.
 */
.macro ATOMIC_IST_SPEC_ENTER_EARLY
#if ATOMIC_IST_IBRS
	movq	%rax, %rdx
	orl	$SPEC_CTRL_IBRS, %eax
	shrq	$32, %rdx
	wrmsr
#elif ATOMIC_IST_IBPB
	ATOMIC_IST_IBPB_WRITE
#endif
.endm

.macro ATOMIC_IST_SPEC_EXIT_TO_USER
#if ATOMIC_IST_IBRS
	movl	$MSR_SPEC_CTRL, %ecx
	movl	PER_CPU_VAR(x86_spec_ctrl_current), %eax
	andl	$~SPEC_CTRL_IBRS, %eax
	xorl	%edx, %edx
	wrmsr
#endif
.endm

/*
 * A safe-RET is LEA 8(%rsp), %rsp and RET, and the RET is safe right behind the CALL that leads
 * there. If it was interrupted, it is not resumed: what is left of it is done to pt_regs, which
 * is where RSP points, above save 3. Clobbers RAX and RCX.
 */
#if ATOMIC_IST_SAVE3
#define REGS_AT_COMMIT			(ATOMIC_IST_SAVED_CR3 + 8)
#else
#define REGS_AT_COMMIT			0
#endif

.macro ATOMIC_IST_FINISH_SAFE_RET
#if ATOMIC_IST_SRSO
	cmpq	$srso_safe_ret, REGS_AT_COMMIT + RIP(%rsp)
	jb	.Lnot_safe_ret_\@
	cmpq	$srso_safe_ret + 5, REGS_AT_COMMIT + RIP(%rsp)
	ja	.Lnot_safe_ret_\@
	movq	REGS_AT_COMMIT + RSP(%rsp), %rax
	je	.Lret_is_left_\@
	addq	$8, %rax
.Lret_is_left_\@:
	movq	(%rax), %rcx
	addq	$8, %rax
	movq	%rcx, REGS_AT_COMMIT + RIP(%rsp)
	movq	%rax, REGS_AT_COMMIT + RSP(%rsp)
.Lnot_safe_ret_\@:
#endif
.endm

.macro ATOMIC_IST_SPEC_ENTER save32:req
#if ATOMIC_IST_KERNELIZE
	ATOMIC_IST_UNTRAIN
#else
#if ATOMIC_IST_IBRS && !ATOMIC_IST_SAVE3
	movl	$MSR_SPEC_CTRL, %ecx
	rdmsr
	movl	%eax, \save32
#endif
	ATOMIC_IST_SPEC_ENTER_FROM_USER
#endif
	ATOMIC_IST_FINISH_SAFE_RET
.endm

.macro ATOMIC_IST_SPEC_EXIT save32:req
#if ATOMIC_IST_IBRS && ATOMIC_IST_SAVE3
	ATOMIC_IST_SPEC_WRITE ATOMIC_IST_SAVED_SPEC_CTRL(%rsp)
#elif ATOMIC_IST_IBRS
	ATOMIC_IST_SPEC_WRITE \save32
#endif
.endm

#endif /* __ASSEMBLY__ */
#endif /* _ATOMIC_IST_BARE_CALLING_H */
