/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Atomic IST entry: its stacks, and what the rest of the kernel has to know of it. The
 * entry itself is arch/x86/entry/atomic_ist.c.
 */
#ifndef _ASM_X86_ATOMIC_IST_H
#define _ASM_X86_ATOMIC_IST_H

#ifdef CONFIG_X86_ATOMIC_IST

#include <linux/types.h>
#include <asm/page_types.h>

/* As much as the exception stacks of the four vectors together. */
#define ATOMIC_IST_MAIN_SIZE	(4 * EXCEPTION_STKSZ)

/* A CPU's stacks. */
struct atomic_ist_stacks {
	char NMI_pad[PAGE_SIZE];
	char DB_pad[PAGE_SIZE];
	char MC_pad[PAGE_SIZE];
	char VC_pad[PAGE_SIZE];
	char main[ATOMIC_IST_MAIN_SIZE];
};

/*
 * Their mapping in the cpu entry area, with guard pages: the pads, on which the processor
 * lands, and the main stack, on which handlers of events from kernel mode run. The
 * exception stacks of cpu_entry_area.h are for vectors that are not atomic.
 */
struct cea_atomic_ist {
	char NMI_guard[PAGE_SIZE];
	char NMI_pad[PAGE_SIZE];
	char DB_guard[PAGE_SIZE];
	char DB_pad[PAGE_SIZE];
	char MC_guard[PAGE_SIZE];
	char MC_pad[PAGE_SIZE];
	char VC_guard[PAGE_SIZE];
	char VC_pad[PAGE_SIZE];
	char main_guard[PAGE_SIZE];
	char main[ATOMIC_IST_MAIN_SIZE];
	char top_guard[PAGE_SIZE];
};

struct stack_info;
struct tss_struct;

/* atomic_ist_stacks.c */
void atomic_ist_map_stacks(unsigned int cpu);
unsigned long atomic_ist_main_used(unsigned int cpu);
bool in_atomic_ist_stack(unsigned long *stack, struct stack_info *info);

/* atomic_ist_gates.c */
bool atomic_ist_enabled(unsigned int vector);
void atomic_ist_setup_tss(struct tss_struct *tss);
void atomic_ist_setup_idt(void);

/* idt.c */
void idt_setup_atomic_ist(unsigned int vector, const void *entry, unsigned int ist);

/* atomic_ist_handlers.c */
void atomic_ist_explain_double_fault(unsigned long sp);

#else /* !CONFIG_X86_ATOMIC_IST */

#define atomic_ist_map_stacks(cpu)		do { } while (0)
#define in_atomic_ist_stack(stack, info)	false
#define atomic_ist_enabled(vector)		false
#define atomic_ist_setup_tss(tss)		do { } while (0)
#define atomic_ist_setup_idt()			do { } while (0)
#define atomic_ist_explain_double_fault(sp)	do { } while (0)

#endif /* !CONFIG_X86_ATOMIC_IST */
#endif /* _ASM_X86_ATOMIC_IST_H */
