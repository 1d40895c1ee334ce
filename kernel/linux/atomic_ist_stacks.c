// SPDX-License-Identifier: GPL-2.0-only
/*
 * Atomic IST entry: its stacks, in the cpu entry area and in stack traces.
 */
#include <linux/init.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/stddef.h>

#include <asm/atomic_ist.h>
#include <asm/cpu_entry_area.h>
#include <asm/stacktrace.h>

static DEFINE_PER_CPU_PAGE_ALIGNED(struct atomic_ist_stacks, atomic_ist_stacks);

static void __init map_stack(char *va, char *storage, unsigned long size)
{
	unsigned long offset;

	for (offset = 0; offset < size; offset += PAGE_SIZE)
		cea_set_pte(va + offset, per_cpu_ptr_to_phys(storage + offset), PAGE_KERNEL);
}

void __init atomic_ist_map_stacks(unsigned int cpu)
{
	struct cea_atomic_ist *area = &get_cpu_entry_area(cpu)->atomic_ist;
	struct atomic_ist_stacks *storage = per_cpu_ptr(&atomic_ist_stacks, cpu);

	BUILD_BUG_ON(sizeof(struct atomic_ist_stacks) % PAGE_SIZE != 0);
	BUILD_BUG_ON(sizeof(struct cea_atomic_ist) % PAGE_SIZE != 0);

	map_stack(area->NMI_pad, storage->NMI_pad, sizeof(storage->NMI_pad));
	map_stack(area->DB_pad, storage->DB_pad, sizeof(storage->DB_pad));
	map_stack(area->MC_pad, storage->MC_pad, sizeof(storage->MC_pad));
	map_stack(area->VC_pad, storage->VC_pad, sizeof(storage->VC_pad));
	map_stack(area->main, storage->main, sizeof(storage->main));
}

/* The high-water mark of the main stack: below it, nothing has ever been written. */
unsigned long atomic_ist_main_used(unsigned int cpu)
{
	const unsigned long *word = (void *)per_cpu_ptr(&atomic_ist_stacks, cpu)->main;
	const unsigned long *end = word + ATOMIC_IST_MAIN_SIZE / sizeof(*word);

	while (word < end && !READ_ONCE(*word))
		word++;
	return (end - word) * sizeof(*word);
}

#define OFFSET(member)	offsetof(struct cea_atomic_ist, member)

/*
 * The outermost pt_regs ends at the top of the stack, on the main stack as on any other,
 * and has the RSP with which a trace goes on.
 */
noinstr bool in_atomic_ist_stack(unsigned long *stack, struct stack_info *info)
{
	unsigned long area, offset, begin, size;

	/* A trace from before cea_exception_stacks has been set up. */
	if (!__this_cpu_read(cea_exception_stacks))
		return false;

	area = (unsigned long)&get_cpu_entry_area(raw_smp_processor_id())->atomic_ist;
	offset = (unsigned long)stack - area;

	if (offset >= OFFSET(main) && offset < OFFSET(top_guard)) {
		info->type	= STACK_TYPE_ATOMIC_IST_MAIN;
		begin		= OFFSET(main);
		size		= ATOMIC_IST_MAIN_SIZE;
	} else if (offset < OFFSET(main_guard) && offset & PAGE_SIZE) {
		/* Pads and their guards alternate. */
		info->type	= STACK_TYPE_ATOMIC_IST_PAD;
		begin		= offset & PAGE_MASK;
		size		= PAGE_SIZE;
	} else {
		return false;
	}

	info->begin	= (unsigned long *)(area + begin);
	info->end	= (unsigned long *)(area + begin + size);
	info->next_sp	= (unsigned long *)((struct pt_regs *)info->end - 1)->sp;
	return true;
}
