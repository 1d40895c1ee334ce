/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: locate and copy of one vector in assembler, for variant 1a. Included by
 * atomic_ist_entry.S before atomic_ist_vector.S, with PAD_TOP as the offset of the top of the
 * vector's IST stack. What it does and why is said in atomic_ist.c, whose copy() and walk()
 * these are, step by step:
 *
 *	RDI	the ongoing pt_regs; where slots are written, the entry in hand
 *	R15	start of the area that holds the stacks
 *	R8	outermost entry found so far
 *	R9	the outermost that has finished save 2
 *	R10	number of entries
 *	R11	where the slots begin
 *	RBP	the slot in hand
 */
#ifndef ATOMIC_IST_COPY_MACROS
#define ATOMIC_IST_COPY_MACROS

.macro COPY_WORDS from:req words:vararg
.irp word, \words
	movq	\word(\from), %rcx
	movq	%rcx, \word(%rbp)
.endr
.endm

.macro COPY_OUTERMOST frame:req saver:req
	COPY_WORDS \saver R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI
	COPY_WORDS \frame ORIG_RAX, RIP, CS, EFLAGS, RSP, SS
.endm

.macro CLEAR_WORDS words:vararg
.irp word, \words
	movq	$0, \word(%rbp)
.endr
.endm

/* RAX: the entry whose IST stack contains RDX, or 0. Clobbers RCX. */
.macro REGS_BY_SP top:req
	leaq	-(\top - ATOMIC_IST_STACK_SIZE)(%rdx), %rcx
	subq	%r15, %rcx
	cmpq	$ATOMIC_IST_STACK_SIZE, %rcx
	jae	.Lother_\@
	leaq	(\top - ATOMIC_IST_PTREGS_SIZE)(%r15), %rax
.Lother_\@:
.endm

/* RBX: the entry whose text contains RSI, or 0; RDX, if @where: where it is resumed. */
.macro REGS_BY_IP v:req top:req where=0
	cmpq	$__atomic_ist_\v\()_text, %rsi
	jb	.Lother_\@
	cmpq	$atomic_ist_committed_\v, %rsi
	jae	.Lother_\@
	leaq	(\top - ATOMIC_IST_PTREGS_SIZE)(%r15), %rbx
.if \where
	movq	$atomic_ist_committed_\v, %rdx
.endif
.Lother_\@:
.endm
#endif

SYM_INNER_LABEL(V(atomic_ist_copy), SYM_L_GLOBAL)
	UNWIND_HINT_REGS base=%rdi
	leaq	(ATOMIC_IST_PTREGS_SIZE - PAD_TOP)(%rdi), %r15
	movq	RSP(%rdi), %rax
	subq	%r15, %rax
	subq	$ATOMIC_IST_PADS_BOTTOM, %rax
	cmpq	$(ATOMIC_IST_MAIN_TOP - ATOMIC_IST_PADS_BOTTOM), %rax
	jb	V(atomic_ist_walk)
	movq	RIP(%rdi), %rax
	cmpq	$__atomic_ist_text_start, %rax
	jb	V(.Lnot_near)
	cmpq	$__atomic_ist_text_end, %rax
	jb	V(atomic_ist_walk)
V(.Lnot_near):
	leaq	(ATOMIC_IST_MAIN_TOP - ATOMIC_IST_PTREGS_SIZE)(%r15), %rbp
	COPY_OUTERMOST frame=%rdi saver=%rdi
	movq	%rbp, %rax
	jmp	V(atomic_ist_commit)

SYM_INNER_LABEL(V(atomic_ist_walk), SYM_L_GLOBAL)
	UNWIND_HINT_REGS base=%rdi
	movq	%rdi, %r8
	movq	%rdi, %r9
	movl	$1, %r10d
	leaq	ATOMIC_IST_MAIN_TOP(%r15), %r11

V(.Lnext_entry):
	/* User mode, or the kernel with the user's RSP: RSP means nothing. */
	testb	$3, CS(%r8)
	jnz	V(.Lfound)
	movq	RIP(%r8), %rsi
	movq	RSP(%r8), %rdx
	ATOMIC_IST_JUMP_IN_SYSCALL_GAP ip=%rsi gap=V(.Lfound)

	xorl	%eax, %eax
	REGS_BY_SP ATOMIC_IST_NMI_TOP
	REGS_BY_SP ATOMIC_IST_DB_TOP
	REGS_BY_SP ATOMIC_IST_MC_TOP
	REGS_BY_SP ATOMIC_IST_VC_TOP
	xorl	%ebx, %ebx
	REGS_BY_IP nmi, ATOMIC_IST_NMI_TOP
	REGS_BY_IP db, ATOMIC_IST_DB_TOP
	REGS_BY_IP mc, ATOMIC_IST_MC_TOP
	REGS_BY_IP vc, ATOMIC_IST_VC_TOP
	cmpq	%rbx, %rax
	jne	V(atomic_ist_double_fault_contradiction)
	testq	%rax, %rax
	jz	V(.Lnot_atomic)

	/* A frame leads to one next frame, so else it would go round for ever. */
	cmpl	$ATOMIC_IST_NR_VECTORS, %r10d
	je	V(atomic_ist_double_fault_twice)
	incl	%r10d

	/* Save 2 was finished if RSP had come down to the pt_regs. */
	movq	%rax, %r8
	cmpq	%rax, %rdx
	ja	V(.Lnext_entry)
	movq	%rax, %r9
	jmp	V(.Lnext_entry)

V(.Lnot_atomic):
	/* On the main stack, go on below. Its guard counts as part of it. */
	movq	%rdx, %rcx
	subq	%r15, %rcx
	subq	$(ATOMIC_IST_MAIN_BOTTOM - ATOMIC_IST_MAIN_GUARD), %rcx
	cmpq	$(ATOMIC_IST_MAIN_TOP - ATOMIC_IST_MAIN_BOTTOM + ATOMIC_IST_MAIN_GUARD), %rcx
	jae	V(.Lfound)
	movq	%rdx, %r11
	andq	$~15, %r11

V(.Lfound):
	/* Room for all slots and a handler, before the first of them is written. */
	imulq	$ATOMIC_IST_SLOT_SIZE, %r10, %rcx
	movq	%r11, %rax
	subq	%rcx, %rax
	leaq	-ATOMIC_IST_RESERVE(%rax), %rcx
	leaq	ATOMIC_IST_MAIN_BOTTOM(%r15), %rdx
	cmpq	%rdx, %rcx
	jb	V(atomic_ist_double_fault_overflow)

	/* From the lowest slot, which is the ongoing entry's, upwards. */
	addq	$(ATOMIC_IST_SLOT_SIZE - ATOMIC_IST_PTREGS_SIZE), %rax
	movq	%rax, %rbp
V(.Lnext_slot):
	cmpq	%r8, %rdi
	je	V(.Loutermost)
	movq	RIP(%rdi), %rsi
	REGS_BY_IP nmi, ATOMIC_IST_NMI_TOP, where=1
	REGS_BY_IP db, ATOMIC_IST_DB_TOP, where=1
	REGS_BY_IP mc, ATOMIC_IST_MC_TOP, where=1
	REGS_BY_IP vc, ATOMIC_IST_VC_TOP, where=1

	/* As it is just after its commit, and then interrupted. */
	COPY_WORDS %rdi ORIG_RAX, CS, SS
	CLEAR_WORDS R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RCX, RDX, RSI, RDI
	movq	%rdx, RIP(%rbp)
	movq	$ATOMIC_IST_COMMITTED_FLAGS, EFLAGS(%rbp)
	leaq	ATOMIC_IST_SLOT_SIZE(%rbp), %rcx
	movq	%rcx, RAX(%rbp)
	movq	%rcx, RSP(%rbp)
	movq	%rcx, %rbp
	movq	%rbx, %rdi
	jmp	V(.Lnext_slot)

V(.Loutermost):
	COPY_OUTERMOST frame=%r8 saver=%r9
	jmp	V(atomic_ist_commit)
