/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Walks every schedule of at most `budget` events from one context, one by one:
 * at each boundary from the first delivery until the first context runs again,
 * each event that the gates let through is delivered.  Nothing is merged but
 * (for an image that claims its IST stacks free at commit) equal committed
 * states.  It needs no knowledge of the scheme and serves any kernel.
 *
 * Or one schedule that is given, with nothing merged: `follow_schedule`.
 *
 * Gates: NMI while not blocked; #MC while MCIP is clear; #DB and #VC from the end
 * of their handler (or from the commit, where the image says its stack is free).
 */
#include <stdlib.h>

#include "search.h"

/* What an event that is tried changes, but for memory, which has its log. */
struct saved {
	u64 rf;			/* the other registers are the context that the event interrupts */
	struct instance slot;	/* what the event's own instance overwrote */
	u8 marks[MAX_CHAIN];	/* of each instance */
	u32 owed[NVEC];
	u32 spare;
	u32 ninst, nsched, steps, mark, kept;
	bool early;
};

/* A size that the compiler does not know: it would inline a slower copy than libc's. */
static inline size_t hidden(size_t n)
{
	__asm__("" : "+r"(n));
	return n;
}

/* By row; both are as long as known_size() says. */
static inline void copy_known(const struct machine *m, struct known *to, const struct known *from)
{
	for (u32 i = 0; i < m->im->npages; i += sizeof(row) / sizeof(*to))
		*(row *)(to + i) = *(const row *)(from + i);
}

enum mark { HANDLED = 1, ABANDONED = 2, GONE = 4 };

/*
 * Instances are written when an event is pushed, and marked as they are handled,
 * abandoned, or gone.  They are saved only where the slot had an owner.
 */
static void save(struct search *s, struct saved *v)
{
	struct machine *m = s->m;

	v->rf = m->r[REG_RF];
	copy_known(m, s->known + s->ntries++ * known_size(m->im), m->known);
	for (u32 i = 0; i < m->ninst; i++) {
		const struct instance *in = &m->inst[i];

		v->marks[i] = (in->handled ? HANDLED : 0) | (in->abandoned ? ABANDONED : 0) | (in->gone ? GONE : 0);
	}
	memcpy(v->owed, m->owed, sizeof(v->owed));
	v->spare = m->spare;
	v->ninst = m->ninst;
	v->nsched = m->nsched;
	v->steps = m->steps;
	v->mark = m->nsaved;
	v->early = m->early;
	v->kept = s->kept;
	if (m->ninst < s->kept)
		memcpy(&v->slot, &m->inst[m->ninst], hidden(sizeof(v->slot)));
	else
		s->kept = m->ninst + 1;
}

/* Live bounds follow from the instances, so they need no log of their own. */
static void relive(struct machine *m)
{
	for (u32 i = 1; i < m->ninst; i++)
		if (m->inst[i].live_region != ~0u)
			set_live(m, &m->regions[m->inst[i].live_region], m->inst[i].x[REG_RSP]);
}

static void restore(struct search *s, const struct saved *v)
{
	struct machine *m = s->m;
	bool lives = false;

	for (u32 i = m->ninst; i-- > v->ninst;) {
		if (m->inst[i].live_region != ~0u) {
			set_live(m, &m->regions[m->inst[i].live_region], m->inst[i].old_live);
			lives = true;
		}
	}
	rollback(m, v->mark);
	copy_file(m->r, m->inst[v->ninst].x);
	m->r[REG_RF] = v->rf;
	copy_known(m, m->known, s->known + --s->ntries * known_size(m->im));
	if (v->ninst < v->kept)
		memcpy(&m->inst[v->ninst], &v->slot, hidden(sizeof(v->slot)));
	s->kept = v->kept;
	for (u32 i = m->ninst; i < v->ninst; i++)
		lives |= m->inst[i].live_region != ~0u;
	for (u32 i = 0; i < v->ninst; i++) {
		m->inst[i].handled = !!(v->marks[i] & HANDLED);
		m->inst[i].abandoned = !!(v->marks[i] & ABANDONED);
		m->inst[i].gone = !!(v->marks[i] & GONE);
	}
	memcpy(m->owed, v->owed, sizeof(v->owed));
	m->spare = v->spare;
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
	if (!m->im->gates[vector].present || (m->r[REG_SHADOW] && vector != EVENT_MC))
		return false;
	if (vector == EVENT_NMI && m->r[REG_NMI_BLOCKED])
		return false;
	if (vector == EVENT_MC && (m->r[REG_MCG_STATUS] & MCIP))
		return false;
	/* without a commit label, an entry ends where its event's context runs again */
	if (!m->im->claims && (vector == EVENT_DB || vector == EVENT_VC))
		for (u32 i = 0; i < m->ninst; i++)
			if (m->inst[i].vector == vector)
				return false;
	return !(masked >> vector & 1);
}

static u64 fold(u64 a, u64 b)
{
	u128 p = (u128)a * b;

	return (u64)p ^ (u64)(p >> 64);
}

/* A hash of `n` words; four chains of multiplications run side by side. */
static u64 digest(u64 h, const u64 *p, u64 n)
{
	u64 a = h ^ 0x9e3779b97f4a7c15ull, b = h ^ 0xc2b2ae3d27d4eb4full;
	u64 c = h ^ 0x8bb84b93962eacc9ull, d = h ^ 0x4b33a62ed433d4a3ull;

	for (; n >= 8; n -= 8, p += 8) {
		a = fold(p[0] ^ 0xa0761d6478bd642full, p[1] ^ a);
		b = fold(p[2] ^ 0xe7037ed1a0b428dbull, p[3] ^ b);
		c = fold(p[4] ^ 0x4d5a2da51de1aa47ull, p[5] ^ c);
		d = fold(p[6] ^ 0x71c9e4f3a5d8b609ull, p[7] ^ d);
	}
	for (; n >= 2; n -= 2, p += 2)
		a = fold(p[0] ^ 0xa0761d6478bd642full, p[1] ^ a);
	if (n)
		b = fold(*p ^ 0x8ebc6af09c88c6e3ull, b ^ 0x589965cc75374cc3ull);
	return fold(a ^ fold(c, d ^ 0x1d8e4e27c47d124full), b);
}

/* Double the table of committed states. */
static bool grow(struct search *s)
{
	u32 size = s->hashes_size * 2;
	u64 *wider = size ? calloc(size, sizeof(*wider)) : NULL;

	if (!wider)
		return false;
	for (u32 k = 0; k < s->hashes_size; k++) {
		u32 i = (u32)s->hashes[k] / 2 & (size - 1);

		if (!s->hashes[k])
			continue;
		while (wider[i])
			i = (i + 1) & (size - 1);
		wider[i] = s->hashes[k];
	}
	free(s->hashes);
	s->hashes = wider;
	s->hashes_size = size;
	return true;
}

/*
 * Was this committed state, with these events, followed already?  check_committed() has been
 * here: the general registers follow from RSP.
 */
static bool followed(struct search *s, struct region *reg, u32 left)
{
	struct machine *m = s->m;
	u64 top = reg->live < reg->top ? reg->live : reg->top, h = left, next;
	u32 i;

	h = digest(h ^ m->r[REG_RSP], m->r + NGPRS, NSLOTS - NGPRS);
	for (i = 0; i < m->ninst; i++)
		h = fold(h ^ (m->inst[i].vector << 8 | m->inst[i].handled), 0xa0761d6478bd642full);
	for (i = 0; i < NVEC; i++)
		h = fold(h ^ m->owed[i], 0xe7037ed1a0b428dbull);
	h = fold(h ^ m->spare, 0xe7037ed1a0b428dbull);
	for (u64 va = m->r[REG_RSP]; va < top; va = next) {
		int page = find_page(m, va);
		u64 off = va & (PAGE - 1);

		next = va - off + PAGE;
		if (page >= 0 && off < m->known[page].floor)
			materialize(m, (u32)page, (u32)off);
		if (page >= 0)
			h = digest(h, &m->mem[(u32)page * WORDS + off / 8], ((next < top ? next : top) - va + 7) / 8);
	}
	h |= 1;
	for (i = (u32)h / 2 & (s->hashes_size - 1); s->hashes[i]; i = (i + 1) & (s->hashes_size - 1))
		if (s->hashes[i] == h)
			return s->hits++, true;
	s->hashes[i] = h;
	s->nhashes++;
	s->misses++;
	if (s->nhashes * 4ull > s->hashes_size * 3ull && !grow(s))
		m->overflow = __LINE__;
	return false;
}

static void walk(struct search *s, u32 left, u32 masked);

static bool enough(struct search *s)
{
	struct machine *m = s->m;

	if (s->limit && m->executed >= s->limit)
		m->overflow = __LINE__;
	return m->overflow || (s->stop && m->nfindings >= s->stop);
}

static void inject(struct search *s, u32 vector, u32 left, u32 masked)
{
	struct machine *m = s->m;
	struct saved v;
	int st;

	/* restore() takes the registers from the event's own instance */
	if (m->ninst == MAX_CHAIN || m->nsched == MAX_CHAIN) {
		m->overflow = __LINE__;
		return;
	}
	save(s, &v);
	st = push_event(m, vector);
	if (st == GOES_ON)
		walk(s, left - 1, vector == EVENT_DB || vector == EVENT_VC ? masked | 1u << vector : masked);
	else
		m->executed++;
	restore(s, &v);
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
		struct instance *in = &m->inst[i];
		const struct region *at = in->gone ? NULL : region_of(m, in->x[REG_RSP]);

		if (at && at->kind == IST_STACK)
			in->abandoned = in->gone = 1;
	}
	if (!s->alone && followed(s, reg, left))
		return false;
	for (u32 i = 0; i < m->im->nregions; i++)
		if (m->regions[i].kind == IST_STACK)
			poison(m, m->regions[i].bottom, m->regions[i].top);
	poison(m, reg->bottom, m->r[REG_RSP]);
	return true;
}

/* step(), of the instruction `in`, by compiled code if there is any. */
static int step_fast(struct machine *m, const struct insn *in)
{
	one_fn *one = m->code && in && !m->r[REG_SHADOW] ? m->code->one[in - m->im->insns] : NULL;
	int st;

	if (!one)
		return step(m);
	m->r[REG_RIP] = in->va + in->size;
	st = one(m);
	if (st == REFUSES) {
		m->r[REG_RIP] = in->va;
		return step(m);
	}
	m->steps++;
	m->guest_insns++;
	return st == RETURNS ? at_return(m) : st;
}

static bool committed(const struct insn *in)
{
	return in && in->place & COMMITTED;
}

static void walk(struct search *s, u32 left, u32 masked)
{
	struct machine *m = s->m;
	u32 steps = 0;
	int st = GOES_ON;

	while (st == GOES_ON && steps < m->im->max_steps && !enough(s)) {
		const struct insn *in = insn_at(m, m->r[REG_RIP]);

		if (committed(in)) {
			st = check_committed(m);
			if (st != GOES_ON)
				break;
		}
		if (!left && m->code) {
			u64 before = m->guest_insns;

			st = m->code->run(m, m->im->max_steps - steps);
			steps += (u32)(m->guest_insns - before);
			if (st == RETURNS) {
				st = at_return(m);
				continue;
			}
			if (steps == m->im->max_steps)
				break;
			if (m->guest_insns != before) {
				in = insn_at(m, m->r[REG_RIP]);
				if (committed(in)) {
					st = check_committed(m);
					if (st != GOES_ON)
						break;
				}
			}
		}
		if (committed(in) && m->early && !commit(s, left, &masked)) {
			m->executed++;
			return;
		}
		if (left) {
			m->boundaries++;
			for (u32 v = 0; v < NVEC; v++)
				if (s->offered >> v & 1 && open_gate(m, v, masked))
					inject(s, v, left, masked);
		}
		steps++;
		if (in && in->handler) {
			u32 vector = in->handler - 1;

			st = at_handler(m, vector);
			masked &= ~(1u << vector);
		} else {
			st = step_fast(m, in);
		}
	}
	if (st == GOES_ON && !enough(s)) {
		m->pc = m->r[REG_RIP];
		report(m, P_ENDLESS, m->pc, NSLOTS, m->im->max_steps, 0);
	}
	if (st == DONE && m->expect_df)
		report(m, P_NO_DOUBLE_FAULT, m->pc, NSLOTS, 0, 0);
	m->executed++;
}

/* A search may be small that comes after a big one. */
static void forget_followed(struct search *s)
{
	u64 *few = s->hashes_size > FEW_HASHES ? calloc(FEW_HASHES, sizeof(*few)) : NULL;

	if (!few) {
		memset(s->hashes, 0, s->hashes_size * sizeof(*s->hashes));
		return;
	}
	free(s->hashes);
	s->hashes = few;
	s->hashes_size = FEW_HASHES;
}

static void forget_known(struct machine *m)
{
	memset(m->known, 0, m->im->npages * sizeof(*m->known));
}

static void start(struct search *s, const u64 *regs, u32 expect_df, u32 no_stack)
{
	struct machine *m = s->m;

	m->shadow = false;
	m->nsaved = 0;
	m->expect_df = expect_df;
	m->no_stack = no_stack;
	s->nhashes = s->ntries = s->kept = 0;
	forget_known(m);
	forget_followed(s);
	begin(m, regs);
}

/* All schedules from the context `regs`. */
int enumerate(struct search *s, const u64 *regs, u32 expect_df, u32 no_stack)
{
	struct machine *m = s->m;

	start(s, regs, expect_df, no_stack);
	for (u32 v = 0; v < NVEC && !enough(s); v++)
		if (s->offered >> v & 1 && s->first >> v & 1 && open_gate(m, v, 0))
			inject(s, v, s->budget, 0);
	rollback(m, 0);
	forget_known(m);
	return m->nfindings ? FOUND : GOES_ON;
}

/* One step of a given schedule, events aside. */
static int go_on(struct search *s, u32 *masked)
{
	struct machine *m = s->m;
	const struct insn *in = insn_at(m, m->r[REG_RIP]);
	u32 vector;
	int st;

	if (!in || !in->handler)
		return step_fast(m, in);
	vector = in->handler - 1;
	st = at_handler(m, vector);
	*masked &= ~(1u << vector);
	return st;
}

/* A given schedule; REFUSES if one of its events cannot be delivered when it is due. */
int follow_schedule(struct search *s, const u64 *regs, u32 expect_df, u32 no_stack, const struct event *events, u32 n)
{
	struct machine *m = s->m;
	u32 masked = 0, steps = 0, next = 0;
	u64 fuel = (u64)m->im->max_steps * (n + 1);
	int st = GOES_ON;

	start(s, regs, expect_df, no_stack);
	while (st == GOES_ON && fuel-- && !m->overflow) {
		const struct insn *in = insn_at(m, m->r[REG_RIP]);

		if (in && in->place & COMMITTED && m->ninst) {
			st = check_committed(m);
			if (st == GOES_ON && m->early && !commit(s, 0, &masked))
				st = FOUND;
			if (st != GOES_ON)
				break;
		}
		if (next < n && events[next].steps == steps) {
			u32 vector = events[next++].vector;

			if (!open_gate(m, vector, masked))
				st = REFUSES;
			else
				st = push_event(m, vector);
			if (vector == EVENT_DB || vector == EVENT_VC)
				masked |= 1u << vector;
			steps = 0;
			continue;
		}
		if (!next) {
			st = REFUSES;
			break;
		}
		steps++;
		st = go_on(s, &masked);
	}
	if (st == GOES_ON && !m->overflow) {
		m->pc = m->r[REG_RIP];
		report(m, P_ENDLESS, m->pc, NSLOTS, m->im->max_steps, 0);
	}
	m->executed++;
	rollback(m, 0);
	forget_known(m);
	return next < n && st != FOUND ? REFUSES : st;
}
