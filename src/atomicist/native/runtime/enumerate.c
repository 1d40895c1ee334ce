/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Walks every schedule of at most `budget` events from one context, one by one:
 * at each boundary from the first delivery until the first context runs again,
 * each event that the gates let through is delivered.  Nothing is merged but
 * (for an image that claims its IST stacks free at commit) equal committed
 * states.  It needs no knowledge of the scheme and serves any kernel.
 *
 * Gates: NMI while not blocked; #MC while MCIP is clear; #DB and #VC from the end
 * of their handler (or from the commit, where the image says its stack is free).
 */
#include "search.h"

struct saved {
	u64 r[NSLOTS];
	struct instance inst[MAX_CHAIN];
	u32 owed[NVEC];
	u32 ninst, nsched, steps, mark, masked;
	bool early;
};

static void save(struct machine *m, struct saved *v, u32 masked)
{
	memcpy(v->r, m->r, sizeof(v->r));
	memcpy(v->inst, m->inst, m->ninst * sizeof(m->inst[0]));
	memcpy(v->owed, m->owed, sizeof(v->owed));
	v->ninst = m->ninst;
	v->nsched = m->nsched;
	v->steps = m->steps;
	v->mark = m->nlog;
	v->early = m->early;
	v->masked = masked;
}

/* Live bounds follow from the instances, so they need no log of their own. */
static void relive(struct machine *m)
{
	for (u32 i = 1; i < m->ninst; i++)
		if (m->inst[i].live_region != ~0u)
			set_live(m, &m->regions[m->inst[i].live_region], m->inst[i].x[REG_RSP]);
}

static void restore(struct machine *m, const struct saved *v)
{
	bool lives = false;

	for (u32 i = m->ninst; i-- > v->ninst;) {
		if (m->inst[i].live_region != ~0u) {
			set_live(m, &m->regions[m->inst[i].live_region], m->inst[i].old_live);
			lives = true;
		}
	}
	for (u32 i = m->ninst; i < v->ninst; i++)
		lives |= v->inst[i].live_region != ~0u;
	rollback(m, v->mark);
	memcpy(m->r, v->r, sizeof(v->r));
	memcpy(m->inst, v->inst, v->ninst * sizeof(m->inst[0]));
	memcpy(m->owed, v->owed, sizeof(v->owed));
	m->ninst = v->ninst;
	m->nsched = v->nsched;
	m->steps = v->steps;
	m->early = v->early;
	m->root = m->im->user_root_bit && (m->r[REG_CR3] & m->im->user_root_bit);
	if (lives)
		relive(m);
}

static bool open_gate(struct machine *m, u32 vector, u32 masked)
{
	if (!m->im->gates[vector].present || m->r[REG_SHADOW])
		return false;
	if (vector == EVENT_NMI && m->r[REG_NMI_BLOCKED])
		return false;
	if (vector == EVENT_MC && (m->r[REG_MCG_STATUS] & MCIP))
		return false;
	return !(masked >> vector & 1);
}

static u64 mix(u64 h, u64 v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15ull;
	return h ^ h >> 29;
}

/* Was this committed state, with these events, followed already? */
static bool followed(struct search *s, u32 left)
{
	struct machine *m = s->m;
	struct region *reg = region_of(m, m->r[REG_RSP]);
	u64 top = reg && reg->live < reg->top ? reg->live : reg ? reg->top : 0, h = left;
	u32 i;

	for (i = 0; i < NSLOTS; i++)
		h = mix(h, m->r[i]);
	for (i = 0; i < m->ninst; i++)
		h = mix(h, m->inst[i].vector << 8 | m->inst[i].handled);
	for (u64 va = m->r[REG_RSP]; va < top; va += 8) {
		u64 val = 0;

		read_word(m, va, &val);
		h = mix(h, val);
	}
	h |= 1;
	for (i = (u32)(h >> 40) & (s->hashes_size - 1); s->hashes[i]; i = (i + 1) & (s->hashes_size - 1))
		if (s->hashes[i] == h)
			return true;
	if (s->nhashes * 2 > s->hashes_size) {
		m->overflow = __LINE__;
		return false;
	}
	s->hashes[i] = h;
	s->nhashes++;
	return false;
}

static void walk(struct search *s, u32 left, u32 masked);

static bool enough(struct search *s)
{
	return s->m->overflow || (s->stop && s->m->nfindings >= s->stop);
}

static void inject(struct search *s, u32 vector, u32 left, u32 masked)
{
	struct saved v;
	int st;

	save(s->m, &v, masked);
	st = push_event(s->m, vector);
	if (st == GOES_ON)
		walk(s, left - 1, masked | 1u << vector);
	else
		s->m->executed++;
	restore(s->m, &v);
}

/* The states behind a commit, once each; false: nothing new there. */
static bool commit(struct search *s, u32 left, u32 *masked)
{
	struct machine *m = s->m;
	struct region *reg = region_of(m, m->r[REG_RSP]);

	m->pc = m->r[REG_RIP];
	if (!reg || reg->kind != MAIN_STACK) {
		report(m, P_CLAIM, m->pc, REG_RSP, 0, m->r[REG_RSP]);
		return false;
	}
	m->early = false;
	*masked = 0;
	for (u32 i = 1; i < m->ninst; i++) {
		struct region *at = region_of(m, m->inst[i].x[REG_RSP]);

		if (at && at->kind == IST_STACK) {
			m->inst[i].abandoned = 1;
			memset(m->inst[i].x, 0, sizeof(m->inst[i].x));
		}
	}
	if (followed(s, left))
		return false;
	for (u32 i = 0; i < m->im->nregions; i++)
		if (m->regions[i].kind == IST_STACK)
			poison(m, m->regions[i].bottom, m->regions[i].top);
	poison(m, reg->bottom, m->r[REG_RSP]);
	return true;
}

static void walk(struct search *s, u32 left, u32 masked)
{
	struct machine *m = s->m;
	int st = GOES_ON;

	for (u32 steps = 0; st == GOES_ON && steps < m->im->max_steps && !enough(s); steps++) {
		const struct insn *in;

		if (!left && s->run && !(masked & ~0xfu)) {
			st = s->run(m, m->im->max_steps);
			if (st != GOES_ON)
				break;
		}
		in = insn_at(m, m->r[REG_RIP]);
		if (in && in->place & COMMITTED && m->early && !commit(s, left, &masked)) {
			m->executed++;
			return;
		}
		if (left) {
			m->boundaries++;
			for (u32 v = 0; v < NVEC; v++)
				if (s->offered >> v & 1 && open_gate(m, v, masked))
					inject(s, v, left, masked);
		}
		if (in && in->handler) {
			u32 vector = in->handler - 1;

			st = at_handler(m, vector);
			masked &= ~(1u << vector);
		} else {
			st = step(m);
		}
	}
	if (st == GOES_ON && !enough(s)) {
		m->pc = m->r[REG_RIP];
		report(m, P_ENDLESS, m->pc, NSLOTS, m->im->max_steps, 0);
	}
	m->executed++;
}

/* All schedules from the context `regs`. */
int enumerate(struct search *s, const u64 *regs, u32 expect_df, u32 no_stack)
{
	struct machine *m = s->m;

	m->shadow = false;
	m->nlog = 0;
	m->expect_df = expect_df;
	m->no_stack = no_stack;
	s->nhashes = 0;
	memset(s->hashes, 0, s->hashes_size * sizeof(*s->hashes));
	begin(m, regs);
	for (u32 v = 0; v < NVEC && !enough(s); v++)
		if (s->offered >> v & 1 && s->first >> v & 1 && open_gate(m, v, 0))
			inject(s, v, s->budget, 0);
	rollback(m, 0);
	return m->nfindings ? FOUND : GOES_ON;
}
