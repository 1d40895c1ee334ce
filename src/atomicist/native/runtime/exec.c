/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Executes IR.  One interpreter for instructions and for the microcode of
 * delivery, with or without following dependences (`shadow`).
 */
#include "model.h"

static inline u32 natural(u32 slot)
{
	return slot_size[slot];
}

static inline u128 get(struct machine *m, const struct var *v)
{
	u64 x;

	if (v->space == SPACE_CONST)
		return v->val;
	if (v->space == SPACE_TMP)
		return v->size >= 16 ? m->tmp[v->val].v :
		       v->size > 8 ? m->tmp[v->val].v & (((u128)1 << (8 * v->size)) - 1) :
		       (u128)((u64)m->tmp[v->val].v & MASK(v->size));
	x = m->r[v->val >> 3] >> (8 * (v->val & 7));
	return x & MASK(v->size);
}

/* The same of up to 8 bytes. */
static inline u64 get_u64(const struct machine *m, const struct var *v)
{
	if (v->space == SPACE_CONST)
		return v->val;
	if (v->space == SPACE_TMP)
		return (u64)m->tmp[v->val].v & MASK(v->size);
	return m->r[v->val >> 3] >> (8 * (v->val & 7)) & MASK(v->size);
}

static u32 get_node(struct machine *m, const struct var *v)
{
	u32 n, slot = (u32)(v->val >> 3), sub = (u32)(v->val & 7), size;

	if (v->space == SPACE_CONST)
		return 0;
	if (v->space == SPACE_TMP) {
		n = m->tmp[v->val].node;
		size = n & LAZY ? m->lazies[n & ~LAZY].size : m->nodes[n].size;
		if (n && v->size < size)
			n = later(m, CODE_SUBPIECE, v->size, n, (u64)m->tmp[v->val].v, size, 0, 0, 4, (u64)get(m, v));
		return n;
	}
	n = place_node(m, slot);
	if (!n || (!sub && v->size == natural(slot)))
		return n;
	/* the part that put() merged last into an older value is just that part */
	if (!sub && n & LAZY && m->lazies[n & ~LAZY].code == CODE_INT_OR && m->lazies[n & ~LAZY].a) {
		const struct lazy *now = &m->lazies[n & ~LAZY];
		u32 old = now->a;
		bool part = old & LAZY ?
			m->lazies[old & ~LAZY].code == CODE_INT_AND && !m->lazies[old & ~LAZY].b &&
			!(m->lazies[old & ~LAZY].vb & MASK(v->size)) :
			m->nodes[old].code == CODE_INT_AND && !m->nodes[old].b &&
			!(m->nodes[old].vb & MASK(v->size));

		if (part)
			n = now->b;
	} else if (!sub && !(n & LAZY) && m->nodes[n].code == CODE_INT_OR && m->nodes[n].a) {
		const struct node *old = &m->nodes[m->nodes[n].a];

		if (old->code == CODE_INT_AND && !old->b && !(old->vb & MASK(v->size)))
			n = m->nodes[n].b;
	}
	if (n)
		n = later(m, CODE_SUBPIECE, v->size, n, m->r[slot], 8, 0, sub, 4, (u64)get(m, v));
	return n;
}

static void set_reg_node(struct machine *m, u32 slot, u32 node)
{
	m->rnode[slot] = node;
	m->rscope[slot] = m->scope->id;
	touch(m, slot);
}

static void put(struct machine *m, const struct var *v, u128 val, u32 node)
{
	u32 slot = (u32)(v->val >> 3), sub = (u32)(v->val & 7);
	u64 keep, rest, part;

	if (v->space == SPACE_TMP) {
		m->tmp[v->val].v = val;
		m->tmp[v->val].node = node;
		return;
	}
	if (sub == 0 && v->size == natural(slot)) {
		m->r[slot] = (u64)val & MASK(v->size);
		if (m->shadow)
			set_reg_node(m, slot, node);
		return;
	}
	keep = ~(MASK(v->size) << (8 * sub));
	rest = m->r[slot] & keep;
	part = ((u64)val & MASK(v->size)) << (8 * sub);
	if (m->shadow) {
		/* (old & keep) | part, in a form that get_node() can take apart again */
		u32 old = place_node(m, slot);

		old = later(m, CODE_INT_AND, 8, old, m->r[slot], 8, 0, keep, 8, rest);
		if (sub)
			node = later(m, CODE_INT_LEFT, 8, node, (u64)val & MASK(v->size), 8, 0, 8 * sub, 1, part);
		if (old || rest || sub)
			node = later(m, CODE_INT_OR, 8, old, rest, 8, node, part, 8, rest | part);
		set_reg_node(m, slot, node);
	}
	m->r[slot] = rest | part;
}

/* Where a refused access is explained: which page-table rule said no. */
static int refuse(struct machine *m, u64 va, u32 access, bool write)
{
	int i = find_page(m, va);
	u32 number = VECTOR_PF, why;

	if ((u64)((int64_t)va >> 47) + 1 > 1) {
		number = access == ACCESS_STACK || access == ACCESS_SYSTEM ? VECTOR_SS : VECTOR_GP;
		why = P_NON_CANONICAL;
	} else if (i < 0) {
		why = P_UNMAPPED;
	} else if (!(m->pages[i].flags & (m->root ? USER_ROOT : KERNEL_ROOT))) {
		why = P_NOT_IN_USER_TABLES;
	} else if (m->pages[i].flags & USER_PAGE) {
		why = P_USER_MEMORY;
	} else if (write && !(m->pages[i].flags & WRITABLE)) {
		why = P_READ_ONLY;
	} else if (write) {
		return report(m, P_LIVE_OVERWRITTEN, va, NSLOTS, 0, 0);
	} else {
		why = P_UNMAPPED;
	}
	return fault(m, number, why, va);
}

static inline int translate(struct machine *m, u64 va, u32 size, bool write, u32 access, u64 **p, u32 *loc)
{
	int i = find_page(m, va);
	u32 off = (u32)(va & (PAGE - 1));

	if (access == ACCESS_GS && m->r[REG_GSBASE] != m->im->kernel_gsbase)
		return report(m, P_FOREIGN_GSBASE, va, REG_GSBASE, m->im->kernel_gsbase, m->r[REG_GSBASE]);
	if (i < 0 || off + size > (write ? m->pages[i].wlimit : m->pages[i].rlimit)[m->root])
		return refuse(m, va, access, write);
	if (write && m->early && !(m->pages[i].flags & SCRATCH))
		return report(m, P_WRITE_OUTSIDE, va, NSLOTS, 0, 0);
	if (!m->shadow && off < m->known[i].floor)
		materialize(m, (u32)i, off);
	*loc = (u32)i * WORDS + off / 8;
	*p = &m->mem[*loc];
	*loc += NSLOTS;
	return GOES_ON;
}

static int load(struct machine *m, const struct op *op)
{
	u64 va = get_u64(m, &op->in[0]), *p, val;
	u32 loc, size = op->out.size, sub = (u32)(va & 7), node = 0;
	int st;

	if (m->shadow)
		require_address(m, get_node(m, &op->in[0]), va);
	if (sub + size > 8) {
		u64 hi, *q;
		u32 hloc, part = 8 - sub;

		if (size > 8)
			return report(m, P_UNMODELLED, va, NSLOTS, 0, size);
		st = translate(m, va, part, false, (u32)op->in[1].val, &p, &loc);
		if (st == GOES_ON)
			st = translate(m, va + part, size - part, false, (u32)op->in[1].val, &q, &hloc);
		if (st != GOES_ON)
			return st;
		hi = *q;
		val = (*p >> (8 * sub) | hi << (8 * part)) & MASK(size);
		if (m->shadow) {
			require(m, leaf(m, loc), *p);
			require(m, leaf(m, hloc), hi);
		}
	} else {
		st = translate(m, va, size, false, (u32)op->in[1].val, &p, &loc);
		if (st != GOES_ON)
			return st;
		val = *p >> (8 * sub) & MASK(size);
		if (m->shadow) {
			node = place_node(m, loc);
			if (node && size < 8)
				node = later(m, CODE_SUBPIECE, size, node, *p, 8, 0, sub, 4, val);
		}
	}
	put(m, &op->out, val, node);
	return GOES_ON;
}

static int store_part(struct machine *m, u64 va, u64 val, u32 size, u32 access, u32 node)
{
	u64 *p;
	u32 loc, sub = (u32)(va & 7);
	int st = translate(m, va, size, true, access, &p, &loc);

	if (st != GOES_ON)
		return st;
	if (m->shadow && m->pages[(loc - NSLOTS) / WORDS].flags & CONSTANT &&
	    (*p >> (8 * sub) & MASK(size)) != val)
		return report(m, P_CONSTANT_CHANGED, va, NSLOTS, *p >> (8 * sub) & MASK(size), val);
	if (m->shadow && !m->early && !(m->pages[(loc - NSLOTS) / WORDS].flags & CONSTANT)) {
		struct region *reg = region_of(m, va);
		bool kept = reg && (reg->kind >= TASK_STACK || (reg->kind == MAIN_STACK && va >= m->r[REG_RSP]));

		if (!kept && m->nstray < 4)
			m->stray[m->nstray++] = va & ~7ull;
	}
	if (size == 8) {
		if (!log_word(m, loc))
			return FOUND;
		*p = val;
		if (m->shadow) {
			m->mnode[loc - NSLOTS] = node;
			m->mscope[loc - NSLOTS] = m->scope->id;
		}
		return GOES_ON;
	}
	if (m->shadow) {
		require(m, leaf(m, loc), *p);
		require(m, node, val);
	}
	if (!log_word(m, loc))
		return FOUND;
	*p &= ~(MASK(size) << (8 * sub));
	*p |= (val & MASK(size)) << (8 * sub);
	if (m->shadow) {
		m->mnode[loc - NSLOTS] = 0;
		m->mscope[loc - NSLOTS] = m->scope->id;
	}
	return GOES_ON;
}

static int store(struct machine *m, const struct op *op)
{
	u64 va = (u64)get(m, &op->in[0]), val = (u64)get(m, &op->in[1]);
	u32 size = op->in[1].size, sub = (u32)(va & 7), node = 0, access = (u32)op->in[2].val;
	int st;

	if (m->shadow) {
		require_address(m, get_node(m, &op->in[0]), va);
		node = get_node(m, &op->in[1]);
	}
	if (size > 8)
		return report(m, P_UNMODELLED, va, NSLOTS, 0, size);
	if (sub + size <= 8)
		return store_part(m, va, val, size, access, node);
	if (m->shadow)
		require(m, node, val);
	st = store_part(m, va, val & MASK(8 - sub), 8 - sub, access, 0);
	if (st != GOES_ON)
		return st;
	return store_part(m, va + 8 - sub, val >> (8 * (8 - sub)), size - (8 - sub), access, 0);
}

static u128 wide(struct machine *m, const struct op *op)
{
	u128 a = get(m, &op->in[0]), b = op->in[1].size ? get(m, &op->in[1]) : 0;
	u32 n;

	switch (op->code) {
	case CODE_COPY: case CODE_INT_ZEXT: return a;
	case CODE_INT_SEXT:
		n = 128 - 8 * op->in[0].size;
		return (u128)((__int128)(a << n) >> n);
	case CODE_INT_ADD: return a + b;
	case CODE_INT_SUB: return a - b;
	case CODE_INT_MULT: return a * b;
	case CODE_INT_AND: return a & b;
	case CODE_INT_OR: return a | b;
	case CODE_INT_XOR: return a ^ b;
	case CODE_INT_LEFT: return b < 128 ? a << b : 0;
	case CODE_INT_RIGHT: return b < 128 ? a >> b : 0;
	case CODE_INT_EQUAL: return a == b;
	case CODE_INT_NOTEQUAL: return a != b;
	case CODE_SUBPIECE: return a >> (8 * b);
	default: return ~(u128)0;
	}
}

static int pure(struct machine *m, const struct op *op)
{
	u32 na = 0, nb = 0, node = 0, two = op->in[1].size != 0;
	u64 a, b;
	u128 val;

	if (m->shadow) {
		na = op->in[0].space != SPACE_CONST ? get_node(m, &op->in[0]) : 0;
		nb = two && op->in[1].space != SPACE_CONST ? get_node(m, &op->in[1]) : 0;
	}
	if (op->out.size > 8 || op->in[0].size > 8) {
		val = wide(m, op);
		require(m, na, (u64)get(m, &op->in[0]));
		if (two)
			require(m, nb, (u64)get(m, &op->in[1]));
		put(m, &op->out, op->out.size < 8 ? val & MASK(op->out.size) : val, 0);
		return GOES_ON;
	}
	a = get_u64(m, &op->in[0]);
	b = two ? get_u64(m, &op->in[1]) : 0;
	val = op->code == CODE_COPY || op->code == CODE_INT_ZEXT ? a :
	      apply(op->code, a, op->in[0].size, b, op->in[1].size, op->out.size);
	if (na || nb) {
		bool same = (op->code == CODE_INT_XOR || op->code == CODE_INT_SUB) && na == nb;

		if (!same)
			node = later(m, op->code, op->out.size, na, a, op->in[0].size, nb, b, op->in[1].size,
				     (u64)val);
	}
	put(m, &op->out, val, node);
	return GOES_ON;
}

static int taken(struct machine *m, const struct var *v, bool *yes)
{
	u64 val = get_u64(m, v);

	*yes = val != 0;
	if (m->shadow && v->space != SPACE_CONST)
		require(m, get_node(m, v), val);
	return GOES_ON;
}

static int run_ops(struct machine *m, u32 first, u32 count, u64 *next)
{
	const struct op *ops = m->im->ops + first;

	for (u32 i = 0; i < count; i++) {
		const struct op *op = &ops[i];
		bool yes;
		int st = GOES_ON;

		switch (op->code) {
		case CODE_LOAD: st = load(m, op); break;
		case CODE_STORE: st = store(m, op); break;
		case CODE_BRANCH: *next = op->in[0].val; return GOES_ON;
		case CODE_CBRANCH:
			taken(m, &op->in[1], &yes);
			if (yes) {
				*next = op->in[0].val;
				return GOES_ON;
			}
			break;
		case CODE_BRANCHIND:
			*next = (u64)get(m, &op->in[0]);
			/* where IRET resumes is judged by the observer, not by a branch */
			if (m->shadow && !m->note)
				require(m, get_node(m, &op->in[0]), *next);
			return GOES_ON;
		case CODE_JUMP: i = (u32)op->in[0].val - 1; break;
		case CODE_CJUMP:
			taken(m, &op->in[1], &yes);
			if (yes)
				i = (u32)op->in[0].val - 1;
			break;
		case CODE_FAULT:
			taken(m, &op->in[2], &yes);
			if (yes)
				return fault(m, (u32)op->in[0].val, P_FAULT, (u64)get(m, &op->in[1]));
			break;
		case CODE_UNKNOWN:
			taken(m, &op->in[0], &yes);
			if (yes) {
				st = report(m, P_UNMODELLED, m->pc, NSLOTS, 0, 0);
				m->findings[m->nfindings ? m->nfindings - 1 : 0].text = op->text;
				return st;
			}
			break;
		case CODE_PREDICTED:
			taken(m, &op->in[0], &yes);
			if (yes) {
				st = report(m, P_PREDICTED, m->pc, REG_EXPOSED, 0, m->r[REG_EXPOSED]);
				m->findings[m->nfindings ? m->nfindings - 1 : 0].text = op->text;
				return st;
			}
			break;
		case CODE_NOTE: m->note |= 1u << op->in[0].val; break;
		default: st = pure(m, op);
		}
		if (st != GOES_ON)
			return st;
	}
	return GOES_ON;
}

static void update_root(struct machine *m)
{
	m->root = m->im->user_root_bit && (m->r[REG_CR3] & m->im->user_root_bit);
}

/* Execute the instruction at RIP. */
int step(struct machine *m)
{
	u64 pc = m->r[REG_RIP], next;
	const struct insn *in = insn_at(m, pc);
	const u32 wanted = EXECUTABLE | (m->root ? USER_ROOT : KERNEL_ROOT);
	int st, i;

	m->pc = pc;
	i = find_page(m, pc);
	if (i < 0 || (m->pages[i].flags & (wanted | USER_PAGE)) != wanted)
		return fault(m, VECTOR_PF, P_FETCH, pc);
	if (!in)
		return report(m, P_NO_CODE, pc, NSLOTS, 0, 0);
	next = pc + in->size;
	m->note = 0;
	m->guest_insns++;
	m->steps++;
	/* LEA and calls name RIP as a constant: the slot is set for delivery */
	st = run_ops(m, in->first, in->count, &next);
	m->ran[in - m->im->insns] |= next == pc + in->size ? 3 : 5;
	if (st != GOES_ON)
		return st;
	if (!(m->note & (1u << NOTE_IRET | 1u << NOTE_SYSRET))) {
		m->r[REG_RIP] = next;
		if (m->shadow) {
			touch(m, REG_RIP);
			m->rnode[REG_RIP] = 0;
			m->rscope[REG_RIP] = m->scope->id;
		}
	}
	if (m->r[REG_SHADOW]) {
		if (m->shadow)
			set_reg_node(m, REG_SHADOW, later(m, CODE_INT_SUB, natural(REG_SHADOW), place_node(m, REG_SHADOW),
							  m->r[REG_SHADOW], natural(REG_SHADOW), 0, 1,
							  natural(REG_SHADOW), m->r[REG_SHADOW] - 1));
		m->r[REG_SHADOW]--;
	}
	if (m->note) {
		update_root(m);
		if (m->shadow && m->note & 1u << NOTE_WRITE_CR3 && m->im->user_root_bit)
			require(m, mk_node(m, CODE_INT_AND, 8, leaf(m, REG_CR3), 0, 8, 0,
					   m->im->user_root_bit, 8, m->r[REG_CR3] & m->im->user_root_bit),
				m->r[REG_CR3] & m->im->user_root_bit);
		if (m->note & (1u << NOTE_IRET | 1u << NOTE_SYSRET))
			return at_return(m);
	}
	return GOES_ON;
}

/* Deliver an event of the search (vector < NVEC) or a fault through its gate. */
int deliver(struct machine *m, u32 index, u64 error)
{
	const struct gate *g = &m->im->gates[index];
	u64 next = 0;

	if (m->code && !m->shadow && m->code->deliver(m, index, error) == GOES_ON)
		return GOES_ON;
	m->note = 0;
	m->tmp[0].v = error;
	m->tmp[0].node = 0;
	m->pc = m->r[REG_RIP];
	if (m->shadow && m->im->user_root_bit)
		require(m, mk_node(m, CODE_INT_AND, 8, leaf(m, REG_CR3), 0, 8, 0, m->im->user_root_bit, 8,
				   m->r[REG_CR3] & m->im->user_root_bit),
			m->r[REG_CR3] & m->im->user_root_bit);
	update_root(m);
	return run_ops(m, g->first, g->count, &next);
}
