/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: the assembler of one vector. Included by atomic_ist_entry.S once
 * for each, with VECTOR (nmi, db, mc, vc), STUB (the target of the gate in the IDT) and
 * HAS_ERROR_CODE (whether the processor pushes one). It is no macro, so that each
 * instruction has a source line.
 *
 *	STUB			save 1 is done; save 2
 *	(variants 2 and 3)	in atomic_ist_stages.S: save 3, kernelize, untrain
 *	atomic_ist_copy_<v>	in C: locate, copy
 *	atomic_ist_commit_<v>	clear the registers; commit
 *	atomic_ist_committed_<v> from here on no IST stack is in use
 */

/*
 * From here to atomic_ist_committed_<v> any other atomic vector may interrupt, and this
 * entry will then not be resumed here, but be committed by the other one. Everything it
 * does has to be such that the other one can do it again: see atomic_ist.c. No general
 * register may change before the last push, for one that has not finished pushing has
 * not saved anything.
 *
 * IST stack, exactly a struct pt_regs below its top:
 *
 *	ss, sp, flags, cs, ip	save 1
 *	orig_ax			save 1, or else a placeholder
 *	di ... r15		save 2
 *
 * The registers are not cleared here, as entry code does to keep the user's values from
 * speculation. The C code uses no register that it has not written, and just before the
 * commit they are all cleared, which makes this entry look the same whether it commits
 * itself or is committed by another one.
 */
SYM_CODE_START(STUB)
#if HAS_ERROR_CODE
	UNWIND_HINT_IRET_REGS offset=8
#else
	UNWIND_HINT_IRET_REGS
#endif
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
#if ATOMIC_IST_CALLED
#include "atomic_ist_stages.S"
#else
	movq	%rsp, %rdi
	jmp	V(atomic_ist_copy)
#endif
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1B
/*
 * The C function was not called, but its return thunk was rewritten to come here. It leaves
 * RSP as it was, and the address that it returns in RAX.
 */
SYM_INNER_LABEL(CAT(V(atomic_ist_copy), _return), SYM_L_GLOBAL)
	jmp	V(atomic_ist_commit)
#endif

/*
 * A deliberate double fault, with RDI as the C code has left it. PUSH with an RSP that
 * is no canonical address is a #SS, and #SS has no stack of its own: to deliver it would
 * push there too. So it becomes a #DF, on the stack of #DF, with its error code, for
 * the handler to find it as any other. INT $8 would push no error code, and shift the
 * frame; UD2 would be delivered as #UD on this stack, and be handled as a mere bug while
 * contexts are lost.
 *
 * RIP and RSP contradict each other on the way to the PUSH, so whoever interrupts that
 * has a double fault as well.
 */
SYM_INNER_LABEL(V(atomic_ist_double_fault_twice), SYM_L_GLOBAL)
	UNWIND_HINT_REGS base=%rdi
	movl	$ATOMIC_IST_TWICE, %eax
	movabsq	$(ATOMIC_IST_DOUBLE_FAULT_RSP + ATOMIC_IST_TWICE), %rsp
	pushq	%rax
	int3

SYM_INNER_LABEL(V(atomic_ist_double_fault_contradiction), SYM_L_GLOBAL)
	UNWIND_HINT_REGS base=%rdi
	movl	$ATOMIC_IST_CONTRADICTION, %eax
	movabsq	$(ATOMIC_IST_DOUBLE_FAULT_RSP + ATOMIC_IST_CONTRADICTION), %rsp
	pushq	%rax
	int3

SYM_INNER_LABEL(V(atomic_ist_double_fault_overflow), SYM_L_GLOBAL)
	UNWIND_HINT_REGS base=%rdi
	movl	$ATOMIC_IST_OVERFLOW, %eax
	movabsq	$(ATOMIC_IST_DOUBLE_FAULT_RSP + ATOMIC_IST_OVERFLOW), %rsp
	pushq	%rax
	int3

/*
 * RAX is the address of the lowest pt_regs on the main stack. The commit is one
 * instruction: before it this entry will be done again, after it the entry owns its
 * part of the main stack, and nothing on any IST stack is needed any more.
 */
SYM_INNER_LABEL(V(atomic_ist_commit), SYM_L_GLOBAL)
	UNWIND_HINT_EMPTY
	xorl	%edi, %edi
	xorl	%esi, %esi
	xorl	%edx, %edx
	xorl	%ecx, %ecx
	xorl	%r8d, %r8d
	xorl	%r9d, %r9d
	xorl	%r10d, %r10d
	xorl	%r11d, %r11d
	xorl	%ebx, %ebx
	xorl	%ebp, %ebp
	xorl	%r12d, %r12d
	xorl	%r13d, %r13d
	xorl	%r14d, %r14d
	xorl	%r15d, %r15d
	movq	%rax, %rsp

/*
 * An interrupted entry is resumed here, as in atomic_ist.c: copy_nested(): all
 * registers are 0 but RAX, which equals RSP. CR3, GSBASE and SPEC_CTRL are still those
 * of the interrupted context.
 *
 * If this entry was interrupted before it had pushed the placeholder, orig_ax is what
 * lay on the IST stack.
 */
SYM_INNER_LABEL(V(atomic_ist_committed), SYM_L_GLOBAL)
	UNWIND_HINT_REGS offset=ATOMIC_IST_SAVE3_SIZE
#if !HAS_ERROR_CODE
	movq	$-1, ATOMIC_IST_SAVE3_SIZE + ORIG_RAX(%rsp)
#endif
	testb	$3, ATOMIC_IST_SAVE3_SIZE + CS(%rsp)
	jnz	V(.Lfrom_user)

/*
 * From kernel mode. It may have been on the way from or to user mode: nothing is known
 * of CR3, GSBASE and SPEC_CTRL. They are kept in registers that the handler preserves,
 * and so does every event. CR3 comes first, for per-CPU data is in the kernel's page
 * table only. The handler runs on the main stack, below the pt_regs; 8 bytes of padding
 * align it. What save 3 has kept is in memory instead, and with kernelize all of it is set.
 */
#if !ATOMIC_IST_KERNELIZE
	ATOMIC_IST_SAVE_AND_SWITCH_TO_KERNEL_CR3 scratch=%rax save=%r14
	ATOMIC_IST_SAVE_AND_SET_KERNEL_GSBASE save=%rbx save32=%ebx
#endif
	ATOMIC_IST_SPEC_ENTER save32=%r15d

	leaq	ATOMIC_IST_SAVE3_SIZE(%rsp), %rdi
#if HAS_ERROR_CODE
	movq	ORIG_RAX(%rdi), %rsi
	movq	$-1, ORIG_RAX(%rdi)
#endif
	subq	$ATOMIC_IST_CALL_PADDING, %rsp
	UNWIND_HINT_REGS offset=ATOMIC_IST_CALL_PADDING+ATOMIC_IST_SAVE3_SIZE
	call	V(ATOMIC_IST_KERNEL_HANDLER)

#if ATOMIC_IST_KERNELIZE
	movq	%rsp, %rdi
	jmp	atomic_ist_restore
#else
	ATOMIC_IST_SPEC_EXIT save32=%r15d
	ATOMIC_IST_RESTORE_CR3 scratch=%rax save=%r14
	ATOMIC_IST_RESTORE_GSBASE save=%rbx save32=%ebx

	addq	$(ATOMIC_IST_CALL_PADDING + ATOMIC_IST_SAVE3_SIZE), %rsp
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
#endif

/*
 * From user mode: there is a task stack, and nothing on it, so that the handler may do
 * what others from user mode do. POP copies a word and frees it in one instruction: what
 * an event in here may overwrite is copied already, and what is not yet copied lies above
 * RSP. In the end the main stack is empty, and is left in one instruction.
 */
V(.Lfrom_user):
#if ATOMIC_IST_KERNELIZE
	ATOMIC_IST_SET_USER_GSBASE from=ATOMIC_IST_SAVED_GSBASE(%rsp)
	ATOMIC_IST_UNTRAIN
#else
	ATOMIC_IST_SWAPGS_FROM_USER
	ATOMIC_IST_SWITCH_TO_KERNEL_CR3 scratch=%rax
	ATOMIC_IST_SPEC_ENTER_FROM_USER
#endif
#if ATOMIC_IST_SAVE3
	addq	$ATOMIC_IST_SAVE3_SIZE, %rsp
#endif

	movq	ATOMIC_IST_TOP_OF_TASK_STACK, %rdi
	subq	$ATOMIC_IST_PTREGS_SIZE, %rdi
	UNWIND_HINT_EMPTY
	popq	R15(%rdi)
	popq	R14(%rdi)
	popq	R13(%rdi)
	popq	R12(%rdi)
	popq	RBP(%rdi)
	popq	RBX(%rdi)
	popq	R11(%rdi)
	popq	R10(%rdi)
	popq	R9(%rdi)
	popq	R8(%rdi)
	popq	RAX(%rdi)
	popq	RCX(%rdi)
	popq	RDX(%rdi)
	popq	RSI(%rdi)
	popq	RDI(%rdi)
	popq	ORIG_RAX(%rdi)
	popq	RIP(%rdi)
	popq	CS(%rdi)
	popq	EFLAGS(%rdi)
	popq	RSP(%rdi)
	popq	SS(%rdi)
	leaq	-8(%rdi), %rsp
	UNWIND_HINT_REGS offset=8

#if HAS_ERROR_CODE
	movq	ORIG_RAX(%rdi), %rsi
	movq	$-1, ORIG_RAX(%rdi)
#endif
	call	V(ATOMIC_IST_USER_HANDLER)
	addq	$8, %rsp
	UNWIND_HINT_REGS
	jmp	swapgs_restore_regs_and_return_to_usermode
SYM_CODE_END(STUB)

#undef VECTOR
#undef STUB
#undef HAS_ERROR_CODE
