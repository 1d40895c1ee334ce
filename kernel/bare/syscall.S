/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SYSCALL, SYSRET and the return to user mode of the bare image: the same gaps, stacks
 * and steps as in Linux. This is what atomic entries interrupt, not what they are.
 */
#include "../atomic_ist.h"

	.section .entry.text, "ax"

/*
 * SYSCALL leaves RIP in RCX, RFLAGS in R11, and RSP and GSBASE as the user had them.
 * The scratch word for RSP is mapped by the user's page table too.
 */
SYM_CODE_START(entry_SYSCALL_64)
	swapgs
	movq	%rsp, PER_CPU_VAR(cpu_tss_scratch)
	ATOMIC_IST_SWITCH_TO_KERNEL_CR3 scratch=%rsp
	movq	PER_CPU_VAR(cpu_current_top_of_stack), %rsp

SYM_INNER_LABEL(entry_SYSCALL_64_safe_stack, SYM_L_GLOBAL)
	pushq	$__USER_DS
	pushq	PER_CPU_VAR(cpu_tss_scratch)
	pushq	%r11
	pushq	$__USER_CS
	pushq	%rcx
	pushq	%rax
	pushq	%rdi
	pushq	%rsi
	pushq	%rdx
	pushq	%rcx
	pushq	$-38			/* RAX: -ENOSYS */
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
	movq	%rsp, %rdi
	movslq	%eax, %rsi
	ATOMIC_IST_SPEC_ENTER_FROM_USER
	subq	$8, %rsp
	call	do_syscall_64
	addq	$8, %rsp

	/* SYSRET to an address that is not canonical would fault on the user's RSP. */
	movq	RIP(%rsp), %rcx
	movq	%rcx, %r11
	shlq	$16, %r11
	sarq	$16, %r11
	cmpq	%rcx, %r11
	jne	swapgs_restore_regs_and_return_to_usermode
	ATOMIC_IST_SPEC_EXIT_TO_USER

	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	addq	$8, %rsp		/* R11: popped below, from RFLAGS */
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rax
	addq	$8, %rsp		/* RCX: popped below, from RIP */
	popq	%rdx
	popq	%rsi

	/* The task stack is in the kernel's page table only: leave by the entry stack. */
	movq	%rsp, %rdi
	movq	PER_CPU_VAR(cpu_tss_sp0), %rsp
	movq	(RIP - RDI)(%rdi), %rcx
	movq	(EFLAGS - RDI)(%rdi), %r11
	pushq	(RSP - RDI)(%rdi)
	pushq	(%rdi)
	pushq	%rax
	pushq	%rcx
	ATOMIC_IST_SWITCH_TO_USER_CR3 scratch=%rax pcid=%rcx
	popq	%rcx
	popq	%rax
	popq	%rdi
	popq	%rsp
SYM_INNER_LABEL(entry_SYSRETQ_unsafe_stack, SYM_L_GLOBAL)
	swapgs
	sysretq
SYM_INNER_LABEL(entry_SYSRETQ_end, SYM_L_GLOBAL)
	int3
SYM_CODE_END(entry_SYSCALL_64)

/* RSP is at a struct pt_regs of user mode at the top of the task stack. */
SYM_CODE_START(swapgs_restore_regs_and_return_to_usermode)
	ATOMIC_IST_SPEC_EXIT_TO_USER
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
	movq	%rsp, %rdi
	movq	PER_CPU_VAR(cpu_tss_sp0), %rsp
	pushq	(SS - RDI)(%rdi)
	pushq	(RSP - RDI)(%rdi)
	pushq	(EFLAGS - RDI)(%rdi)
	pushq	(CS - RDI)(%rdi)
	pushq	(RIP - RDI)(%rdi)
	pushq	(%rdi)
	pushq	%rax
	ATOMIC_IST_SWITCH_TO_USER_CR3 scratch=%rax pcid=%rdi
	popq	%rax
	popq	%rdi
	swapgs
SYM_INNER_LABEL(native_iret, SYM_L_GLOBAL)
	iretq
SYM_CODE_END(swapgs_restore_regs_and_return_to_usermode)
