// SPDX-License-Identifier: GPL-2.0-only
/*
 * Atomic IST entry: which vectors have it, and their gates.
 *
 * Either entry of a vector can be chosen at boot, for each vector by itself. Those that
 * are not atomic keep the stacks they have always had, so that RSP on a pad is that of an
 * atomic entry.
 */
#define pr_fmt(fmt) "x86/atomic_ist: " fmt

#include <linux/cache.h>
#include <linux/init.h>
#include <linux/smp.h>
#include <linux/stddef.h>
#include <linux/string.h>

#define ATOMIC_IST_CONSTANTS_ONLY
#include <asm/atomic_ist_env.h>
#include <asm/cpu_entry_area.h>
#include <asm/cpufeature.h>
#include <asm/processor.h>
#include <asm/trapnr.h>

struct atomic_ist_gate {
	const char	*name;
	unsigned int	vector;
	unsigned int	ist;
	unsigned long	pad_top;
	void		(*entry)(void);
	bool		has_handler;
};

#define GATE(n, v, i, e, has)						\
	{								\
		.name		= n,					\
		.vector		= X86_TRAP_##v,				\
		.ist		= IST_INDEX_##i,			\
		.pad_top	= offsetofend(struct cea_atomic_ist, v##_pad),	\
		.entry		= e,					\
		.has_handler	= has,					\
	}

/* The vectors that can be atomic. */
static const struct atomic_ist_gate gates[] = {
	GATE("nmi", NMI, NMI, asm_exc_nmi_atomic, true),
	GATE("mc", MC, MCE, asm_exc_machine_check_atomic, IS_ENABLED(CONFIG_X86_MCE)),
	GATE("db", DB, DB, asm_exc_debug_atomic, true),
	GATE("vc", VC, VC, asm_exc_vmm_communication_atomic, IS_ENABLED(CONFIG_AMD_MEM_ENCRYPT)),
};

/* Those that are: bits are vectors. */
static u32 wanted __ro_after_init = ~0U;

static __always_inline bool is_atomic(const struct atomic_ist_gate *gate)
{
	return gate->has_handler && (wanted & BIT(gate->vector));
}

/* Is called from entry code, so must be noinstr */
noinstr bool atomic_ist_enabled(unsigned int vector)
{
	const struct atomic_ist_gate *gate;

	for (gate = gates; gate != gates + ARRAY_SIZE(gates); gate++) {
		if (gate->vector == vector)
			return is_atomic(gate);
	}
	return false;
}

static const struct atomic_ist_gate * __init gate_by_name(const char *name)
{
	const struct atomic_ist_gate *gate;

	for (gate = gates; gate != gates + ARRAY_SIZE(gates); gate++) {
		if (!strcmp(gate->name, name))
			return gate;
	}
	return NULL;
}

/* ist_entry=atomic, ist_entry=legacy, or those that shall be atomic: ist_entry=nmi,mc */
static int __init parse_ist_entry(char *arg)
{
	u32 listed = 0;
	char *name;

	if (!arg)
		return -EINVAL;

	while ((name = strsep(&arg, ","))) {
		const struct atomic_ist_gate *gate = gate_by_name(name);

		if (gate) {
			listed |= BIT(gate->vector);
		} else if (!strcmp(name, "atomic")) {
			listed = ~0U;
		} else if (strcmp(name, "legacy")) {
			pr_warn("ist_entry=: no vector %s\n", name);
			return -EINVAL;
		}
	}

	/*
	 * In the handler of an NMI there may be a #VC. Only an NMI that is atomic has
	 * taken care of the #VC entry that it may have interrupted.
	 */
	if (!(listed & BIT(X86_TRAP_NMI)) && listed & BIT(X86_TRAP_VC)) {
		pr_warn("ist_entry=: vc needs nmi\n");
		listed &= ~BIT(X86_TRAP_VC);
	}
	wanted = listed;
	return 0;
}
early_param("ist_entry", parse_ist_entry);

/* IST entries of the TSS of this CPU. */
void atomic_ist_setup_tss(struct tss_struct *tss)
{
	unsigned long area = (unsigned long)&get_cpu_entry_area(raw_smp_processor_id())->atomic_ist;
	const struct atomic_ist_gate *gate;

	/* Its entries have stubs of their own, and arrive on the task stack. */
	if (boot_cpu_has(X86_FEATURE_XENPV))
		return;

	for (gate = gates; gate != gates + ARRAY_SIZE(gates); gate++) {
		if (is_atomic(gate))
			tss->x86_tss.ist[gate->ist] = area + gate->pad_top;
	}
}

void __init atomic_ist_setup_idt(void)
{
	const struct atomic_ist_gate *gate;

	if (boot_cpu_has(X86_FEATURE_XENPV)) {
		wanted = 0;
		return;
	}

	for (gate = gates; gate != gates + ARRAY_SIZE(gates); gate++) {
		if (!is_atomic(gate))
			continue;
		idt_setup_atomic_ist(gate->vector, gate->entry, gate->ist);
		pr_info("%s is atomic\n", gate->name);
	}
}
