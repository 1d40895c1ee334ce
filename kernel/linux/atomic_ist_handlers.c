// SPDX-License-Identifier: GPL-2.0-only
/*
 * Atomic IST entry: calls of the handlers, and what can be seen from outside.
 */
#define pr_fmt(fmt) "x86/atomic_ist: " fmt

#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/panic.h>
#include <linux/percpu.h>
#include <linux/seq_file.h>

#include <asm/idtentry.h>
#include <asm/sections.h>

#define ATOMIC_IST_CONSTANTS_ONLY
#include "../entry/atomic_ist.h"

enum { NMI, DB, MC, VC };

static const struct {
	const char	*name;
	unsigned int	vector;
} vectors[ATOMIC_IST_NR_VECTORS] = {
	[NMI]	= { "nmi", X86_TRAP_NMI },
	[DB]	= { "db", X86_TRAP_DB },
	[MC]	= { "mc", X86_TRAP_MC },
	[VC]	= { "vc", X86_TRAP_VC },
};

/*
 * Counted by the handlers, after the commit: before, an entry writes nothing but what may
 * be written twice.
 */
struct atomic_ist_stats {
	unsigned long commits[ATOMIC_IST_NR_VECTORS];
	unsigned long completed[ATOMIC_IST_NR_VECTORS];
	unsigned int depth;
};

static DEFINE_PER_CPU(struct atomic_ist_stats, stats);

/*
 * The entry that was interrupted before its commit and completed by the one with @regs, or
 * -1. An entry that was interrupted right behind its commit is at the same address, but
 * not with these flags: clearing registers has set ZF.
 */
static __always_inline int completed_by(struct pt_regs *regs)
{
	if (regs->cs != __KERNEL_CS || regs->flags != ATOMIC_IST_COMMITTED_FLAGS)
		return -1;
	if (regs->ip == (unsigned long)atomic_ist_committed_nmi)
		return NMI;
	if (regs->ip == (unsigned long)atomic_ist_committed_db)
		return DB;
	if (regs->ip == (unsigned long)atomic_ist_committed_mc)
		return MC;
	if (regs->ip == (unsigned long)atomic_ist_committed_vc)
		return VC;
	return -1;
}

/* Each handler of a chain counts the one above it, and the first sees all of them. */
static noinstr void account_nested(struct pt_regs *regs)
{
	unsigned int depth = 1, seen;
	int number = completed_by(regs);

	if (number < 0)
		return;
	this_cpu_inc(stats.completed[number]);

	do {
		depth++;
		regs = (struct pt_regs *)regs->sp;
	} while (depth < ATOMIC_IST_NR_VECTORS && completed_by(regs) >= 0);

	/* Another may interrupt and be deeper. */
	do {
		seen = this_cpu_read(stats.depth);
	} while (depth > seen && this_cpu_cmpxchg(stats.depth, seen, depth) != seen);
}

static __always_inline void account(struct pt_regs *regs, int number)
{
	this_cpu_inc(stats.commits[number]);
	if (unlikely(regs->ip >= (unsigned long)__atomic_ist_text_start &&
		     regs->ip < (unsigned long)__atomic_ist_text_end))
		account_nested(regs);
}

/*
 * Of events from kernel mode these run on the main stack, with interrupts off, and must
 * not change stacks; of events from user mode on the task stack.
 */
#define DEFINE_HANDLERS(name, number, kernel, user)				\
__visible void atomic_ist_kernel_##name(struct pt_regs *regs);			\
__visible noinstr void atomic_ist_kernel_##name(struct pt_regs *regs)		\
{										\
	account(regs, number);							\
	kernel(regs);								\
}										\
										\
__visible void atomic_ist_user_##name(struct pt_regs *regs);			\
__visible noinstr void atomic_ist_user_##name(struct pt_regs *regs)		\
{										\
	this_cpu_inc(stats.commits[number]);					\
	user(regs);								\
}

#define DEFINE_HANDLERS_ERRORCODE(name, number, kernel, user)			\
__visible void atomic_ist_kernel_##name(struct pt_regs *regs, unsigned long code);\
__visible noinstr void atomic_ist_kernel_##name(struct pt_regs *regs, unsigned long code)\
{										\
	account(regs, number);							\
	kernel(regs, code);							\
}										\
										\
__visible void atomic_ist_user_##name(struct pt_regs *regs, unsigned long code);\
__visible noinstr void atomic_ist_user_##name(struct pt_regs *regs, unsigned long code)\
{										\
	this_cpu_inc(stats.commits[number]);					\
	user(regs, code);							\
}

/* The gate of a vector without handler is not installed. */
#if !defined(CONFIG_X86_MCE) || !defined(CONFIG_AMD_MEM_ENCRYPT)
static noinstr void no_handler(void)
{
	instrumentation_begin();
	panic("atomic IST entry of a vector without handler");
	instrumentation_end();
}
#endif

#ifndef CONFIG_X86_MCE
#define exc_machine_check(regs)				no_handler()
#define noist_exc_machine_check(regs)			no_handler()
#endif

#ifndef CONFIG_AMD_MEM_ENCRYPT
#define kernel_exc_vmm_communication(regs, code)	no_handler()
#define user_exc_vmm_communication(regs, code)		no_handler()
#endif

DEFINE_HANDLERS(nmi, NMI, exc_nmi, exc_nmi)
DEFINE_HANDLERS(db, DB, exc_debug, noist_exc_debug)
DEFINE_HANDLERS(mc, MC, exc_machine_check, noist_exc_machine_check)
DEFINE_HANDLERS_ERRORCODE(vc, VC, kernel_exc_vmm_communication, user_exc_vmm_communication)

/* Whether the RSP of a double fault is one of those that an atomic entry sets to raise it. */
void atomic_ist_explain_double_fault(unsigned long sp)
{
	static const char * const why[] = {
		[ATOMIC_IST_TWICE]		= "a vector met twice",
		[ATOMIC_IST_CONTRADICTION]	= "RIP and RSP name different entries",
		[ATOMIC_IST_OVERFLOW]		= "the main stack is exhausted",
	};
	unsigned long reason = sp - ATOMIC_IST_DOUBLE_FAULT_RSP;

	if (reason && reason < ARRAY_SIZE(why))
		pr_emerg("a double fault on purpose: %s\n", why[reason]);
}

#ifdef CONFIG_DEBUG_FS
static int stats_show(struct seq_file *m, void *unused)
{
	unsigned long used = 0;
	unsigned int cpu, i, depth = 0;

	for (i = 0; i < ATOMIC_IST_NR_VECTORS; i++) {
		unsigned long commits = 0, completed = 0;

		for_each_possible_cpu(cpu) {
			commits += per_cpu(stats, cpu).commits[i];
			completed += per_cpu(stats, cpu).completed[i];
		}
		seq_printf(m, "%s.entry: %s\n", vectors[i].name,
			   atomic_ist_enabled(vectors[i].vector) ? "atomic" : "legacy");
		seq_printf(m, "%s.commits: %lu\n", vectors[i].name, commits);
		seq_printf(m, "%s.completed_by_another: %lu\n", vectors[i].name, completed);
	}

	for_each_possible_cpu(cpu) {
		depth = max(depth, per_cpu(stats, cpu).depth);
		used = max(used, atomic_ist_main_used(cpu));
	}
	seq_printf(m, "worst_depth: %u\n", depth);
	seq_printf(m, "main_stack_size: %lu\n", (unsigned long)ATOMIC_IST_MAIN_SIZE);
	seq_printf(m, "main_stack_used: %lu\n", used);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static int __init atomic_ist_debugfs(void)
{
	debugfs_create_file("atomic_ist", 0444, arch_debugfs_dir, NULL, &stats_fops);
	return 0;
}
late_initcall(atomic_ist_debugfs);
#endif
