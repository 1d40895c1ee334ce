/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's one RET, and how it is untrained. On the processors that need it, a RET may
 * be predicted to go where a user's branch of any kind at an alias of its address went, before
 * it is even decoded. Executing the byte of the RET as a part of another instruction, which is
 * no branch, makes the processor forget that. All RETs of the kernel are jumps to this one, so
 * one untraining makes them all safe.
 */
#include "../atomic_ist.h"

	.section .entry.text, "ax"

#if ATOMIC_IST_UNRET

	/* The RET begins a cache line: what is fetched with it is not what is before it. */
	.balign	64, 0xcc
	.skip	63, 0xcc
SYM_CODE_START(entry_untrain_ret)
	.byte	0xf6			/* TESTB $0xcc, %bl, and from its second byte on: */
SYM_INNER_LABEL(__x86_return_thunk, SYM_L_GLOBAL)
	ret
	int3
	lfence
	jmp	__x86_return_thunk
SYM_INNER_LABEL(entry_untrain_ret_end, SYM_L_GLOBAL)
SYM_CODE_END(entry_untrain_ret)
#else
SYM_CODE_START(__x86_return_thunk)
	ret
	int3
SYM_CODE_END(__x86_return_thunk)
#endif

#if ATOMIC_IST_SRSO
/*
 * Where an entry may find the kernel on the way out of a function: for processors on which
 * untraining does not suffice, the RET is predicted by the CALL right before it. Entries of this
 * image do not return by it.
 */
	.text
	.balign	64, 0xcc
SYM_CODE_START(srso_safe_ret)
	leaq	8(%rsp), %rsp
	ret
	int3
SYM_CODE_END(srso_safe_ret)
SYM_CODE_START(srso_return_thunk)
	call	srso_safe_ret
	ud2
SYM_CODE_END(srso_return_thunk)
#endif
