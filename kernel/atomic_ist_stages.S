/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: the stages between save 2 and the commit of one vector, where the copy
 * is called. Included by atomic_ist_vector.S; RSP is at the pt_regs, all registers are free.
 *
 * All of it may be abandoned at any instruction, and what it has done by then is either not
 * seen by anybody or comes out the same when done again: save 3 is found by RSP, as save 2 is,
 * and is complete before anything that it saves is changed; CR3, GSBASE and SPEC_CTRL are
 * written as values that do not depend on how often; untraining has no state of its own.
 */
#if ATOMIC_IST_SAVE3
/*
 * Below the pt_regs, whose registers are saved:
 *
 *	cr3, gsbase, spec_ctrl	save 3
 */
SYM_INNER_LABEL(V(atomic_ist_save3), SYM_L_GLOBAL)
	ATOMIC_IST_PUSH_SAVE3
	UNWIND_HINT_REGS offset=ATOMIC_IST_SAVE3_SIZE
#endif

#if ATOMIC_IST_KERNELIZE
	movq	%rsp, %rdi
	jmp	V(atomic_ist_kernelize)

/* RDI is where RSP was. CR3 and GSBASE are the kernel's, and with IBRS SPEC_CTRL is. */
SYM_INNER_LABEL(V(atomic_ist_kernelized), SYM_L_GLOBAL)
	movq	%rdi, %rsp
	UNWIND_HINT_REGS offset=ATOMIC_IST_SAVE3_SIZE
#if ATOMIC_IST_IBPB
	ATOMIC_IST_SPEC_ENTER_EARLY
#endif
#elif ATOMIC_IST_VARIANT == ATOMIC_IST_2
	ATOMIC_IST_SPEC_ENTER_EARLY
#endif

#if ATOMIC_IST_VARIANT != ATOMIC_IST_RFC_V1
/*
 * The copy returns by a RET of its own, to which its return thunk is rewritten: RIP has to
 * stay in the text of this vector, or else an event could not tell whose entry it hit. So
 * this RET, and no other, is untrained here: TESTB $0xcc, %bl is F6 C3 CC, and from its second
 * byte on it is RET, INT3. The RET of all others is untrained after the commit.
 */
#if ATOMIC_IST_UNRET
	jmp	V(atomic_ist_untrain_ret)
	.balign	64, 0xcc
	.skip	63, 0xcc
SYM_INNER_LABEL(V(atomic_ist_untrain_ret), SYM_L_GLOBAL)
	.byte	0xf6
#else
	jmp	V(.Lcall)
#endif
SYM_INNER_LABEL(CAT(V(atomic_ist_copy), _return), SYM_L_GLOBAL)
	ret
	int3
#if ATOMIC_IST_UNRET
	lfence
SYM_INNER_LABEL(CAT(V(atomic_ist_untrain_ret), _end), SYM_L_GLOBAL)
#endif
#endif

V(.Lcall):
	leaq	ATOMIC_IST_SAVE3_SIZE(%rsp), %rdi
	call	V(atomic_ist_copy)
	jmp	V(atomic_ist_commit)
