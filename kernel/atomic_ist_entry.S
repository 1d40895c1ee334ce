/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: the same assembler for each of the four vectors, in a section of
 * its own for each, so that RIP tells the vector.
 */
#include "atomic_ist.h"

#define __CAT(a, b)	a##b
#define CAT(a, b)	__CAT(a, b)

/* <name>_<v> for the vector v in hand */
#define V(name)		CAT(name##_, VECTOR)

#define VECTOR		nmi
#define STUB		asm_exc_nmi
#define HAS_ERROR_CODE	0
	.section .entry.text.atomic_ist.nmi, "ax"
#include "atomic_ist_vector.S"

#define VECTOR		db
#define STUB		asm_exc_debug
#define HAS_ERROR_CODE	0
	.section .entry.text.atomic_ist.db, "ax"
#include "atomic_ist_vector.S"

#define VECTOR		mc
#define STUB		asm_exc_machine_check
#define HAS_ERROR_CODE	0
	.section .entry.text.atomic_ist.mc, "ax"
#include "atomic_ist_vector.S"

#define VECTOR		vc
#define STUB		asm_exc_vmm_communication
#define HAS_ERROR_CODE	1
	.section .entry.text.atomic_ist.vc, "ax"
#include "atomic_ist_vector.S"
