/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: what Linux provides to its assembler, by way of
 * <asm/atomic_ist_env.h>: names, and switching CR3, GSBASE and SPEC_CTRL.
 */
#include <linux/linkage.h>
#include <asm/asm-offsets.h>
#include <asm/asm.h>
#include <asm/export.h>
#include <asm/frame.h>
#include <asm/fsgsbase.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>
#include <asm/segment.h>
#include <asm/smap.h>
#include <asm/thread_info.h>
#include <asm/unwind_hints.h>
#include <../entry/calling.h>

/*
 * The gates that the chosen vectors get instead of the entries of entry_64.S. Both are in
 * the image, under names of their own.
 */
#define asm_exc_nmi			asm_exc_nmi_atomic
#define asm_exc_debug			asm_exc_debug_atomic
#define asm_exc_machine_check		asm_exc_machine_check_atomic
#define asm_exc_vmm_communication	asm_exc_vmm_communication_atomic

#ifdef CONFIG_OBJTOOL
/* Compared with, and gone to by IRET; never by an indirect branch, so without ENDBR. */
	.pushsection .discard.noendbr
	.quad	atomic_ist_committed_nmi
	.quad	atomic_ist_committed_db
	.quad	atomic_ist_committed_mc
	.quad	atomic_ist_committed_vc
	.popsection
#endif

/* Where a handler of an event from user mode runs. */
#define ATOMIC_IST_TOP_OF_TASK_STACK	PER_CPU_VAR(cpu_current_top_of_stack)

/* arch/x86/kernel/atomic_ist_handlers.c */
#define ATOMIC_IST_KERNEL_HANDLER_nmi	atomic_ist_kernel_nmi
#define ATOMIC_IST_KERNEL_HANDLER_db	atomic_ist_kernel_db
#define ATOMIC_IST_KERNEL_HANDLER_mc	atomic_ist_kernel_mc
#define ATOMIC_IST_KERNEL_HANDLER_vc	atomic_ist_kernel_vc
#define ATOMIC_IST_USER_HANDLER_nmi	atomic_ist_user_nmi
#define ATOMIC_IST_USER_HANDLER_db	atomic_ist_user_db
#define ATOMIC_IST_USER_HANDLER_mc	atomic_ist_user_mc
#define ATOMIC_IST_USER_HANDLER_vc	atomic_ist_user_vc

/* From user mode: CR3 and GSBASE are the user's. */
.macro ATOMIC_IST_SWITCH_TO_KERNEL_CR3 scratch:req
	SWITCH_TO_KERNEL_CR3 scratch_reg=\scratch
.endm

.macro ATOMIC_IST_SWAPGS_FROM_USER
	swapgs
	FENCE_SWAPGS_USER_ENTRY
.endm

/* The task stack holds nothing yet but the place for pt_regs, and RBP is clear. */
.macro ATOMIC_IST_SPEC_ENTER_FROM_USER
	IBRS_ENTER
	UNTRAIN_RET
#ifdef CONFIG_FRAME_POINTER
	movq	ATOMIC_IST_TOP_OF_TASK_STACK, %rbp
	subq	$(ATOMIC_IST_PTREGS_SIZE - 1), %rbp
#endif
.endm

/* From kernel mode: anything, on the way from or to user mode. */
.macro ATOMIC_IST_SAVE_AND_SWITCH_TO_KERNEL_CR3 scratch:req save:req
	SAVE_AND_SWITCH_TO_KERNEL_CR3 scratch_reg=\scratch save_reg=\save
.endm

.macro ATOMIC_IST_RESTORE_CR3 scratch:req save:req
	RESTORE_CR3 scratch_reg=\scratch save_reg=\save
.endm

/*
 * With FSGSBASE @save is the interrupted context's GSBASE; the unconditional write leaves
 * nothing to speculate on. Without, only the kernel has a negative one, and @save is 1 if
 * GSBASE was swapped. It is 0 before, as all registers are.
 */
.macro ATOMIC_IST_SAVE_AND_SET_KERNEL_GSBASE save:req save32:req
	ALTERNATIVE "jmp .Lcheck_gsbase_\@", "", X86_FEATURE_FSGSBASE
	SAVE_AND_SET_GSBASE scratch_reg=%rax save_reg=\save
	jmp	.Lgsbase_done_\@
.Lcheck_gsbase_\@:
	movl	$MSR_GS_BASE, %ecx
	rdmsr
	testl	%edx, %edx
	js	.Lkernel_gsbase_\@
	movl	$1, \save32
	swapgs
.Lkernel_gsbase_\@:
	FENCE_SWAPGS_KERNEL_ENTRY
.Lgsbase_done_\@:
.endm

.macro ATOMIC_IST_RESTORE_GSBASE save:req save32:req
	ALTERNATIVE "jmp .Lcheck_gsbase_\@", "", X86_FEATURE_FSGSBASE
	wrgsbase \save
	jmp	.Lgsbase_done_\@
.Lcheck_gsbase_\@:
	testl	\save32, \save32
	jz	.Lgsbase_done_\@
	swapgs
.Lgsbase_done_\@:
.endm

/*
 * SPEC_CTRL is a 64-bit value in Linux, so all of R15 holds it. HANDLE_INTR_SAFERET finds
 * pt_regs 8 bytes above RSP.
 */
.macro ATOMIC_IST_SPEC_ENTER save32:req
	.ifnc \save32, %r15d
	.error "SPEC_CTRL is kept in R15"
	.endif
	IBRS_ENTER save_reg=%r15
	UNTRAIN_RET
#ifdef CONFIG_CPU_SRSO
	subq	$8, %rsp
	HANDLE_INTR_SAFERET 8(%rsp)
	addq	$8, %rsp
#endif
	ENCODE_FRAME_POINTER
.endm

.macro ATOMIC_IST_SPEC_EXIT save32:req
	IBRS_EXIT save_reg=%r15
.endm
