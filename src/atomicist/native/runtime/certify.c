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

/*
 * Constraints that compare RIP alone with a constant hold for a whole range of RIPs: an
 * instruction further on there is nothing to ask.  Anything else keeps `low`, `high`.
 */
static bool rip_range(struct machine *m, u32 node, u64 val, u64 *low, u64 *high)
{
	const struct node *n = &m->nodes[node];
	const struct node *rip = &m->nodes[n->a ? n->a : n->b];

	if (n->code != CODE_INT_LESS || !n->a == !n->b || n->sa != 8 || n->sb != 8 || rip->code != LEAF ||
	    rip->a != REG_RIP)
		return false;
	if (n->a) {
		/* RIP < vb, or RIP >= vb */
		if (val && n->vb < *high)
			*high = n->vb;
		else if (!val && n->vb > *low)
			*low = n->vb;
	} else if (n->va != ~0ull) {
		/* RIP > va, or RIP <= va */
		if (val && n->va + 1 > *low)
			*low = n->va + 1;
		else if (!val && n->va + 1 < *high)
			*high = n->va + 1;
	} else {
		return false;
	}
	return true;
}

static u32 dep_head(u32 loc)
{
	return loc % (DEP_HEADS - 2);
}

#define MAX_GAP 256		/* writes after which all is asked again */
#define HEAD_RIP_RANGE (DEP_HEADS - 1)	/* what `rip_low`, `rip_high` answer for */
#define HEAD_WIDE (DEP_HEADS - 2)	/* what reads too many places to list them */

/* Index a memo by the places that it reads. */
static bool index_memo(struct machine *m, struct memo *memo)
{
	u32 n = 0, at;

	for (u32 i = 0; i < memo->ncon; i++)
		n += memo->con[i].nleaves > MAX_LEAVES ? 1 : memo->con[i].nleaves;
	n += memo->ncop;
	memo->dep = n < NO_DEP ? malloc(n * sizeof(*memo->dep) + 1) : NULL;
	if (!memo->dep)
		return false;
	memset(memo->head, 0xff, sizeof(memo->head));
	memo->rip_low = 0;
	memo->rip_high = ~0ull;
	n = 0;
	for (u32 i = 0; i < memo->ncon; i++) {
		const struct constraint *c = &memo->con[i];
		bool wide = c->nleaves > MAX_LEAVES;

		for (u32 k = 0; k < (wide ? 1 : c->nleaves); k++) {
			at = wide ? HEAD_WIDE :
			     rip_range(m, c->node, c->val, &memo->rip_low, &memo->rip_high) ? HEAD_RIP_RANGE :
			     dep_head(c->leaf[k]);
			memo->dep[n] = (struct dep){ wide ? ~0u : c->leaf[k], (u16)i, memo->head[at] };
			memo->head[at] = (u16)n++;
		}
	}
	for (u32 i = 0; i < memo->ncop; i++) {
		at = dep_head(memo->cop[i].loc);
		memo->dep[n] = (struct dep){ memo->cop[i].loc, (u16)(memo->ncon + i), memo->head[at] };
		memo->head[at] = (u16)n++;
	}
	return true;
}

static void ask(struct search *s, const struct memo *memo, u32 head, u32 loc)
{
	for (u32 d = memo->head[head]; d != NO_DEP; d = memo->dep[d].next) {
		bool known = memo->dep[d].loc != loc;

		for (u32 i = 0; !known && i < s->nitems; i++)
			known = s->items[i] == memo->dep[d].item;
		if (!known)
			s->items[s->nitems++] = memo->dep[d].item;
	}
}

/*
 * What of `memo` is to be asked again, because a place that it reads was written since
 * the state was last known to be in its class: `items`.  False: that is all of it.
 */
static bool changed(struct search *s, const struct memo *memo)
{
	struct machine *m = s->m;
	u32 since = memo->clock;

	if (memo->scope != m->scope->id || m->clock - since > MAX_GAP || m->clock >= m->capjournal)
		return false;
	s->nitems = 0;
	for (u32 t = since + 1; t <= m->clock; t++) {
		u32 loc = m->journal[t];

		/* written more often than once: asked for the last time; or taken back */
		if (m->version[loc] != t)
			continue;
		ask(s, memo, dep_head(loc), loc);
		if (loc == REG_RIP && (m->r[REG_RIP] < memo->rip_low || m->r[REG_RIP] >= memo->rip_high ||
				       m->rscope[REG_RIP] != m->scope->id || m->rnode[REG_RIP]))
			ask(s, memo, HEAD_RIP_RANGE, loc);
	}
	ask(s, memo, HEAD_WIDE, ~0u);
	return true;
}

static bool same_copied(struct machine *m, struct copied *c)
{
	u32 node = leaf(m, c->loc);

	if (node == c->last)
		return true;
	if (to_root(m, node) != c->root)
		return false;
	c->last = node;
	return true;
}

/* Is the present state in the class of `memo`?  `part`: only `items` are in question. */
static bool same(struct search *s, struct memo *memo, bool part)
{
	struct machine *m = s->m;

	if (part) {
		for (u32 i = 0; i < s->nitems; i++) {
			u32 item = s->items[i];

			if (item >= memo->ncon ?
			    value_at(m, memo->cop[item - memo->ncon].loc) != memo->cop[item - memo->ncon].val :
			    evaluate_now(m, memo->con[item].node) != memo->con[item].val)
				return false;
		}
		for (u32 i = 0; i < s->nitems; i++)
			if (s->items[i] >= memo->ncon && !same_copied(m, &memo->cop[s->items[i] - memo->ncon]))
				return false;
		return true;
	}
	/* what told two states apart will do so again */
	if (memo->ncon && evaluate_now(m, memo->con[memo->tells].node) != memo->con[memo->tells].val)
		return false;
	for (u32 i = 0; i < memo->ncop; i++)
		if (value_at(m, memo->cop[i].loc) != memo->cop[i].val)
			return false;
	for (u32 i = 0; i < memo->ncon; i++) {
		if (evaluate_now(m, memo->con[i].node) != memo->con[i].val) {
			memo->tells = i;
			return false;
		}
	}
	for (u32 i = 0; i < memo->ncop; i++)
		if (!same_copied(m, &memo->cop[i]))
			return false;
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

static void inherit_item(struct search *s, struct memo *memo, u32 item)
{
	struct machine *m = s->m;
	u64 val;

	if (item >= memo->ncon) {
		if (m->scope->parent)
			depend(m, leaf(m, memo->cop[item - memo->ncon].loc));
		return;
	}
	if (inherited(m, &memo->con[item]))
		return;
	m->pc = memo->con[item].where;
	constrain(m, memo->con[item].kind, substitute_now(m, memo->con[item].node, &val), memo->con[item].val,
		  memo->con[item].low, memo->con[item].high);
}

/* The state is in the class of `memo` here and now. */
static void is_known(struct machine *m, struct memo *memo)
{
	memo->scope = m->scope->id;
	memo->clock = m->clock;
}

/* The present scope inherits what the remembered one depended on. */
static void inherit(struct search *s, struct memo *memo, bool part)
{
	struct machine *m = s->m;
	u64 pc = m->pc;

	if (part)
		for (u32 i = 0; i < s->nitems; i++)
			inherit_item(s, memo, s->items[i]);
	else
		for (u32 i = 0; i < memo->ncon + memo->ncop; i++)
			inherit_item(s, memo, i);
	m->pc = pc;
	is_known(m, memo);
}

static u32 memo_head(u32 chain, u32 vector)
{
	return (chain * 8 + vector) * 0x9e3779b1u >> 22;
}

static void remember(struct search *s, struct scope *sc, u32 chain, u32 vector, u64 count)
{
	struct memo *memo = &s->memo[s->nmemo];
	u32 *head = &s->memo_head[memo_head(chain, vector)];

	if (s->nmemo == MAX_MEMO) {
		s->m->overflow = __LINE__;
		return;
	}
	memo->chain = chain;
	memo->vector = vector;
	memo->count = count;
	memo->tells = 0;
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
	if (!index_memo(s->m, memo)) {
		s->m->overflow = __LINE__;
		return;
	}
	is_known(s->m, memo);
	memo->next = *head;
	*head = ++s->nmemo;
}

static bool is_arithmetic_flag(u32 slot)
{
	return slot == REG_CF || slot == REG_PF || slot == REG_AF || slot == REG_ZF || slot == REG_SF ||
	       slot == REG_OF;
}

/*
 * What the entry leaves behind, whatever the way to it: the registers and live words at a commit, but
 * for arithmetic flags, of which a commit says nothing; or a deliberate double fault, and apart from
 * that for which reason. Two images that leave the same behind on every interleaving differ in
 * nothing that is used.
 */
static void note_end(struct search *s, struct ends *ends, u64 end)
{
	for (u32 i = 0; i < ends->n; i++)
		if (ends->of[i] == end)
			return;
	if (ends->n == MAX_ENDS)
		s->m->overflow = __LINE__;
	else
		ends->of[ends->n++] = end;
}

static void note_double_fault(struct search *s, u32 chain)
{
	const struct machine *m = s->m;
	const u64 end = mix(mix(1, chain), m->r[REG_RDI]);

	note_end(s, &s->ends, end);
	note_end(s, &s->told, mix(mix(end, m->pc), m->r[REG_RAX]));
}

/*
 * Where a start context is in the middle of a sequence that must not be resumed, the return
 * address is given with it, as its RIP is: it is no memory that may hold anything.  Where an
 * entry runs such a sequence itself, it is not; then false, and the search is not closed.
 */
static bool given_words(struct search *s)
{
	struct machine *m = s->m;
	const u64 rsp = m->r[REG_RSP];
	struct region *reg = region_of(m, rsp);

	if (!unfinished(insn_at(m, m->r[REG_RIP])) || m->r[REG_CS] & 3)
		return true;
	if (m->ninst || !reg || reg->kind != TASK_STACK) {
		s->broken_slot = NSLOTS + 1;	/* memory */
		s->broken_where = m->r[REG_RIP];
		return false;
	}
	for (u64 va = rsp; va < rsp + 16 && va < reg->top; va += 8) {
		const int p = find_page(m, va);
		const u32 w = (u32)p * WORDS + (u32)(va & (PAGE - 1)) / 8;

		m->mnode[w] = 0;
		m->mscope[w] = m->scope->id;
	}
	return true;
}

/* Deliver `vector` here and explore all that can follow before a commit. */
static int try_event(struct search *s, u32 chain, u32 vector, u64 *count)
{
	struct machine *m = s->m;
	u64 regs[NSLOTS];
	u32 rnode[NSLOTS], rscope[NSLOTS], version[NSLOTS], mark = m->nlog;
	u32 ninst = m->ninst, nsched = m->nsched, steps = m->steps, nlazies = m->nlazies;
	u32 clock = m->clock, *head = &s->memo_head[memo_head(chain, vector)];
	struct scope *parent = m->scope, *sc;
	u64 mine = 0;
	int st;

	/* which of these contexts are alike is not known */
	if (!given_words(s))
		return GOES_ON;
	for (u32 *at = head; s->mode != BRUTE && *at; at = &s->memo[*at - 1].next) {
		struct memo *memo = &s->memo[*at - 1];
		bool part, known;

		if (memo->chain != chain || memo->vector != vector)
			continue;
		part = changed(s, memo);
		known = same(s, memo, part);
		if (s->mode == CHECKED && part && known != same(s, memo, false))
			m->overflow = __LINE__;
		if (!known)
			continue;
		inherit(s, memo, part);
		s->hits++;
		*count += memo->count;
		if (at != head) {
			u32 here = *at;

			*at = memo->next;
			memo->next = *head;
			*head = here;
		}
		return GOES_ON;
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
	if (st == DOUBLE_FAULT) {
		note_double_fault(s, chain * 8 + vector + 1);
		mine++, st = GOES_ON;
	}

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
	m->nlazies = nlazies;
	/* what was written since is taken back, with its versions */
	m->clock = clock;
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

/* Did the commit make the interrupted context void?  Nothing can return to it then. */
static bool is_void(struct machine *m, const struct instance *in)
{
	const struct region *reg = region_of(m, in->x[REG_RSP]);

	return reg && reg->kind == IST_STACK;
}

/* RSP is on the main stack: the IST stacks are said to be free. */
static int at_commit(struct search *s, u32 chain)
{
	struct machine *m = s->m;
	struct region *reg = region_of(m, m->r[REG_RSP]);
	struct committed *c = &s->committed[s->ncommitted];
	u32 steps = m->steps, n = 0;
	u64 top, h, end = chain;
	int st;

	m->pc = m->r[REG_RIP];
	if (!reg || reg->kind != MAIN_STACK)
		return report(m, P_CLAIM, m->pc, REG_RSP, 0, m->r[REG_RSP]);
	st = check_committed(m);
	if (st != GOES_ON)
		return st;
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
		if (!is_arithmetic_flag(i))
			end = mix(end, m->r[i]);
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
		end = mix(end, c->val[n]);
		n++;
	}
	note_end(s, &s->ends, end);
	h = mix(h, m->ninst);
	for (const struct instance *in = m->inst; in < m->inst + m->ninst; in++) {
		h = mix(mix(mix(h, in->vector | in->handled << 8 | in->abandoned << 9 | in->in_entry << 10),
			    in->live_region), in->live_region == ~0u ? 0 : in->old_live);
		/* what a return to it is known by, if it still exists: its registers are then compared */
		if (in == m->inst || !is_void(m, in))
			h = mix(mix(mix(h, in->x[REG_RIP]), in->x[REG_RSP]), in->x[REG_CS]);
	}
	for (u32 v = 0; v < NVEC; v++)
		h = mix(h, m->owed[v]);
	h = mix(h, m->spare);
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
	u32 absent = 0;		/* or under way: bit set of vectors */
	int st;

	for (u32 v = 0; v < NVEC; v++)
		absent |= m->im->gates[v].present ? 0 : 1u << v;
	for (u32 c = chain; c; c /= 8)
		absent |= 1u << (c % 8 - 1);
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
			if (absent >> v & 1 || (m->r[REG_SHADOW] && v != EVENT_MC))
				continue;
			count_event(m, m->offered, in, v);
			st = try_event(s, chain, v, count);
			if (st != GOES_ON)
				return st;
			/* what is no longer remembered would be explored again and again, which BRUTE does anyway */
			if (m->overflow && s->mode != BRUTE)
				return FOUND;
		}
		st = step(m);
		/* who returns before the commit gives up what it was to save */
		if (st != FOUND && m->note & (1u << NOTE_IRET | 1u << NOTE_SYSRET))
			return report(m, P_CLAIM, m->pc, REG_RIP, 0, m->r[REG_RIP]);
		if (st == DOUBLE_FAULT) {
			note_double_fault(s, chain);
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
 * RSP - or all of it, if RSP is elsewhere - and every IST stack, the entry stack below RSP
 * if it is there, and whatever memory the entry uses that is no stack.  What it may
 * overwrite is lost at once.
 */
static void free_stack(struct machine *m, u64 *used)
{
	struct region *main = main_stack(m), *entry = m->entry;
	u64 rsp = m->r[REG_RSP], limit = rsp >= main->bottom && rsp <= main->top ? rsp : main->top;

	if (limit > *used)
		poison(m, *used, limit);
	*used = limit;
	if (entry && rsp >= entry->bottom && rsp <= entry->top)
		poison(m, entry->bottom, rsp);
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
	m->nlazies = 0;

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
	for (u32 i = 1; i < m->ninst; i++) {
		m->inst[i].abandoned = 1;
		if (is_void(m, &m->inst[i]))
			memset(m->inst[i].x, 0, sizeof(m->inst[i].x));
	}
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

		if (!log_word(m, w + NSLOTS))
			return FOUND;
		m->mem[w] = c->val[i];
		m->mnode[w] = c->node[i];
		m->mscope[w] = m->scope->id;
	}
	for (u32 steps = 0; steps < m->im->max_steps; steps++) {
		const struct insn *in = insn_at(m, m->r[REG_RIP]);

		m->boundaries++;
		emit(s, in && in->handler);
		st = in && in->place & COMMITTED ? check_committed(m) : GOES_ON;
		if (st != GOES_ON) {
			/* judged below */
		} else if (in && in->handler) {
			st = at_handler(m, in->handler - 1);
		} else {
			st = step(m);
		}
		if (st == DONE || (st == DOUBLE_FAULT && m->ignored))
			return GOES_ON;
		/* too late: what it was to keep has been given up */
		if (st == DOUBLE_FAULT)
			return report(m, P_DOUBLE_FAULT, m->pc, NSLOTS, 0, 0);
		if (st != GOES_ON)
			return st;
		free_stack(m, &used);
	}
	m->pc = m->r[REG_RIP];
	return report(m, P_ENDLESS, m->pc, NSLOTS, m->im->max_steps, 0);
}

/*
 * Would the constraint hold, had the interrupted RSP been `rsp`?  What runs on the main stack or
 * on the entry stack may run the same further up or down.
 */
static bool holds_at(struct machine *m, const struct constraint *c, u64 from, u64 rsp)
{
	struct region *reg = region_of(m, from);
	u64 now = evaluate_with(m, c->node, REG_RSP, rsp), was = c->val;

	if (c->kind == VALUE)
		return now == was;
	if (now == was)
		return rsp == from;
	/* all bytes that were used, here and there */
	return reg && (reg == m->main || reg == m->entry) && now - was == rsp - from &&
	       was + (u64)c->low >= reg->bottom && was + (u64)c->high < reg->top &&
	       now + (u64)c->low >= reg->bottom && now + (u64)c->high < reg->top;
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
	struct region *reg = region_of(m, regs[REG_RSP]);
	const struct insn *here;
	u64 from = regs[REG_RSP];
	u32 words = reg ? (u32)((reg->top - reg->bottom) / 8) : 0;

	memset(s->covers, 1, m->im->ninsns);
	memset(s->covers_rsp, 1, MAX_STACK_WORDS);
	memset(s->covers_key, 1, sizeof(s->covers_key));
	/* within a sequence that must not be resumed another context is to be resumed */
	here = insn_at(m, regs[REG_RIP]);
	for (u32 k = 0; k < m->im->ninsns; k++)
		if (&m->im->insns[k] != here && (unfinished(here) || unfinished(&m->im->insns[k])))
			s->covers[k] = 0;
	words = words < MAX_STACK_WORDS ? words : MAX_STACK_WORDS;
	for (u32 i = 0; i < root->ncon; i++) {
		const struct constraint *c = &root->con[i];
		struct relevance rel = { .s = s, .where = c->where };
		u64 low = 0, high = ~0ull;
		bool mixed, range;

		leaves(m, c->node, check_leaf, &rel);
		/* by an address that does not move along with RSP */
		if (c->kind == ADDRESS && !rel.rsp)
			used_at(m, c->val + (u64)c->low, c->val + (u64)c->high);
		mixed = rel.rip + rel.rsp + __builtin_popcount(rel.keys) > 1;
		range = rel.rip && !mixed && rip_range(m, c->node, c->val, &low, &high);
		for (u32 k = 0; rel.rip && k < m->im->ninsns; k++) {
			u64 va = m->im->insns[k].va;

			if (range ? va < low || va >= high : mixed ? va != regs[REG_RIP] :
			    evaluate_with(m, c->node, REG_RIP, va) != c->val)
				s->covers[k] = 0;
		}
		for (u32 k = 0; rel.rsp && k < words; k++)
			if (mixed ? reg->bottom + 8 * k != from : !holds_at(m, c, from, reg->bottom + 8 * k))
				s->covers_rsp[k] = 0;
		/* in the SYSCALL gap RSP is a number like any other */
		for (u32 j = 0; j < NKEY; j++)
			for (u32 k = 0; m->no_stack && key_slot[j] == REG_RSP && rel.rsp && k < s->ncandidates[j]; k++)
				if (s->candidate[j][k] != from &&
				    (mixed || evaluate_with(m, c->node, REG_RSP, s->candidate[j][k]) != c->val))
					s->covers_key[j][k] = 0;
		for (u32 j = 0; j < NKEY; j++)
			for (u32 k = 0; rel.keys >> j & 1 && k < s->ncandidates[j]; k++)
				if (mixed ? s->candidate[j][k] != regs[key_slot[j]] :
				    evaluate_with(m, c->node, key_slot[j], s->candidate[j][k]) != c->val)
					s->covers_key[j][k] = 0;
	}
	for (u32 k = 0; k < words; k++) {
		u64 rsp = reg->bottom + 8 * k;

		if ((m->absolute >> reg->kind & 1 || unfinished(here)) && rsp != from)
			s->covers_rsp[k] = 0;
		for (u32 n = 1; n < 32; n++)
			if (m->refused_levels >> n & 1 && !no_room_for(m, m->no_stack ? 0 : rsp, n))
				s->covers_rsp[k] = 0;
	}
}

struct differing {
	const u64 *here, *there;
	u32 loc;		/* that it reads first */
	bool any, mixed, differ;
};

static void compare_leaf(void *arg, u32 loc)
{
	struct differing *d = arg;

	d->mixed |= d->any && loc != d->loc;
	d->any = true;
	d->loc = loc;
	d->differ |= loc < NSLOTS && d->here[loc] != d->there[loc];
}

static bool user_root(const struct machine *m, const u64 *regs)
{
	return regs[REG_CR3] & m->im->user_root_bit;
}

/*
 * Does what was certified last hold for the context `regs` too?  It has to be of the same kind: the
 * same page table, the same parts of the stacks in use, at a place that means the same.  A
 * constraint that reads more than one place does not count as met if one of them differs: so
 * what holds for one value of a free register (free.c) holds for it here too.
 */
bool holds_for(struct search *s, const u64 *regs)
{
	struct machine *m = s->m;
	const struct scope *root = s->root;
	const u64 *here = s->certified;
	const struct region *reg = region_of(m, here[REG_RSP]);
	const struct insn *in = insn_at(m, here[REG_RIP]), *other = insn_at(m, regs[REG_RIP]);
	const u32 alike[] = { REG_CS, REG_SHADOW, REG_NMI_BLOCKED, REG_MCG_STATUS };
	bool on_stack = !(here[REG_CS] & 3) && !m->no_stack, moved = on_stack && here[REG_RSP] != regs[REG_RSP];

	for (u32 i = 0; i < sizeof(alike) / sizeof(*alike); i++)
		if (here[alike[i]] != regs[alike[i]])
			return false;
	if (!root || user_root(m, here) != user_root(m, regs) || (in ? in->place : 0) != (other ? other->place : 0) ||
	    (on_stack && region_of(m, regs[REG_RSP]) != reg) ||
	    (moved && (!reg || m->absolute >> reg->kind & 1)))
		return false;
	for (u32 n = 1; n < 32; n++)
		if (moved && m->refused_levels >> n & 1 && !no_room_for(m, regs[REG_RSP], n))
			return false;
	for (u32 i = 0; i < root->ncon; i++) {
		const struct constraint *c = &root->con[i];
		struct differing d = { .here = here, .there = regs };

		leaves(m, c->node, compare_leaf, &d);
		if (!d.differ)
			continue;
		if (d.mixed)
			return false;
		if (c->kind == ADDRESS && moved ? !holds_at(m, c, here[REG_RSP], regs[REG_RSP]) :
		    evaluate_in(m, c->node, regs) != c->val)
			return false;
	}
	return true;
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
	bool known;
	int st;

	free(s->root);
	s->root = NULL;
	if (!root) {
		m->overflow = __LINE__;
		return FOUND;
	}
	m->shadow = true;
	m->nlog = 0;
	m->nnodes = 1;
	m->nlazies = 0;
	m->hash_shift = HASH_SHIFT_FEW;
	memset(m->node_hash, 0, (HASH_MASK(m) + 1ull) * sizeof(*m->node_hash));
	memset(m->rscope, 0, sizeof(m->rscope));
	memset(m->depended, 0, (NSLOTS + m->im->npages * WORDS) * sizeof(*m->depended));
	memset(m->version, 0, (NSLOTS + m->im->npages * WORDS) * sizeof(*m->version));
	m->clock = 1;
	memset(m->mscope, 0, m->im->npages * WORDS * sizeof(*m->mscope));
	s->nmemo = s->ncommitted = s->ends.n = s->told.n = 0;
	memset(s->memo_head, 0, sizeof(s->memo_head));
	s->broken_slot = NSLOTS;
	m->expect_df = expect_df;
	m->no_stack = no_stack;
	m->worst_commit = 0;
	m->absolute = 0;
	m->refused_levels = 0;
	m->next_scope = 2;
	root->id = 1;
	root->ncon = root->ncop = 0;
	root->parent = NULL;
	m->scope = m->outer = root;
	begin(m, regs);

	known = given_words(s);
	st = known ? push_event(m, vector) : GOES_ON;
	if (st == GOES_ON && known)
		st = explore(s, vector + 1, &count);
	if (st == DOUBLE_FAULT)
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
	/* of a property that is ignored */
	if (st == DOUBLE_FAULT)
		st = GOES_ON;
	coverage(s, root, regs);
	if (no_stack || regs[REG_CS] & 3)
		for (u32 i = 0; i < NFREE; i++)
			free_cells(s, root, free_slot[i], &s->free[i]);
	for (u32 i = 0; i < s->nmemo; i++) {
		free(s->memo[i].con);
		free(s->memo[i].cop);
		free(s->memo[i].dep);
	}
	begin(m, regs);
	s->root = root;
	memcpy(s->certified, regs, sizeof(s->certified));
	return st == GOES_ON ? GOES_ON : FOUND;
}
