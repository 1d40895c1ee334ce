/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the bare image ends: one instruction for each handler, in whose place a model
 * puts what a handler may do. The stubs of gates are entry text; the C functions of Linux
 * are not, for they run with the kernel's page table.
 */
#include "../atomic_ist.h"

.macro STUB name:req
SYM_CODE_START(\name)
	hlt
SYM_CODE_END(\name)
.endm

.macro HANDLER name:req
SYM_CODE_START(\name)
	ret
SYM_CODE_END(\name)
.endm

	.section .entry.text, "ax"
	STUB	asm_exc_int3
	STUB	asm_exc_invalid_op
	STUB	asm_exc_double_fault
	STUB	asm_exc_segment_not_present
	STUB	asm_exc_stack_segment
	STUB	asm_exc_general_protection
	STUB	asm_exc_page_fault

	.text
	HANDLER	exc_nmi
	HANDLER	exc_debug
	HANDLER	exc_machine_check
	HANDLER	exc_vmm_communication
	HANDLER	do_syscall_64
