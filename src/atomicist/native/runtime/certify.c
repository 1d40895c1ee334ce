/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Closes all nestings inside an atomic entry from one context, for one first
 * event, and says for which other contexts the result holds as well.
 *
 * Before a commit: at every boundary every vector that is not yet under way is
 * delivered.  What follows is explored once per *class*: a finished scope is
 * remembered with the constraints of its course and the places its result was
 * copied from (`struct memo`); where another boundary satisfies them, its whole
 * tree of nestings is the same and leads to the same committed states.
 *
 * At a commit the image claims that every IST stack is free.  The claim is
 * taken at its word and the stacks are poisoned, so that states which differ
 * only in dead memory are equal; each committed state is followed once.
 *
 * After a commit an event that arrives finds a context like any other: it is
 * handed out (`struct emitted`) to be certified in its turn.  That it will come
 * back unchanged is the induction hypothesis, over the number of events.
 */
#include <stdlib.h>

#include "search.h"


static int explore(struct search *s, u32 chain, u64 *count);

static bool is_key(u32 slot)
{
	for (u32 i = 0; i < NKEY; i++)
		if (key_slot[i] == slot)
			return true;
	return slot == REG_RSP || slot == REG_CR4 || slot == REG_TR_BASE || slot == REG_CPUNODE;
}

/* May a result depend on what `loc` held?  RIP and RSP are answered by `covers`. */
static bool relevant(struct machine *m, u32 loc)
{
	if (loc < NSLOTS)
		return is_key(loc) || loc == REG_RIP;
	return m->pages[(loc - NSLOTS) / WORDS].flags & CONSTANT;
}

struct relevance {
	struct search *s;
	u64 where;
	bool rip;
	bool rsp;
	u32 keys;		/* bit set of other key registers */
};

static void check_leaf(void *arg, u32 loc)
{
	struct relevance *r = arg;

	if (loc == REG_RIP)
		r->rip = true;
	if (loc == REG_RSP)
		r->rsp = true;
	for (u32 i = 0; i < NKEY; i++)
		if (loc == key_slot[i] && loc != REG_RSP)
			r->keys |= 1u << i;
	if (!relevant(r->s->m, loc) && r->s->broken_slot == NSLOTS) {
		r->s->broken_slot = loc;
		r->s->broken_where = r->where;
	}
}

/* Was any place that the constraint reads written since? */
static bool touched(struct machine *m, const struct constraint *c, u32 since)
{
	if (c->nleaves > MAX_LEAVES)
		return true;
	for (u32 i = 0; i < c->nleaves; i++)
		if (m->version[c->leaf[i]] > since)
			return true;
	return false;
}

/* When was the state last known to be in the class of `memo`?  0: not in this scope. */
static u32 known_since(struct machine *m, const struct memo *memo)
{
	return memo->scope == m->scope->id ? memo->clock : 0;
}

static bool same(struct search *s, struct memo *memo)
{
	struct machine *m = s->m;
	u32 since = known_since(m, memo);

	for (u32 i = 0; i < memo->ncop; i++)
		if (value_at(m, memo->cop[i].loc) != memo->cop[i].val)
			return false;
	for (u32 i = 0; i < memo->ncon; i++) {
		if (since && !touched(m, &memo->con[i], since))
			continue;
		if (evaluate_now(m, memo->con[i].node) != memo->con[i].val) {
			/* what told two states apart will do so again: ask it earlier */
			struct constraint c = memo->con[i];

			memo->con[i] = memo->con[i / 2];
			memo->con[i / 2] = c;
			return false;
		}
	}
	for (u32 i = 0; i < memo->ncop; i++) {
		struct copied *c = &memo->cop[i];
		u32 node;

		if (since && m->version[c->loc] <= since)
			continue;
		node = leaf(m, c->loc);
		if (node == c->last)
			continue;
		if (to_root(m, node) != c->root)
			return false;
		c->last = node;
	}
	return true;
}

static u64 mix(u64 h, u64 v)
{
	h ^= v + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
	return h * 0xff51afd7ed558ccdull;
}

static void note_leaf(void *arg, u32 loc)
{
	struct constraint *c = arg;

	for (u32 i = 0; i < c->nleaves && i < MAX_LEAVES; i++)
		if (c->leaf[i] == loc)
			return;
	if (c->nleaves < MAX_LEAVES)
		c->leaf[c->nleaves] = loc;
	c->nleaves++;
}

/* Would substituting give what it gave the last time?  Then it is known already. */
static bool inherited(struct machine *m, struct constraint *c)
{
	u64 sig = m->scope->id;
	u32 any = 0;

	if (c->nleaves > MAX_LEAVES)
		return false;
	for (u32 i = 0; i < c->nleaves; i++) {
		u32 n = leaf(m, c->leaf[i]);

		any |= n;
		sig = mix(sig, n ? n : value_at(m, c->leaf[i]));
	}
	if (!any || sig == c->seen)
		return true;
	c->seen = sig;
	return false;
}

/* The present scope inherits what the remembered one depended on. */
static void inherit(struct search *s, struct memo *memo)
{
	struct machine *m = s->m;

	u32 since = known_since(m, memo);
	u64 pc = m->pc;

	for (u32 i = 0; i < memo->ncon; i++) {
		u64 val;

		if (since && !touched(m, &memo->con[i], since))
			continue;
		if (inherited(m, &memo->con[i]))
			continue;
		m->pc = memo->con[i].where;
		constrain(m, memo->con[i].kind, substitute_now(m, memo->con[i].node, &val), memo->con[i].val,
			  memo->con[i].low, memo->con[i].high);
	}
	m->pc = pc;
	if (m->scope->parent)
		for (u32 i = 0; i < memo->ncop; i++)
			if (!since || m->version[memo->cop[i].loc] > since)
				depend(m, leaf(m, memo->cop[i].loc));
	memo->scope = m->scope->id;
	memo->clock = m->clock;
}

static void remember(struct search *s, struct scope *sc, u32 chain, u32 vector, u64 count)
{
	struct memo *memo = &s->memo[s->nmemo];

	if (s->nmemo == MAX_MEMO) {
		s->m->overflow = __LINE__;
		return;
	}
	memo->chain = chain;
	memo->vector = vector;
	memo->count = count;
	memo->scope = memo->clock = 0;
	memo->ncon = sc->ncon;
	memo->ncop = sc->ncop;
	memo->con = malloc(sc->ncon * sizeof(*memo->con) + 1);
	memo->cop = malloc(sc->ncop * sizeof(*memo->cop) + 1);
	if (!memo->con || !memo->cop) {
		s->m->overflow = __LINE__;
		return;
	}
	memcpy(memo->con, sc->con, sc->ncon * sizeof(*memo->con));
	for (u32 i = 0; i < memo->ncon; i++) {
		memo->con[i].nleaves = 0;
		memo->con[i].seen = 0;
		leaves(s->m, memo->con[i].node, note_leaf, &memo->con[i]);
	}
	memcpy(memo->cop, sc->cop, sc->ncop * sizeof(*memo->cop));
	s->nmemo++;
}

/* Deliver `vector` here and explore all that can follow before a commit. */
static int try_event(struct search *s, u32 chain, u32 vector, u64 *count)
{
	struct machine *m = s->m;
	u64 regs[NSLOTS];
	u32 rnode[NSLOTS], rscope[NSLOTS], version[NSLOTS], mark = m->nlog;
	u32 ninst = m->ninst, nsched = m->nsched, steps = m->steps;
	struct scope *parent = m->scope, *sc;
	u64 mine = 0;
	int st;

	for (u32 i = s->nmemo; !s->brute && i-- > 0;) {
		if (s->memo[i].chain == chain && s->memo[i].vector == vector && same(s, &s->memo[i])) {
			inherit(s, &s->memo[i]);
			s->hits++;
			*count += s->memo[i].count;
			return GOES_ON;
		}
	}
	s->misses++;
	sc = malloc(sizeof(*sc));
	if (!sc) {
		m->overflow = __LINE__;
		return FOUND;
	}
	memcpy(regs, m->r, sizeof(regs));
	memcpy(rnode, m->rnode, sizeof(rnode));
	memcpy(rscope, m->rscope, sizeof(rscope));
	memcpy(version, m->version, sizeof(version));
	sc->id = m->next_scope++;
	sc->ncon = sc->ncop = 0;
	sc->parent = parent;
	m->scope = sc;

	st = push_event(m, vector);
	if (st == GOES_ON)
		st = explore(s, chain * 8 + vector + 1, &mine);
	else if (st == DOUBLE_FAULT)
		mine++, st = GOES_ON;

	rollback(m, mark);
	memcpy(m->r, regs, sizeof(regs));
	memcpy(m->rnode, rnode, sizeof(rnode));
	memcpy(m->rscope, rscope, sizeof(rscope));
	memcpy(m->version, version, sizeof(version));
	m->root = m->im->user_root_bit && (m->r[REG_CR3] & m->im->user_root_bit);
	for (u32 i = m->ninst; i-- > ninst;)
		if (m->inst[i].live_region != ~0u)
			set_live(m, &m->regions[m->inst[i].live_region], m->inst[i].old_live);
	m->ninst = ninst;
	m->nsched = nsched;
	m->steps = steps;
	m->early = true;
	m->scope = parent;
	*count += mine;
	if (st == GOES_ON) {
		for (u32 i = 0; i < sc->ncop; i++) {
			u32 loc = sc->cop[i].loc;

			sc->cop[i].val = loc < NSLOTS ? m->r[loc] : m->mem[loc - NSLOTS];
			sc->cop[i].last = leaf(m, loc);
			sc->cop[i].root = to_root(m, sc->cop[i].last);
			if (parent->parent)
				depend(m, leaf(m, loc));
		}
		for (u32 i = 0; i < sc->ncon; i++) {
			m->pc = sc->con[i].where;
			constrain(m, sc->con[i].kind, to_parent(m, sc->con[i].node), sc->con[i].val,
				  sc->con[i].low, sc->con[i].high);
		}
		remember(s, sc, chain, vector, mine);
	}
	free(sc);
	return st;
}

/* RSP is on the main stack: the IST stacks are said to be free. */
static int at_commit(struct search *s, u32 chain)
{
	struct machine *m = s->m;
	struct region *reg = region_of(m, m->r[REG_RSP]);
	struct committed *c = &s->committed[s->ncommitted];
	u32 steps = m->steps, n = 0;
	u64 top, h;

	m->pc = m->r[REG_RIP];
	if (!reg || reg->kind != MAIN_STACK)
		return report(m, P_CLAIM, m->pc, REG_RSP, 0, m->r[REG_RSP]);
	if (s->ncommitted == MAX_COMMITTED) {
		m->overflow = __LINE__;
		return FOUND;
	}
	if (steps > m->worst_commit)
		m->worst_commit = steps;
	h = chain;
	for (u32 i = 0; i < NSLOTS; i++) {
		u32 node = leaf(m, i);

		depend(m, node);
		c->r[i] = m->r[i];
		c->rnode[i] = to_root(m, node);
		h = mix(mix(h, m->r[i]), c->rnode[i]);
	}
	top = reg->live < reg->top ? reg->live : reg->top;
	for (u64 va = m->r[REG_RSP]; va < top; va += 8) {
		int i = find_page(m, va);
		u32 loc = NSLOTS + (u32)i * WORDS + (u32)(va & (PAGE - 1)) / 8, node;

		if (n == MAX_LIVE || i < 0) {
			m->overflow = __LINE__;
			return FOUND;
		}
		node = leaf(m, loc);
		depend(m, node);
		c->va[n] = va;
		c->val[n] = m->mem[loc - NSLOTS];
		c->node[n] = to_root(m, node);
		h = mix(mix(h, c->val[n]), c->node[n]);
		n++;
	}
	for (u32 i = 0; i < s->ncommitted; i++)
		if (s->committed[i].hash == h)
			return GOES_ON;
	c->hash = h;
	c->chain = chain;
	c->nwords = n;
	memcpy(c->inst, m->inst, sizeof(c->inst));
	c->ninst = m->ninst;
	memcpy(c->sched, m->sched, sizeof(c->sched));
	c->nsched = m->nsched;
	c->steps = m->steps;
	s->ncommitted++;
	return GOES_ON;
}

/* From here to the commit, with every event at every boundary. */
static int explore(struct search *s, u32 chain, u64 *count)
{
	struct machine *m = s->m;
	int st;

	for (u32 steps = 0; steps < m->im->max_steps; steps++) {
		const struct insn *in = insn_at(m, m->r[REG_RIP]);

		if (in && in->place & COMMITTED) {
			*count += 1;
			return at_commit(s, chain);
		}
		if (in && in->handler) {
			m->pc = in->va;
			return report(m, P_CLAIM, in->va, REG_RIP, 0, in->va);
		}
		m->boundaries++;
		for (u32 v = 0; v < NVEC; v++) {
			bool under_way = !m->im->gates[v].present || (m->r[REG_SHADOW] && v != EVENT_MC);

			for (u32 c = chain; c; c /= 8)
				under_way |= c % 8 == v + 1;
			if (under_way)
				continue;
			st = try_event(s, chain, v, count);
			if (st != GOES_ON)
				return st;
		}
		st = step(m);
		/* who returns before the commit gives up what it was to save */
		if (st != FOUND && m->note & (1u << NOTE_IRET | 1u << NOTE_SYSRET))
			return report(m, P_CLAIM, m->pc, REG_RIP, 0, m->r[REG_RIP]);
		if (st == DOUBLE_FAULT) {
			*count += 1;
			return GOES_ON;
		}
		if (st != GOES_ON)
			return st;
	}
	m->pc = m->r[REG_RIP];
	return report(m, P_ENDLESS, m->pc, NSLOTS, m->im->max_steps, 0);
}

static void emit(struct search *s, bool handler)
{
	struct machine *m = s->m;
	struct relevance stack = { .s = s, .where = m->r[REG_RIP] };
	u32 source[NKEY], i;
	struct emitted *e;
	u64 h = m->r[REG_RIP];

	m->pc = m->r[REG_RIP];
	for (i = 0; i < NKEY; i++) {
		u32 node = leaf(m, key_slot[i]);

		source[i] = NSLOTS;
		if (key_slot[i] == REG_RSP) {
			leaves(m, node, check_leaf, &stack);
			require_address(m, node, m->r[REG_RSP]);
		} else {
			for (u32 k = 0; k < NKEY; k++)
				if (key_slot[k] != REG_RSP && is_origin(m, node, key_slot[k]))
					source[i] = key_slot[k];
			if (source[i] == NSLOTS)
				require(m, node, m->r[key_slot[i]]);
		}
		h = mix(mix(h, m->r[key_slot[i]]), source[i]);
	}
	h = mix(h, stack.rsp);
	/* the interrupted RIP may not decide where a later event hits */
	if ((stack.rip || stack.keys) && s->broken_slot == NSLOTS) {
		s->broken_slot = REG_RIP;
		s->broken_where = stack.where;
	}
	h |= 1;
	for (i = (u32)(h >> 32) & (s->seen_size - 1); s->seen[i]; i = (i + 1) & (s->seen_size - 1))
		if (s->seen[i] == h)
			return;
	if (s->nout == s->capout || s->nseen * 2 > s->seen_size) {
		m->overflow = __LINE__;
		return;
	}
	s->seen[i] = h;
	s->nseen++;
	e = &s->out[s->nout++];
	for (i = 0; i < NKEY; i++)
		e->r[i] = m->r[key_slot[i]];
	e->rip = m->r[REG_RIP];
	memcpy(e->source, source, sizeof(source));
	e->relative = stack.rsp;
	e->handler = handler;
	e->nevents = m->nsched;
	e->steps = m->steps;
	memcpy(e->events, m->sched, sizeof(e->events));
}

/*
 * An event may arrive before the next instruction, and use all of the main stack below
 * RSP - or all of it, if RSP is elsewhere - and every IST stack, and whatever memory the
 * entry uses that is no stack.  What it may overwrite is lost at once.
 */
static void free_stack(struct machine *m, u64 *used)
{
	struct region *main = main_stack(m);
	u64 rsp = m->r[REG_RSP], limit = rsp >= main->bottom && rsp <= main->top ? rsp : main->top;

	if (limit > *used)
		poison(m, *used, limit);
	*used = limit;
	while (m->nstray) {
		u64 va = m->stray[--m->nstray];

		poison(m, va, va + 8);
	}
}

/* Follow one committed state until the first context runs again. */
static int follow(struct search *s, struct committed *c)
{
	struct machine *m = s->m;
	u64 used = c->r[REG_RSP];
	int st;

	m->nstray = 0;

	for (u32 i = 0; i < NSLOTS; i++) {
		m->r[i] = c->r[i];
		m->rnode[i] = c->rnode[i];
		m->rscope[i] = m->scope->id;
	}
	m->root = m->im->user_root_bit && (m->r[REG_CR3] & m->im->user_root_bit);
	memcpy(m->inst, c->inst, sizeof(m->inst));
	m->ninst = c->ninst;
	memcpy(m->sched, c->sched, sizeof(m->sched));
	m->nsched = c->nsched;
	m->steps = c->steps;
	m->early = false;
	for (u32 i = 1; i < m->ninst; i++)
		m->inst[i].abandoned = 1;
	for (u32 i = 0; i < m->im->nregions; i++) {
		struct region *reg = &m->regions[i];

		if (reg->kind == IST_STACK)
			poison(m, reg->bottom, reg->top);
		else if (reg->kind == MAIN_STACK)
			poison(m, reg->bottom, m->r[REG_RSP]);
	}
	for (u32 i = 0; i < c->nwords; i++) {
		int p = find_page(m, c->va[i]);
		u32 w = (u32)p * WORDS + (u32)(c->va[i] & (PAGE - 1)) / 8;

		log_word(m, w + NSLOTS);
		m->mem[w] = c->val[i];
		m->mnode[w] = c->node[i];
		m->mscope[w] = m->scope->id;
	}
	for (u32 steps = 0; steps < m->im->max_steps; steps++) {
		const struct insn *in = insn_at(m, m->r[REG_RIP]);

		m->boundaries++;
		emit(s, in && in->handler);
		if (in && in->handler) {
			st = at_handler(m, in->handler - 1);
		} else {
			st = step(m);
		}
		if (st == DONE)
			return GOES_ON;
		if (st != GOES_ON)
			return st;
		free_stack(m, &used);
	}
	m->pc = m->r[REG_RIP];
	return report(m, P_ENDLESS, m->pc, NSLOTS, m->im->max_steps, 0);
}

/* Would the constraint hold, had the interrupted RSP been `rsp`? */
static bool holds_at(struct machine *m, const struct constraint *c, u64 from, u64 rsp)
{
	struct region *main = main_stack(m);
	u64 now = evaluate_with(m, c->node, REG_RSP, rsp), was = c->val;

	if (c->kind == VALUE)
		return now == was;
	if (now == was)
		return rsp == from;
	/* all bytes that were used, here and there */
	return main && now - was == rsp - from &&
	       was + (u64)c->low >= main->bottom && was + (u64)c->high < main->top &&
	       now + (u64)c->low >= main->bottom && now + (u64)c->high < main->top;
}

/*
 * For which instructions in place of the interrupted one, for which RSPs on the same
 * stack, and for which values of the key registers does the result hold?  They are
 * answered apart; a constraint on more than one of them holds for what was explored and
 * nothing else.
 */
static void coverage(struct search *s, struct scope *root, const u64 *regs)
{
	struct machine *m = s->m;
	struct region *reg = region_of(m, regs[REG_RSP]), *main = main_stack(m);
	u64 from = regs[REG_RSP];
	u32 words = reg ? (u32)((reg->top - reg->bottom) / 8) : 0;

	memset(s->covers, 1, m->im->ninsns);
	memset(s->covers_rsp, 1, MAX_STACK_WORDS);
	memset(s->covers_key, 1, sizeof(s->covers_key));
	words = words < MAX_STACK_WORDS ? words : MAX_STACK_WORDS;
	for (u32 i = 0; i < root->ncon; i++) {
		const struct constraint *c = &root->con[i];
		struct relevance rel = { .s = s, .where = c->where };
		bool mixed;

		leaves(m, c->node, check_leaf, &rel);
		mixed = rel.rip + rel.rsp + __builtin_popcount(rel.keys) > 1;
		for (u32 k = 0; rel.rip && k < m->im->ninsns; k++)
			if (mixed ? m->im->insns[k].va != regs[REG_RIP] :
			    evaluate_with(m, c->node, REG_RIP, m->im->insns[k].va) != c->val)
				s->covers[k] = 0;
		for (u32 k = 0; rel.rsp && k < words; k++)
			if (mixed ? reg->bottom + 8 * k != from : !holds_at(m, c, from, reg->bottom + 8 * k))
				s->covers_rsp[k] = 0;
		for (u32 j = 0; j < NKEY; j++)
			for (u32 k = 0; rel.keys >> j & 1 && k < s->ncandidates[j]; k++)
				if (mixed ? s->candidate[j][k] != regs[key_slot[j]] :
				    evaluate_with(m, c->node, key_slot[j], s->candidate[j][k]) != c->val)
					s->covers_key[j][k] = 0;
	}
	for (u32 k = 0; k < words; k++) {
		u64 rsp = reg->bottom + 8 * k;

		if (m->absolute && reg == main && rsp != from)
			s->covers_rsp[k] = 0;
		for (u32 n = 1; n < 32; n++)
			if (m->refused_levels >> n & 1 && !no_room_for(m, m->no_stack ? 0 : rsp, n))
				s->covers_rsp[k] = 0;
	}
}

/*
 * All nestings from the context `regs` with `vector` first.
 * Returns GOES_ON or FOUND; details are in the machine and the search.
 */
int certify(struct search *s, const u64 *regs, u32 vector, u32 expect_df, u32 no_stack)
{
	struct machine *m = s->m;
	struct scope *root = malloc(sizeof(*root));
	u64 count = 0;
	int st;

	if (!root)
		return FOUND;
	m->shadow = true;
	m->nlog = 0;
	m->nnodes = 1;
	memset(m->node_hash, 0, m->hash_size * sizeof(*m->node_hash));
	memset(m->rscope, 0, sizeof(m->rscope));
	memset(m->depended, 0, (NSLOTS + m->im->npages * WORDS) * sizeof(*m->depended));
	memset(m->version, 0, (NSLOTS + m->im->npages * WORDS) * sizeof(*m->version));
	m->clock = 1;
	memset(m->mscope, 0, m->im->npages * WORDS * sizeof(*m->mscope));
	s->nmemo = s->ncommitted = 0;
	s->broken_slot = NSLOTS;
	m->expect_df = expect_df;
	m->no_stack = no_stack;
	m->worst_commit = 0;
	m->absolute = false;
	m->refused_levels = 0;
	m->next_scope = 2;
	root->id = 1;
	root->ncon = root->ncop = 0;
	root->parent = NULL;
	m->scope = m->outer = root;
	begin(m, regs);

	st = push_event(m, vector);
	if (st == GOES_ON)
		st = explore(s, vector + 1, &count);
	else if (st == DOUBLE_FAULT)
		st = GOES_ON;
	m->interleavings += count;
	rollback(m, 0);
	/* where the states do not end, one of those at hand may well show why */
	if (st == FOUND && m->overflow && !m->nfindings)
		st = GOES_ON;
	for (u32 i = 0; st == GOES_ON && i < s->ncommitted; i++) {
		begin(m, regs);
		st = follow(s, &s->committed[i]);
		rollback(m, 0);
	}
	if (st == GOES_ON && expect_df && s->ncommitted)
		st = report(m, P_NO_DOUBLE_FAULT, regs[REG_RIP], NSLOTS, 0, 0);
	coverage(s, root, regs);
	if (no_stack || regs[REG_CS] & 3)
		for (u32 i = 0; i < NFREE; i++)
			free_cells(s, root, free_slot[i], &s->free[i]);
	for (u32 i = 0; i < s->nmemo; i++) {
		free(s->memo[i].con);
		free(s->memo[i].cop);
	}
	begin(m, regs);
	free(root);
	return st == GOES_ON ? GOES_ON : FOUND;
}
