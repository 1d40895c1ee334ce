/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Naive entry: the handler runs on the IST stack that the event arrived on, and returns
 * from there. Included by atomic_ist_entry.S once for each vector.
 *
 * Each vector for itself is right: all registers, CR3, GSBASE and SPEC_CTRL are saved and
 * restored, whatever was interrupted. What is wrong is that the frame stays on the IST
 * stack while an event of another vector may come, whose IRET lets the next NMI in: IST
 * rewinds, and that NMI writes its frame over this one.
 */
SYM_CODE_START(STUB)
	ENDBR
	ASM_CLAC
	cld
#if !HAS_ERROR_CODE
	pushq	$-1
#endif
	pushq	%rdi
	pushq	%rsi
	pushq	%rdx
	pushq	%rcx
	pushq	%rax
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	UNWIND_HINT_REGS

	xorl	%ebx, %ebx
	ATOMIC_IST_SAVE_AND_SWITCH_TO_KERNEL_CR3 scratch=%rax save=%r14
	ATOMIC_IST_SAVE_AND_SET_KERNEL_GSBASE save=%rbx save32=%ebx
	ATOMIC_IST_SPEC_ENTER save32=%r15d

	movq	%rsp, %rdi
#if HAS_ERROR_CODE
	movq	ORIG_RAX(%rdi), %rsi
	movq	$-1, ORIG_RAX(%rdi)
#endif
	subq	$8, %rsp
	UNWIND_HINT_REGS offset=8
	call	V(ATOMIC_IST_KERNEL_HANDLER)

	ATOMIC_IST_SPEC_EXIT save32=%r15d
	ATOMIC_IST_RESTORE_CR3 scratch=%rax save=%r14
	ATOMIC_IST_RESTORE_GSBASE save=%rbx save32=%ebx

	addq	$8, %rsp
	UNWIND_HINT_REGS
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
	addq	$8, %rsp
	UNWIND_HINT_IRET_REGS
	iretq
SYM_CODE_END(STUB)

#undef VECTOR
#undef STUB
#undef HAS_ERROR_CODE
