// SPDX-License-Identifier: GPL-2.0-only
/*
 * Atomic IST entry: locate, copy, commit.
 *
 * An atomic entry goes
 *
 *	save 1		the processor pushes SS, RSP, RFLAGS, CS, RIP [error code]
 *	save 2		the stub pushes a placeholder error code, if need be, and
 *			the 15 general registers (atomic_ist_vector.S)
 *	locate		find the entries that this one interrupted
 *	copy		write a pt_regs for each of them, and for this one
 *	commit		one instruction moves RSP to the lowest of these pt_regs
 *
 * and may be interrupted before each of its instructions by an entry of another
 * vector. It is not resumed where it was interrupted. The interrupting entry
 * copies for both of them, so that the interrupted one appears to have been
 * interrupted just after its commit, and will be resumed there.
 *
 * For example: an NMI hits the kernel, a #MC hits that NMI's entry.
 *
 *   NMI stack             #MC stack              main stack
 *   +-------------+ top   +-------------+ top    +--------------+ base
 *   | ss ... ip   | <-.   | ss ... ip --+-> NMI  | ss ... ip    | those of the NMI
 *   | orig_ax     |   |   | sp ---------+-.  's  | orig_ax      | frame
 *   | di          |   |   | orig_ax     | | text | di ... r15   | original registers
 *   : (pushing)   :   |   | di ... r15  | |      +--------------+ <------------.
 *   :             :   |   +-------------+ |      | padding      |              |
 *   :             :<--------- ongoing  ---'      +--------------+              |
 *   +-------------+   |   : scratch     :        | ss, cs       | as in #MC's  |
 *                     |   +-------------+        | ip           | -> committed_nmi
 *              outermost frame                   | sp           | -------------'
 *                                                | flags        | constant     |
 *                                                | registers    | 0, ax -------'
 *                                  commit: RSP ->+--------------+
 *
 * Why this can be abandoned at any instruction and redone by whoever comes next
 * (abortable, idempotently replicable):
 *
 * - All it reads are frames on the IST stacks, and nothing but save 1 and save 2
 *   of their own vectors writes those. This code writes to the ongoing vector's
 *   IST stack only below the ongoing pt_regs.
 * - Where it writes, on the main stack, is given by the outermost interrupted
 *   context alone, and so is what it writes there for the interrupted entries.
 *   One more interruption adds a slot at the lower end; the others come out the
 *   same again.
 * - Nobody owns what it writes until RSP has been moved, which is one instruction.
 *
 * Rules for the code: it runs before the kernel's CR3, GSBASE and SPEC_CTRL are
 * set. No CALL, RET or indirect branch: return predictions are not yet safe, so
 * the functions are reached by JMP, and leave by JMP in inline assembler (other
 * ways of this, see atomic_ist.h, differ in how they are reached and left only). No
 * per-CPU data, no GS, no global or constant data (hence no switch that may become
 * a table, and volatile word copies that cannot become memcpy()): only the IST
 * stacks, the main stack and the entry text are mapped. Nothing that can fault.
 */
#include "atomic_ist.h"

/*
 * The vectors. The stub of v, its C and its tail up to and with the commit
 * instruction lie in [__atomic_ist_<v>_text, atomic_ist_committed_<v>); there,
 * and only there, is RSP on the IST stack of v.
 */
#define ATOMIC_IST_FOR_EACH_VECTOR(X, ...)	\
	X(nmi, NMI, ##__VA_ARGS__)		\
	X(db, DB, ##__VA_ARGS__)		\
	X(mc, MC, ##__VA_ARGS__)		\
	X(vc, VC, ##__VA_ARGS__)

enum atomic_ist_vector {
#define X(v, V) ATOMIC_IST_##V,
	ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X
};

#define X(v, V) extern char __atomic_ist_##v##_text[], atomic_ist_committed_##v[];
ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X
extern char __atomic_ist_text_start[], __atomic_ist_text_end[];

/* Whether start <= address < end, in one comparison if start is a constant. */
static __always_inline bool within(unsigned long address, unsigned long start,
				   unsigned long size)
{
	return address - start < size;
}

/* Addresses of text are immediates of the code: no data is read for them. */
static __always_inline bool within_text(unsigned long ip, char *start, char *end)
{
	return within(ip, (unsigned long)start, (unsigned long)end - (unsigned long)start);
}

/* The entry whose IST stack contains @sp, or NULL. */
static __always_inline struct pt_regs *regs_by_sp(unsigned long area, unsigned long sp)
{
#define X(v, V)									\
	if (within(sp, area + ATOMIC_IST_##V##_TOP - ATOMIC_IST_STACK_SIZE,	\
		   ATOMIC_IST_STACK_SIZE))					\
		return (struct pt_regs *)(area + ATOMIC_IST_##V##_TOP) - 1;
	ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X
	return NULL;
}

/* The entry whose text contains @ip, or NULL. */
static __always_inline struct pt_regs *regs_by_ip(unsigned long area, unsigned long ip)
{
#define X(v, V)									\
	if (within_text(ip, __atomic_ist_##v##_text, atomic_ist_committed_##v))	\
		return (struct pt_regs *)(area + ATOMIC_IST_##V##_TOP) - 1;
	ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X
	return NULL;
}

/* Where the entry is resumed that was interrupted at @ip, in its text. */
static __always_inline unsigned long committed_by_ip(unsigned long ip)
{
#define X(v, V)									\
	if (within_text(ip, __atomic_ist_##v##_text, atomic_ist_committed_##v))	\
		return (unsigned long)atomic_ist_committed_##v;
	ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X
	__builtin_unreachable();
}

/*
 * Leave C for the label of @vector: @target_<v>, with @value in register @reg. All
 * but one of the comparisons are gone when this is compiled.
 */
#define JUMP_FROM(v, V, vector, target, reg, value)				\
	if ((vector) == ATOMIC_IST_##V)						\
		asm volatile(ATOMIC_IST_JUMP_HINT "jmp " #target "_" #v		\
			     : : reg (value) : "memory");

#define JUMP(vector, target, reg, value) do {					\
	ATOMIC_IST_FOR_EACH_VECTOR(JUMP_FROM, vector, target, reg, value)	\
	__builtin_unreachable();						\
} while (0)

/*
 * Clear all registers but RAX and RSP, and move RAX to RSP. Either right from here, or the
 * function returns, and its stub does it.
 */
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1C
#define __copies		__noreturn void
#define __return
#define COMMIT(vector, slot)							\
	JUMP(vector, atomic_ist_commit, "a", slot)
#else
#define __copies		unsigned long
#define __return		return
#define COMMIT(vector, slot)							\
	return slot - ATOMIC_IST_SAVE3_SIZE
#endif

/*
 * From the straight way to the general one. It is a function of its own where it need not come
 * back, so that the straight way uses no stack; where it has to, there must be one return.
 */
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1C
#define WALK(regs, vector, offset)						\
	JUMP(vector, atomic_ist_walk, "D", regs)
#else
#define WALK(regs, vector, offset)						\
	return walk(regs, vector, offset)
#endif

/*
 * Something is broken beyond repair: stop before anything is overwritten. The #DF
 * handler gets the ongoing pt_regs in RDI. The code there is still text of the
 * vector, so an event in it does not commit, but ends in a double fault as well.
 */
#define DOUBLE_FAULT(vector, reason, regs)					\
	JUMP(vector, atomic_ist_double_fault_##reason, "D", regs)

/* One word; volatile, lest the compiler make a call to memcpy() of many. */
#define COPY(to, from, field)	WRITE_ONCE((to)->field, READ_ONCE((from)->field))

#if ATOMIC_IST_SAVE3
struct atomic_ist_save3 {
	unsigned long spec_ctrl;
	unsigned long gsbase;
	unsigned long cr3;
};

/* Save 3 of the entry or slot whose pt_regs are @regs. */
static __always_inline struct atomic_ist_save3 *save3(struct pt_regs *regs)
{
	return (struct atomic_ist_save3 *)regs - 1;
}

/* What the outermost context had. */
static __always_inline void copy_outermost_save3(struct pt_regs *to, struct pt_regs *saver)
{
	COPY(save3(to), save3(saver), spec_ctrl);
	COPY(save3(to), save3(saver), gsbase);
	COPY(save3(to), save3(saver), cr3);
}

/*
 * What an entry has that has just committed: what is in force now, for the ongoing entry has
 * set what the interrupted one would have set. And RSP is at these, below the pt_regs.
 */
static __always_inline void copy_nested_save3(struct pt_regs *to, unsigned long above)
{
	WRITE_ONCE(to->ax, above - ATOMIC_IST_SAVE3_SIZE);
	WRITE_ONCE(to->sp, above - ATOMIC_IST_SAVE3_SIZE);
	WRITE_ONCE(save3(to)->spec_ctrl, ATOMIC_IST_IBRS ? read_spec_ctrl() : 0);
#if ATOMIC_IST_KERNELIZE
	WRITE_ONCE(save3(to)->gsbase, kernel_gsbase());
	WRITE_ONCE(save3(to)->cr3, CONFIG_PAGE_TABLE_ISOLATION ? read_cr3() : 0);
#else
	WRITE_ONCE(save3(to)->gsbase, 0);
	WRITE_ONCE(save3(to)->cr3, 0);
#endif
}
#endif

/*
 * The context that no atomic entry interrupted: what the processor pushed for the
 * outermost entry, and the original registers, which are in the pt_regs of @saver.
 * The error code of a vector without one may not have been pushed yet; it is
 * written again after the commit.
 */
static __always_inline void copy_outermost(struct pt_regs *to, struct pt_regs *frame,
					   struct pt_regs *saver)
{
	COPY(to, saver, r15);
	COPY(to, saver, r14);
	COPY(to, saver, r13);
	COPY(to, saver, r12);
	COPY(to, saver, bp);
	COPY(to, saver, bx);
	COPY(to, saver, r11);
	COPY(to, saver, r10);
	COPY(to, saver, r9);
	COPY(to, saver, r8);
	COPY(to, saver, ax);
	COPY(to, saver, cx);
	COPY(to, saver, dx);
	COPY(to, saver, si);
	COPY(to, saver, di);
	COPY(to, frame, orig_ax);
	COPY(to, frame, ip);
	COPY(to, frame, cs);
	COPY(to, frame, flags);
	COPY(to, frame, sp);
	COPY(to, frame, ss);
}

/*
 * An entry as it is after its commit to the pt_regs at @above, and then interrupted
 * by the entry that saved @frame. All registers are clear but RAX and RSP. RFLAGS
 * are those that matter to a committed entry: IF, TF, NT and RF were cleared by the
 * delivery; AC and DF may have been the interrupted context's, if the entry was
 * interrupted before its CLAC and CLD, and have to be clear; IOPL, ID and the
 * arithmetic flags mean nothing to it.
 */
static __always_inline void copy_nested(struct pt_regs *to, struct pt_regs *frame,
					unsigned long committed, unsigned long above)
{
	WRITE_ONCE(to->r15, 0);
	WRITE_ONCE(to->r14, 0);
	WRITE_ONCE(to->r13, 0);
	WRITE_ONCE(to->r12, 0);
	WRITE_ONCE(to->bp, 0);
	WRITE_ONCE(to->bx, 0);
	WRITE_ONCE(to->r11, 0);
	WRITE_ONCE(to->r10, 0);
	WRITE_ONCE(to->r9, 0);
	WRITE_ONCE(to->r8, 0);
	WRITE_ONCE(to->ax, above);
	WRITE_ONCE(to->cx, 0);
	WRITE_ONCE(to->dx, 0);
	WRITE_ONCE(to->si, 0);
	WRITE_ONCE(to->di, 0);
	COPY(to, frame, orig_ax);
	WRITE_ONCE(to->ip, committed);
	COPY(to, frame, cs);
	WRITE_ONCE(to->flags, ATOMIC_IST_COMMITTED_FLAGS);
	WRITE_ONCE(to->sp, above);
	COPY(to, frame, ss);
#if ATOMIC_IST_SAVE3
	copy_nested_save3(to, above);
#endif
}

#if ATOMIC_IST_KERNELIZE
/*
 * Set CR3, GSBASE and SPEC_CTRL to the kernel's. Save 3 of this entry is complete, so they can
 * be found whoever comes next. All values are absolute: of CR3, because bits are cleared, which
 * may be clear already; of the others, because they do not depend on what was. SWAPGS would
 * be neither: done again it would undo what the abandoned one did. For the same reason nothing
 * has to be located first: what this entry has saved itself tells enough, whether or not an
 * interrupted one had done all this before.
 *
 * CR3 comes first: the kernel's GSBASE is found in memory that the user's page table lacks.
 */
static __always_inline __noreturn void kernelize(struct atomic_ist_save3 *saved,
						 enum atomic_ist_vector vector)
{
#if CONFIG_PAGE_TABLE_ISOLATION
	const unsigned long cr3 = READ_ONCE(saved->cr3);

	if (cr3 & CR3_USER_PGTABLE)
		write_cr3((cr3 & ~(unsigned long)CR3_USER_MASK) |
			  (ATOMIC_IST_PCID ? CR3_NOFLUSH : 0));
#endif
	write_gsbase(kernel_gsbase());
	if (ATOMIC_IST_IBRS)
		wrmsr(MSR_SPEC_CTRL, kernel_spec_ctrl());
	JUMP(vector, atomic_ist_kernelized, "D", saved);
}
#endif

static __always_inline __copies walk(struct pt_regs *regs,
				     enum atomic_ist_vector vector,
				     unsigned long offset);

/*
 * The straight way, for an entry that interrupted nothing of ours. @regs is the ongoing
 * pt_regs, at the top of the IST stack of @vector, so all stacks are at a known distance
 * from it.
 *
 * By far most events come when neither RSP is near our stacks nor RIP near our text.
 * Whatever the context is then, user mode, SYSCALL gap or kernel, it is no atomic entry
 * and the main stack is empty, for a handler there does not change stacks. To ask for user
 * mode first would change nothing: a user's RSP and RIP may be any number, and if they look
 * like ours, walk() asks.
 */
static __always_inline __copies copy(struct pt_regs *regs,
				     enum atomic_ist_vector vector,
				     unsigned long offset)
{
	const unsigned long area = (unsigned long)(regs + 1) - offset;
	const unsigned long slot = area + ATOMIC_IST_MAIN_TOP - ATOMIC_IST_PTREGS_SIZE;

	if (within(regs->sp, area + ATOMIC_IST_NEAR_BOTTOM,
		   ATOMIC_IST_MAIN_TOP - ATOMIC_IST_NEAR_BOTTOM) ||
	    within_text(regs->ip, __atomic_ist_text_start, __atomic_ist_text_end))
		WALK(regs, vector, offset);

	copy_outermost((struct pt_regs *)slot, regs, regs);
#if ATOMIC_IST_SAVE3
	copy_outermost_save3((struct pt_regs *)slot, regs);
#endif
	COMMIT(vector, slot);
}

/*
 * The general way. Walk outwards from the ongoing entry: @outermost is the outermost
 * entry found so far, @n the number of entries, @saver the outermost which has finished
 * save 2, as the ongoing one has.
 */
static __always_inline __copies walk(struct pt_regs *regs,
				     enum atomic_ist_vector vector,
				     unsigned long offset)
{
	const unsigned long area = (unsigned long)(regs + 1) - offset;
	const unsigned long main_top = area + ATOMIC_IST_MAIN_TOP;
	struct pt_regs *outermost = regs, *saver = regs, *to;
#if ATOMIC_IST_SAVE3
	struct pt_regs *saver3 = regs;
#endif
	unsigned long base = main_top, lowest;
	unsigned int n;

	BUILD_BUG_ON(sizeof(*regs) != ATOMIC_IST_PTREGS_SIZE);
	BUILD_BUG_ON(ATOMIC_IST_SLOT_SIZE % 16);
	BUILD_BUG_ON(ATOMIC_IST_MAIN_TOP % 16);
	BUILD_BUG_ON(ATOMIC_IST_MAIN_TOP - ATOMIC_IST_MAIN_BOTTOM <
		     ATOMIC_IST_NR_VECTORS * ATOMIC_IST_SLOT_SIZE + ATOMIC_IST_RESERVE);

	for (n = 1; ; n++) {
		const unsigned long ip = outermost->ip, sp = outermost->sp;
		struct pt_regs *next;

		/* User mode, or the kernel with the user's RSP: RSP means nothing. */
		if ((outermost->cs & 3) || ip_within_syscall_gap(outermost))
			break;

		next = regs_by_sp(area, sp);
		if (next != regs_by_ip(area, ip))
			DOUBLE_FAULT(vector, contradiction, regs);

		if (!next) {
			/*
			 * Not an atomic entry. If the main stack is in use, go on below. Its
			 * guard counts as part of it, to be found exhausted.
			 */
			if (within(sp, area + ATOMIC_IST_MAIN_BOTTOM - ATOMIC_IST_MAIN_GUARD,
				   ATOMIC_IST_MAIN_TOP - ATOMIC_IST_MAIN_BOTTOM +
				   ATOMIC_IST_MAIN_GUARD))
				base = sp & ~15UL;
#if ATOMIC_IST_EXIT_SIZE
			/* If CR3 is the user's, the way back leads over the entry stack. */
			if (within(sp, area + ATOMIC_IST_ENTRY_STACK_BOTTOM, ATOMIC_IST_EXIT_SIZE))
				DOUBLE_FAULT(vector, overflow, regs);
#endif
			break;
		}

		/*
		 * A frame leads to one next frame. So the walk either meets each vector at
		 * most once, or it goes round for ever; and then this is reached.
		 */
		if (n == ATOMIC_IST_NR_VECTORS)
			DOUBLE_FAULT(vector, twice, regs);

		/*
		 * It had finished save 2 if RSP had come down to its pt_regs. Registers are
		 * not changed before, so the outermost that finished has the original ones.
		 */
		if (sp <= (unsigned long)next)
			saver = next;
		outermost = next;
#if ATOMIC_IST_SAVE3
		/* The same of save 3: nothing that it saves is changed before its end. */
		if (sp <= (unsigned long)save3(next))
			saver3 = next;
#endif
	}

	/* Room for all slots and a handler, before the first of them is written. */
	lowest = base - n * ATOMIC_IST_SLOT_SIZE;
	if (lowest - ATOMIC_IST_RESERVE < area + ATOMIC_IST_MAIN_BOTTOM)
		DOUBLE_FAULT(vector, overflow, regs);

	/*
	 * The slots are written from the lowest, which is the ongoing entry's, upwards, by
	 * the same walk once more, so that nothing has to be kept of the first one.
	 */
	lowest += ATOMIC_IST_SLOT_SIZE - ATOMIC_IST_PTREGS_SIZE;
	to = (struct pt_regs *)lowest;
	while (regs != outermost) {
		const unsigned long ip = regs->ip;
		const unsigned long above = (unsigned long)to + ATOMIC_IST_SLOT_SIZE;

		copy_nested(to, regs, committed_by_ip(ip), above);
		regs = regs_by_ip(area, ip);
		to = (struct pt_regs *)above;
	}
	copy_outermost(to, outermost, saver);
#if ATOMIC_IST_SAVE3
	copy_outermost_save3(to, saver3);
#endif
	COMMIT(vector, lowest);
}

/*
 * Functions for each vector, so that RIP tells whose entry was interrupted.
 */
#if ATOMIC_IST_VARIANT == ATOMIC_IST_1C
#define X(v, V)									\
__atomic_ist_text(v) __noreturn void atomic_ist_walk_##v(struct pt_regs *regs);	\
__atomic_ist_text(v) __noreturn void atomic_ist_walk_##v(struct pt_regs *regs)	\
{										\
	walk(regs, ATOMIC_IST_##V, ATOMIC_IST_##V##_TOP);			\
}
ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X
#endif

#define X(v, V)									\
__atomic_ist_text(v) __copies atomic_ist_copy_##v(struct pt_regs *regs);		\
__atomic_ist_text(v) __copies atomic_ist_copy_##v(struct pt_regs *regs)		\
{										\
	__return copy(regs, ATOMIC_IST_##V, ATOMIC_IST_##V##_TOP);		\
}
ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X

#if ATOMIC_IST_KERNELIZE
#define X(v, V)									\
__atomic_ist_text(v) __noreturn							\
void atomic_ist_kernelize_##v(struct atomic_ist_save3 *saved);			\
__atomic_ist_text(v) __noreturn							\
void atomic_ist_kernelize_##v(struct atomic_ist_save3 *saved)			\
{										\
	kernelize(saved, ATOMIC_IST_##V);					\
}
ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X

/*
 * The handler is done: restore what kernelize has set, as absolute values again, and leave
 * for the IRET. Reached by JMP. Once IBRS is clear there must be no RET, and once GSBASE is
 * not the kernel's no per-CPU data.
 */
#if ATOMIC_IST_EXIT_SIZE
/* What is left to do on the entry stack once CR3 is the user's: POP RAX, IRET. */
struct atomic_ist_exit {
	unsigned long ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long flags;
	unsigned long sp;
	unsigned long ss;
};

/*
 * The main stack is in the kernel's page table only, so to a context that had the user's CR3
 * the way leads over the entry stack: below what that context has there itself, for which
 * walk() has seen to room; or at its top, where RSP is elsewhere, in the SYSCALL gap. In the gap
 * RSP is what the user says, which may well be an address of the entry stack.
 *
 * While this is written CR3 is the kernel's, and whoever interrupts a context with the
 * kernel's CR3 leaves the entry stack alone. Once CR3 is the user's, RSP protects it.
 */
static __always_inline struct atomic_ist_exit *prepare_exit(struct pt_regs *regs)
{
	const unsigned long top = entry_stack_top(), sp = regs->sp;
	struct atomic_ist_exit *exit = (struct atomic_ist_exit *)top - 1;

	BUILD_BUG_ON(sizeof(*exit) != ATOMIC_IST_EXIT_SIZE);

	if (within(sp, top - ATOMIC_IST_ENTRY_STACK_SIZE, ATOMIC_IST_ENTRY_STACK_SIZE) &&
	    !ip_within_syscall_gap(regs))
		exit = (struct atomic_ist_exit *)sp - 1;
	COPY(exit, regs, ax);
	COPY(exit, regs, ip);
	COPY(exit, regs, cs);
	COPY(exit, regs, flags);
	COPY(exit, regs, sp);
	COPY(exit, regs, ss);
	return exit;
}
#endif

__atomic_ist_exit_text __noreturn void atomic_ist_restore(struct atomic_ist_save3 *saved);
__atomic_ist_exit_text __noreturn void atomic_ist_restore(struct atomic_ist_save3 *saved)
{
	const unsigned long gsbase = READ_ONCE(saved->gsbase);

	if (ATOMIC_IST_IBRS)
		wrmsr(MSR_SPEC_CTRL, READ_ONCE(saved->spec_ctrl));
#if ATOMIC_IST_EXIT_SIZE
	if (READ_ONCE(saved->cr3) & CR3_USER_PGTABLE) {
		struct pt_regs *regs = (struct pt_regs *)(saved + 1);
		unsigned long cr3 = READ_ONCE(saved->cr3);

		if (ATOMIC_IST_PCID && !take_user_pcid_flush(cr3 & CR3_KERNEL_PCID_MASK))
			cr3 |= CR3_NOFLUSH;
		/* These two are popped into RAX and, last of all, RSP. */
		WRITE_ONCE(regs->orig_ax, (unsigned long)prepare_exit(regs));
		WRITE_ONCE(regs->ax, cr3);
		write_gsbase(gsbase);
		asm volatile(ATOMIC_IST_JUMP_HINT "jmp atomic_ist_leave"
			     : : "D" (saved) : "memory");
		__builtin_unreachable();
	}
#endif
	write_gsbase(gsbase);
	asm volatile(ATOMIC_IST_JUMP_HINT "jmp atomic_ist_restored" : : "D" (saved) : "memory");
	__builtin_unreachable();
}
#endif

#if ATOMIC_IST_VARIANT != ATOMIC_IST_1C && ATOMIC_IST_VARIANT != ATOMIC_IST_RFC_V1
/*
 * The labels that the return thunks are rewritten to, for them to be in the symbol table of
 * this object. No instruction refers to them before.
 */
#define X(v, V)									\
	asm(".globl atomic_ist_copy_" #v "_return");
ATOMIC_IST_FOR_EACH_VECTOR(X)
#undef X
#endif
