/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a user's context is made of, held and looked at again and again.
 *
 * Every general register, RFLAGS and the segment bases hold values that nothing else has; whatever
 * interrupts must leave them so. A register that changed ends the loop with its number.
 *
 *	unsigned long hold_registers(unsigned long rounds);	0, or 1 + the number of what changed
 *
 * 0-14: RAX RCX RDX RBX RBP RSI RDI R8-R15; 15: RSP; 16: RFLAGS; 17: GSBASE; 18: a system call's result.
 */
	.data
	.balign 64
	.globl	hold_pattern, hold_found, hold_gsbase, hold_fsgsbase, hold_pid
hold_pattern:
	.quad	0xa70a11c0de005a00, 0xa70a11c0de015a01, 0xa70a11c0de025a02, 0xa70a11c0de035a03
	.quad	0xa70a11c0de055a05, 0xa70a11c0de065a06, 0xa70a11c0de075a07, 0xa70a11c0de085a08
	.quad	0xa70a11c0de095a09, 0xa70a11c0de0a5a0a, 0xa70a11c0de0b5a0b, 0xa70a11c0de0c5a0c
	.quad	0xa70a11c0de0d5a0d, 0xa70a11c0de0e5a0e, 0xa70a11c0de0f5a0f
rsp_now:	.quad	0
hold_found:	.quad	0
hold_gsbase:	.quad	0
hold_fsgsbase:	.quad	0
hold_pid:	.quad	0
rounds_left:	.quad	0
flags_seen:	.quad	0
rsp_saved:	.quad	0
/* CF PF AF ZF SF IF DF OF NT AC ID: all that a user may set but TF */
flags_wanted:	.quad	0x244ed7

	.macro	check reg, number
	cmpq	hold_pattern + 8*\number(%rip), \reg
	jne	bad_\number
	.endm

	.macro	check_all
	check	%rax, 0
	check	%rcx, 1
	check	%rdx, 2
	check	%rbx, 3
	check	%rbp, 4
	check	%rsi, 5
	check	%rdi, 6
	check	%r8, 7
	check	%r9, 8
	check	%r10, 9
	check	%r11, 10
	check	%r12, 11
	check	%r13, 12
	check	%r14, 13
	check	%r15, 14
	cmpq	rsp_now(%rip), %rsp
	jne	bad_15
	.endm

	.text
	.globl	hold_registers
	.type	hold_registers, @function
hold_registers:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rdi, rounds_left(%rip)
	movq	%rsp, rsp_saved(%rip)
	movq	%rsp, rsp_now(%rip)
	movq	hold_pattern + 8*0(%rip), %rax
	movq	hold_pattern + 8*1(%rip), %rcx
	movq	hold_pattern + 8*2(%rip), %rdx
	movq	hold_pattern + 8*3(%rip), %rbx
	movq	hold_pattern + 8*4(%rip), %rbp
	movq	hold_pattern + 8*5(%rip), %rsi
	movq	hold_pattern + 8*6(%rip), %rdi
	movq	hold_pattern + 8*7(%rip), %r8
	movq	hold_pattern + 8*8(%rip), %r9
	movq	hold_pattern + 8*9(%rip), %r10
	movq	hold_pattern + 8*10(%rip), %r11
	movq	hold_pattern + 8*11(%rip), %r12
	movq	hold_pattern + 8*12(%rip), %r13
	movq	hold_pattern + 8*13(%rip), %r14
	movq	hold_pattern + 8*14(%rip), %r15
again:
	check_all
	/* RFLAGS, across a stretch in which nothing of ours changes them */
	pushq	flags_wanted(%rip)
	popfq
	.rept	16
	nop
	.endr
	pushfq
	popq	flags_seen(%rip)
	cld
	pushq	$0x202
	popfq
	pushq	%rax
	movq	flags_seen(%rip), %rax
	cmpq	flags_wanted(%rip), %rax
	popq	%rax
	jne	bad_16
	cmpq	$0, hold_fsgsbase(%rip)
	je	1f
	pushq	%rax
	rdgsbase %rax
	cmpq	hold_gsbase(%rip), %rax
	popq	%rax
	jne	bad_17
1:	/* a system call every 16 rounds: getpid, which may change RAX, RCX and R11 */
	testq	$15, rounds_left(%rip)
	jnz	2f
	movl	$39, %eax
	syscall
	cmpq	hold_pid(%rip), %rax
	jne	bad_18
	movq	hold_pattern + 8*0(%rip), %rax
	movq	hold_pattern + 8*1(%rip), %rcx
	movq	hold_pattern + 8*10(%rip), %r11
2:	decq	rounds_left(%rip)
	jnz	again
	xorl	%eax, %eax
	jmp	out

	.macro	report number, reg
bad_\number:
	movq	\reg, hold_found(%rip)
	movl	$(\number + 1), %eax
	jmp	out
	.endm
	report	0, %rax
	report	1, %rcx
	report	2, %rdx
	report	3, %rbx
	report	4, %rbp
	report	5, %rsi
	report	6, %rdi
	report	7, %r8
	report	8, %r9
	report	9, %r10
	report	10, %r11
	report	11, %r12
	report	12, %r13
	report	13, %r14
	report	14, %r15
	report	15, %rsp
bad_16:
	movq	flags_seen(%rip), %rax
	movq	%rax, hold_found(%rip)
	movl	$17, %eax
	jmp	out
bad_17:
	rdgsbase %rax
	movq	%rax, hold_found(%rip)
	movl	$18, %eax
	jmp	out
	report	18, %rax
out:
	movq	rsp_saved(%rip), %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret
	.size	hold_registers, . - hold_registers

/* A place to stop at: the caller counts how often it is passed. */
	.globl	breakpoint_here
	.type	breakpoint_here, @function
	.balign 64
breakpoint_here:
	nop
	ret
	.size	breakpoint_here, . - breakpoint_here

/* Exactly TRACED instructions run with TF set; each raises #DB behind it. */
	.globl	run_traced
	.type	run_traced, @function
run_traced:
	pushfq
	orq	$0x100, (%rsp)
	popfq
	nop				/* 1 */
	nop				/* 2 */
	nop				/* 3 */
	pushfq				/* 4 */
	andq	$~0x100, (%rsp)		/* 5 */
	popfq				/* 6: TF was set when it began */
	ret
	.size	run_traced, . - run_traced

/* A context to be interrupted again and again: nothing but registers, and no system call. */
	.globl	spin_forever, spin_here
	.type	spin_forever, @function
spin_forever:
	movq	hold_pattern + 8*0(%rip), %rax
	movq	hold_pattern + 8*1(%rip), %rcx
	movq	hold_pattern + 8*2(%rip), %rdx
	movq	hold_pattern + 8*3(%rip), %rbx
	movq	hold_pattern + 8*4(%rip), %rbp
	movq	hold_pattern + 8*5(%rip), %rsi
	movq	hold_pattern + 8*6(%rip), %rdi
	movq	hold_pattern + 8*7(%rip), %r8
	movq	hold_pattern + 8*8(%rip), %r9
	movq	hold_pattern + 8*9(%rip), %r10
	movq	hold_pattern + 8*10(%rip), %r11
	movq	hold_pattern + 8*11(%rip), %r12
	movq	hold_pattern + 8*12(%rip), %r13
	movq	hold_pattern + 8*13(%rip), %r14
	movq	hold_pattern + 8*14(%rip), %r15
spin_here:
	nop
	nop
	jmp	spin_here
	.size	spin_forever, . - spin_forever

	.section .note.GNU-stack, "", @progbits
