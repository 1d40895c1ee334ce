/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The observer: what hardware and handlers can see, and nothing of the scheme.
 *
 * It keeps the events delivered and not yet done with, each with the context
 * it interrupted.  Three moments are judged:
 *
 * - a handler is entered: it must be shown the context its event interrupted,
 *   in a sound environment.  One exception: an event that hit an entry which had
 *   not reached its own handler may be shown another context *of the entry
 *   code*, because the entry may be resumed elsewhere as long as all that
 *   follows is right;
 * - IRET or SYSRET is executed: the state must be that of an interrupted
 *   context, in every register; a return into entry code at a place nobody was
 *   interrupted is the entry's own business; any other return is a loss;
 * - the first context runs again: no event may be left unhandled.
 */
#include "model.h"

int report(struct machine *m, u32 property, u64 address, u32 reg, u64 expected, u64 found)
{
	struct finding *f;

	if (m->ignored >> property & 1)
		return DOUBLE_FAULT;
	if (m->nfindings == m->capfindings)
		return FOUND;
	f = &m->findings[m->nfindings++];
	memset(f, 0, sizeof(*f));
	f->property = property;
	f->nevents = m->nsched;
	memcpy(f->events, m->sched, sizeof(m->sched));
	f->rip = m->pc;
	f->address = address;
	f->reg = reg;
	f->expected = expected;
	f->found = found;
	return FOUND;
}

u64 pack_flags(const u64 *r)
{
	u64 flags = RFLAGS_FIXED;

	for (u32 i = 0; i < NFLAGS; i++)
		flags |= r[flag_slot[i]] << flag_bit[i];
	return flags;
}

static bool user(const u64 *r)
{
	return r[REG_CS] & 3;
}

struct region *main_stack(struct machine *m)
{
	return m->main;
}

/*
 * Do so many levels below `rsp` leave a handler less room than it may count on, or is there
 * too little of the entry stack to come back by?
 */
bool no_room_for(struct machine *m, u64 rsp, u32 levels)
{
	struct region *main = main_stack(m);
	u64 base;

	if (m->entry && rsp - m->entry->bottom < m->im->exit_bytes)
		return true;
	base = rsp >= main->bottom && rsp < main->top ? rsp & ~15ull : main->top;

	return base - (u64)levels * m->im->slot_bytes < main->bottom + m->im->reserve;
}

static bool no_room(struct machine *m)
{
	struct region *main = main_stack(m), *reg;
	u32 j = m->ninst - 1, levels;
	const u64 *x;

	if (!main)
		return false;
	for (; j > 0; j--) {
		reg = region_of(m, hit_rsp(&m->inst[j]));
		if (user(context(&m->inst[j])) || !reg || reg->kind != IST_STACK)
			break;
	}
	levels = m->ninst - j;
	m->refused_levels |= 1u << levels;
	x = context(&m->inst[j]);
	return no_room_for(m, user(x) || m->no_stack ? 0 : hit_rsp(&m->inst[j]), levels);
}

/* Its handler is told where the ongoing entry's registers are. */
static int double_fault(struct machine *m)
{
	u64 regs = m->inst[m->ninst - 1].regs;

	if (m->shadow)
		require(m, leaf(m, REG_RDI), m->r[REG_RDI]);
	if (m->r[REG_RDI] != regs)
		return report(m, P_DOUBLE_FAULT_REGS, m->pc, REG_RDI, regs, m->r[REG_RDI]);
	return DOUBLE_FAULT;
}

int fault(struct machine *m, u32 number, u64 why, u64 address)
{
	const struct insn *in = insn_at(m, m->pc);

	/* not while an event is delivered there */
	if (in && in->place & DELIBERATE && number == VECTOR_SS && m->ninst && m->inst[m->ninst - 1].regs) {
		/* an event that hit an entry already on its way to #DF may only follow it */
		for (u32 i = 0; i < m->ninst; i++) {
			const struct insn *hit = insn_at(m, context(&m->inst[i])[REG_RIP]);

			if (hit && hit->place & DELIBERATE && m->inst[i].in_entry)
				return double_fault(m);
		}
		if (in->place & NO_ROOM ? no_room(m) : m->expect_df)
			return double_fault(m);
		return report(m, P_DOUBLE_FAULT, m->pc, NSLOTS, 0, 0);
	}
	return report(m, (u32)why, address, NSLOTS, 0, number);
}

/* Which parts of the stacks does the first context own? */
void start_live(struct machine *m)
{
	u64 rsp = m->r[REG_RSP];
	bool from_user = user(m->r);
	const struct insn *at = insn_at(m, m->r[REG_RIP]);
	/* what it will not see again: see finish() */
	u64 popped = !unfinished(at) ? 0 : at->place & LEA_LEFT ? 16 : 8;

	for (u32 i = 0; i < m->im->nregions; i++) {
		struct region *reg = &m->regions[i];
		bool here = !from_user && !m->no_stack && rsp >= reg->bottom && rsp <= reg->top;
		u64 live = reg->top;

		/* in the SYSCALL gap the entry stack is empty: nobody comes or goes by it */
		bool empty = (from_user && reg->kind != IRQ_STACK) || (m->no_stack && reg->kind == ENTRY_STACK);

		if (reg->kind == TASK_STACK || reg->kind == ENTRY_STACK || reg->kind == IRQ_STACK)
			live = here ? rsp + popped : empty ? reg->top : reg->bottom;
		else if (reg->kind == MAIN_STACK && here)
			live = rsp + popped;
		set_live(m, reg, live);
	}
}

/* Put the machine into the context `regs`, with nothing delivered yet. */
void begin(struct machine *m, const u64 *regs)
{
	m->ninst = m->nsched = m->steps = 0;
	memset(m->owed, 0, sizeof(m->owed));
	m->spare = 0;
	memcpy(m->r, regs, sizeof(m->r));
	m->root = m->im->user_root_bit && (m->r[REG_CR3] & m->im->user_root_bit);
	m->early = false;
	start_live(m);
}

/*
 * Hit within a sequence that must not be resumed, a context is to be resumed as the rest of
 * the sequence would leave it: RET, or LEA 8(%rsp), %rsp and RET.
 */
static int finish(struct machine *m, struct instance *in, const struct insn *at)
{
	u64 sp = m->r[REG_RSP] + (at->place & LEA_LEFT ? 8 : 0);

	in->hit_rip = m->r[REG_RIP];
	in->hit_rsp = m->r[REG_RSP];
	in->finished = true;
	if (!read_word(m, sp, &in->x[REG_RIP]))
		return report(m, P_UNMAPPED, sp, REG_RSP, 0, sp);
	in->x[REG_RSP] = sp + 8;
	return GOES_ON;
}

int push_event(struct machine *m, u32 vector)
{
	struct instance *in = &m->inst[m->ninst];
	const struct insn *at = insn_at(m, m->r[REG_RIP]);
	struct region *reg;
	int st;

	if (m->ninst == MAX_CHAIN || m->nsched == MAX_CHAIN) {
		m->overflow = __LINE__;
		return FOUND;
	}
	count_event(m, m->delivered, at, vector);
	in->vector = vector;
	in->handled = in->abandoned = in->gone = 0;
	in->in_entry = at && at->place & IN_ENTRY && !user(m->r);
	in->live_region = ~0u;
	in->error = vector_error[vector] ? ERROR_TOKEN : ~0ull;
	copy_file(in->x, m->r);
	if (vector_fault_class[vector])
		in->x[REG_RF] = 1;
	in->finished = false;
	if (unfinished(at) && !user(m->r)) {
		st = finish(m, in, at);
		if (st != GOES_ON)
			return st;
	}
	reg = region_of(m, m->r[REG_RSP]);
	if (m->ninst && reg && !user(m->r) && reg->kind > IST_STACK && reg->live > in->x[REG_RSP]) {
		in->live_region = (u32)(reg - m->regions);
		in->old_live = reg->live;
		set_live(m, reg, in->x[REG_RSP]);
	}
	m->ninst++;
	m->sched[m->nsched++] = (struct event){ .vector = vector, .steps = m->steps, .rip = m->r[REG_RIP] };
	m->steps = 0;
	if (m->im->claims)
		m->early = true;
	in->regs = 0;
	st = deliver(m, vector, ERROR_TOKEN);
	in->regs = m->r[REG_RSP] - (vector_error[vector] ? PT_ORIG_RAX : PT_RIP);
	return st;
}

static u32 word_node(struct machine *m, u64 va)
{
	int i = find_page(m, va);

	return leaf(m, NSLOTS + (u32)i * WORDS + (u32)(va & (PAGE - 1)) / 8);
}

/* VM is always clear in 64-bit mode; RF is what delivery says for a fault. */
static bool set_by_rule(const struct instance *in, u32 slot)
{
	return slot == REG_VM || (slot == REG_RF && vector_fault_class[in->vector]);
}

/* The value must come from `slot` of the first context itself, not just equal it. */
static void same_origin(struct machine *m, u32 node, u32 slot, u64 val)
{
	if (!node)
		require_origin(m, slot, val);
	else if (!is_origin(m, node, slot))
		require(m, node, val);
	else if (slot_size[slot] == 1 && is_constant_bit(m, node, 0, slot))
		require_origin(m, slot, val);
}

/*
 * What RIP or RSP is where the sequence is finished for the first context, must be that. It
 * comes from the memory below that context's stack, and there from nowhere else.
 */
static bool is_finished(const struct instance *in, u32 slot)
{
	return in->finished && (slot == REG_RIP || slot == REG_RSP);
}

static int check_frame(struct machine *m, struct instance *in, u64 regs, bool first)
{
	const u64 *x = context(in);
	u64 rip, cs, flags, val;
	bool other, exact = true, readable;
	u32 bad = NSLOTS;
	u64 bad_expected = 0, bad_found = 0;

	if (m->shadow)
		require_address(m, leaf(m, REG_RDI), regs);
	if (!read_word(m, regs + PT_RIP, &rip) || !read_word(m, regs + PT_CS, &cs) ||
	    !read_word(m, regs + PT_RFLAGS, &flags))
		return report(m, P_HANDLER_CONTEXT, regs, REG_RDI, 0, regs);
	for (u32 i = 0; i < NPT; i++) {
		u64 expected = pt_slot[i] == REG_FLAGS_IMAGE ? pack_flags(x) : x[pt_slot[i]];

		/* it may be finished before the handler or behind it */
		if (is_finished(in, pt_slot[i]) && rip == in->hit_rip)
			expected = pt_slot[i] == REG_RIP ? in->hit_rip : in->hit_rsp;
		if (!read_word(m, regs + pt_offset[i], &val))
			return report(m, P_HANDLER_CONTEXT, regs, REG_RDI, 0, regs);
		if (val != expected) {
			exact = false;
			if (bad == NSLOTS) {
				bad = pt_slot[i] == REG_FLAGS_IMAGE ? REG_CF : pt_slot[i];
				bad_expected = expected;
				bad_found = val;
			}
		} else if (first && m->shadow && is_finished(in, pt_slot[i])) {
			require(m, word_node(m, regs + pt_offset[i]), val);
		} else if (first && m->shadow && pt_slot[i] != REG_FLAGS_IMAGE) {
			same_origin(m, word_node(m, regs + pt_offset[i]), pt_slot[i], val);
		} else if (first && m->shadow) {
			u32 node = word_node(m, regs + pt_offset[i]);

			for (u32 k = 0; k < NFLAGS; k++) {
				u32 slot = flag_slot[k];

				if (!is_origin_bit(m, node, flag_bit[k], slot))
					require(m, node, val);
				else if (!set_by_rule(in, slot) && is_constant_bit(m, node, flag_bit[k], slot))
					require_origin(m, slot, x[slot]);
			}
		}
	}
	/* replaced by another context of the entry code? */
	other = false;
	for (struct instance *below = m->inst; below < in; below++)
		other |= !below->handled;
	if (!exact && other && (in->in_entry || in->abandoned) && !(cs & 3)) {
		const struct insn *to = insn_at(m, rip);

		if (to && to->place & IN_ENTRY) {
			in->abandoned = 1;
			exact = true;
		}
	}
	readable = read_word(m, regs + PT_ORIG_RAX, &val);
	if (m->shadow && readable)
		require(m, word_node(m, regs + PT_ORIG_RAX), val);
	/* of a frame that is wrong altogether the placeholder is not the news */
	if (exact && (!readable || val != ~0ull))
		return report(m, P_PLACEHOLDER, regs + PT_ORIG_RAX, NSLOTS, ~0ull, val);
	if (exact)
		return GOES_ON;
	return report(m, P_HANDLER_CONTEXT, regs, bad, bad_expected, bad_found);
}

/* What the handler's CR3 was compared in, if it is still the first context's; else all of it. */
static void same_tables(struct machine *m)
{
	u64 cr3 = m->r[REG_CR3], mask = CR3_COMPARED | (m->im->user_root_bit ? CR3_USER_PCID : 0);
	u32 node = leaf(m, REG_CR3);

	if (is_origin(m, node, REG_CR3)) {
		require(m, mk_node(m, CODE_INT_AND, 8, node, 0, 8, 0, mask, 8, cr3 & mask), cr3 & mask);
	} else {
		require(m, node, cr3);
		require_origin(m, REG_CR3, m->inst[0].x[REG_CR3]);
	}
}

static int check_environment(struct machine *m, const struct instance *in)
{
	struct region *reg = region_of(m, m->r[REG_RSP]);
	const u64 expected[] = { m->im->kernel_gsbase, m->im->kernel_cr3, 0, 0 };
	const u32 slots[] = { REG_GSBASE, REG_CR3, REG_AC, REG_DF };
	const u64 unaligned = m->im->call_alignment - 1, *x = context(in);
	u64 pcid;

	for (u32 i = 0; i < 4; i++) {
		u64 kept = slots[i] == REG_CR3 ? CR3_COMPARED : ~0ull, found = m->r[slots[i]] & kept;

		if (m->shadow && slots[i] != REG_CR3)
			require(m, leaf(m, slots[i]), m->r[slots[i]]);
		if (found != (expected[i] & kept))
			return report(m, P_ENVIRONMENT, m->pc, slots[i], expected[i], m->r[slots[i]]);
	}
	/* the PCID stays: with another's, what the handler's accesses leave in the TLB is wrong */
	pcid = m->inst[0].x[REG_CR3] & CR3_PCID & ~(m->im->user_root_bit ? CR3_USER_PCID : 0);
	if (m->shadow)
		same_tables(m);
	if ((m->r[REG_CR3] & CR3_PCID) != pcid)
		return report(m, P_ENVIRONMENT, m->pc, REG_CR3, (m->im->kernel_cr3 & CR3_COMPARED) | pcid,
			      m->r[REG_CR3]);
	if (m->im->ibrs) {
		if (m->shadow)
			require(m, leaf(m, REG_SPEC_CTRL), m->r[REG_SPEC_CTRL]);
		if (m->r[REG_SPEC_CTRL] != m->im->kernel_spec_ctrl)
			return report(m, P_ENVIRONMENT, m->pc, REG_SPEC_CTRL, m->im->kernel_spec_ctrl,
				      m->r[REG_SPEC_CTRL]);
	}
	/* on the main stack it could not */
	if (m->shadow && in == m->inst)
		require_origin(m, REG_CS, x[REG_CS]);
	if (user(x) && reg && reg->kind == MAIN_STACK)
		return report(m, P_ENVIRONMENT, m->pc, REG_RSP, 0, m->r[REG_RSP]);
	/* where a handler may change tasks: the kernel saves as the user's GSBASE what it finds there */
	if (user(x) && reg && reg->kind == TASK_STACK) {
		if (m->r[REG_KERNEL_GSBASE] != x[REG_GSBASE])
			return report(m, P_ENVIRONMENT, m->pc, REG_KERNEL_GSBASE, x[REG_GSBASE],
				      m->r[REG_KERNEL_GSBASE]);
		if (m->shadow && in == m->inst)
			same_origin(m, leaf(m, REG_KERNEL_GSBASE), REG_GSBASE, m->r[REG_KERNEL_GSBASE]);
	}
	/* whatever the handler calls will return */
	if (m->shadow)
		require(m, leaf(m, REG_EXPOSED), m->r[REG_EXPOSED]);
	if (m->r[REG_EXPOSED] & EXPOSED_EVERYTHING)
		return report(m, P_PREDICTED, m->pc, REG_EXPOSED, 0, m->r[REG_EXPOSED]);
	if (m->shadow) {
		u64 rsp = m->r[REG_RSP];
		u32 node = leaf(m, REG_RSP);

		require_address(m, node, rsp);
		require(m, mk_node(m, CODE_INT_AND, 8, node, 0, 8, 0, unaligned, 8, rsp & unaligned), rsp & unaligned);
		if (reg && reg->kind == MAIN_STACK) {
			u64 limit = reg->bottom + m->im->reserve - 32;

			require(m, mk_node(m, CODE_INT_LESS, 1, node, 0, 8, 0, limit, 8, rsp < limit), rsp < limit);
		}
	}
	/* Linux keeps stacks aligned to 8 bytes only (-mpreferred-stack-boundary=3) */
	if ((m->r[REG_RSP] + 8) & unaligned)
		return report(m, P_ENVIRONMENT, m->pc, REG_RSP, 0, (m->r[REG_RSP] + 8) & unaligned);
	if (!reg)
		return report(m, P_ENVIRONMENT, m->pc, REG_RSP, 0, m->r[REG_RSP]);
	if (reg->kind == MAIN_STACK) {
		if (m->r[REG_RSP] < m->lowest_main)
			m->lowest_main = m->r[REG_RSP];
		/* the call and its alignment may use a little of the reserve */
		if (m->r[REG_RSP] + 32 < reg->bottom + m->im->reserve)
			return report(m, P_NO_ROOM, m->r[REG_RSP], REG_RSP, reg->bottom + m->im->reserve, m->r[REG_RSP]);
	}
	return GOES_ON;
}

/* Whether check_committed() has nothing to say; without shadow. */
static bool looks_committed(const u64 *r)
{
	u64 differ = (r[REG_RAX] ^ r[REG_RSP]) | r[REG_IF] | r[REG_TF] | r[REG_NT] | r[REG_AC] | r[REG_DF];

#pragma GCC unroll 16
	for (u32 slot = 0; slot < NGPRS; slot++)
		differ |= slot == REG_RAX || slot == REG_RSP ? 0 : r[slot];
	return !differ;
}

/* What an image claims with a commit label: every entry looks the same there. */
int check_committed(struct machine *m)
{
	static const u32 clear[] = { REG_IF, REG_TF, REG_NT, REG_AC, REG_DF };

	m->pc = m->r[REG_RIP];
	if (!m->shadow && looks_committed(m->r))
		return GOES_ON;
	for (u32 i = 0; i < NGPRS + sizeof(clear) / sizeof(clear[0]); i++) {
		u32 slot = i < NGPRS ? i : clear[i - NGPRS];
		u64 expected = slot == REG_RAX ? m->r[REG_RSP] : 0;

		if (slot == REG_RSP)
			continue;
		if (m->shadow && slot == REG_RAX) {
			u32 a = leaf(m, REG_RAX), b = leaf(m, REG_RSP);

			if (a != b)
				require(m, mk_node(m, CODE_INT_SUB, 8, a, m->r[REG_RAX], 8, b, expected, 8,
						   m->r[REG_RAX] - expected), m->r[REG_RAX] - expected);
		} else if (m->shadow) {
			require(m, leaf(m, slot), m->r[slot]);
		}
		if (m->r[slot] != expected)
			return report(m, P_COMMITTED_STATE, m->pc, slot, expected, m->r[slot]);
	}
	return GOES_ON;
}

static void set_const(struct machine *m, u32 slot, u64 val)
{
	m->r[slot] = val;
	if (m->shadow) {
		m->rnode[slot] = 0;
		m->rscope[slot] = m->scope->id;
		touch(m, slot);
	}
}

/* The handler as an adversary that keeps to the ABI, and returns. */
static int adversary(struct machine *m, u32 vector)
{
	static const u32 clobbered[] = { REG_RAX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11 };
	static const u32 flags[] = { REG_CF, REG_PF, REG_AF, REG_ZF, REG_SF, REG_OF };
	struct region *reg = region_of(m, m->r[REG_RSP]);
	u64 back;

	for (u32 i = 0; i < sizeof(clobbered) / sizeof(clobbered[0]); i++)
		set_const(m, clobbered[i], POISON | 0xf0f0f0 | (u64)clobbered[i] << 24);
	for (u32 i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
		set_const(m, flags[i], 1);
	poison(m, reg->bottom, m->r[REG_RSP]);
	if (vector == EVENT_MC)
		set_const(m, REG_MCG_STATUS, 0);
	if (!read_word(m, m->r[REG_RSP], &back))
		return report(m, P_NO_CODE, m->r[REG_RSP], REG_RSP, 0, m->r[REG_RSP]);
	if (m->shadow) {
		require_address(m, leaf(m, REG_RSP), m->r[REG_RSP]);
		require(m, word_node(m, m->r[REG_RSP]), back);
	}
	m->r[REG_RSP] += 8;
	if (m->shadow) {
		touch(m, REG_RSP);
		m->rnode[REG_RSP] = mk_node(m, CODE_INT_ADD, 8, leaf(m, REG_RSP), 0, 8, 0, 8, 8, m->r[REG_RSP]);
		m->rscope[REG_RSP] = m->scope->id;
	}
	set_const(m, REG_RIP, back);
	m->steps++;
	return GOES_ON;
}

int at_handler(struct machine *m, u32 vector)
{
	struct instance *in = NULL;
	int st;

	m->pc = m->r[REG_RIP];
	for (u32 i = m->ninst; i-- > 0;) {
		if (m->inst[i].vector == vector && !m->inst[i].handled) {
			in = &m->inst[i];
			break;
		}
	}
	/* NMIs coalesce: a handler that starts later serves all before, and may run for each */
	if (in && vector == EVENT_NMI) {
		m->spare += m->owed[vector];
		m->owed[vector] = 0;
	}
	if (!in && (m->owed[vector] || (vector == EVENT_NMI && m->spare))) {
		if (m->owed[vector])
			m->owed[vector]--;
		else
			m->spare--;
		for (u32 i = m->ninst; i-- > 0 && !in;)
			if (m->inst[i].vector == vector)
				in = &m->inst[i];
	}
	/* with commit labels: whoever calls a handler has committed */
	if (m->early)
		return report(m, P_CLAIM, m->pc, REG_RIP, 0, m->pc);
	if (!in)
		return report(m, P_HANDLED_TWICE, m->pc, NSLOTS, 0, vector);
	st = check_environment(m, in);
	if (st == GOES_ON)
		st = check_frame(m, in, m->r[REG_RDI], in == m->inst);
	if (st == GOES_ON && vector_error[vector] && m->shadow)
		require(m, leaf(m, REG_RSI), m->r[REG_RSI]);
	if (st == GOES_ON && vector_error[vector] && m->r[REG_RSI] != in->error)
		st = report(m, P_HANDLER_CONTEXT, m->pc, REG_RSI, in->error, m->r[REG_RSI]);
	if (st != GOES_ON)
		return st;
	in->handled = 1;
	return adversary(m, vector);
}

static bool compared(u32 slot)
{
	return slot != REG_NMI_BLOCKED && slot != REG_MCG_STATUS && slot != REG_SHADOW &&
	       slot != REG_EXPOSED;
}

int at_return(struct machine *m)
{
	const struct insn *to = insn_at(m, m->r[REG_RIP]);
	struct instance *in;
	const u64 *x = NULL;
	u32 j;

	for (j = m->ninst; j-- > 0;) {
		x = context(&m->inst[j]);
		if (x[REG_RIP] == m->r[REG_RIP] && x[REG_RSP] == m->r[REG_RSP] && x[REG_CS] == m->r[REG_CS])
			break;
	}
	if (unfinished(to) && !user(m->r)) {
		if (m->shadow)
			require(m, leaf(m, REG_RIP), m->r[REG_RIP]);
		return report(m, P_RESUMED_INSIDE, m->r[REG_RIP], REG_RIP, m->ninst ? m->inst[0].x[REG_RIP] : 0,
			      m->r[REG_RIP]);
	}
	if (j == ~0u) {
		if (!user(m->r) && to && to->place & IN_ENTRY) {
			/* back into the entry: its own business, on constants it made */
			if (m->shadow) {
				require(m, leaf(m, REG_RIP), m->r[REG_RIP]);
				set_const(m, REG_RIP, m->r[REG_RIP]);
			}
			return GOES_ON;
		}
		return report(m, P_LOST_CONTEXT, m->r[REG_RIP], REG_RIP,
			      m->ninst ? m->inst[0].x[REG_RIP] : 0, m->r[REG_RIP]);
	}
	in = &m->inst[j];
	for (u32 slot = 0; slot < NSLOTS; slot++) {
		if (!compared(slot))
			continue;
		if (m->r[slot] != x[slot])
			return report(m, P_RESUMED_CONTEXT, m->pc, slot, x[slot], m->r[slot]);
		if (j == 0 && m->shadow && is_finished(in, slot))
			require(m, leaf(m, slot), m->r[slot]);
		else if (j == 0 && m->shadow && !set_by_rule(in, slot))
			same_origin(m, leaf(m, slot), slot, m->r[slot]);
	}
	/* an IRET unblocks NMIs; a way out without one leaves them blocked for good */
	if (j == 0 && m->r[REG_NMI_BLOCKED] && !x[REG_NMI_BLOCKED])
		return report(m, P_RESUMED_CONTEXT, m->pc, REG_NMI_BLOCKED, 0, m->r[REG_NMI_BLOCKED]);
	for (u32 i = m->ninst; i-- > j;) {
		if (!m->inst[i].handled)
			m->owed[m->inst[i].vector]++;
		if (m->inst[i].live_region != ~0u)
			set_live(m, &m->regions[m->inst[i].live_region], m->inst[i].old_live);
	}
	m->ninst = j;
	if (j)
		return GOES_ON;
	for (u32 v = 0; v < NVEC; v++)
		if (m->owed[v])
			return report(m, P_EVENT_LOST, m->pc, NSLOTS, 0, v);
	return DONE;
}
