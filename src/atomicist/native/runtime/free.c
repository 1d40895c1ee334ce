/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * For which values of a register that a user chooses freely does a result hold?
 *
 * The constraints of a certificate compare such a register, and sums with it, with constants.
 * So the line of its values falls into cells, at whose borders alone a constraint can change:
 * the cells' first values are listed, each with whether all constraints hold there.
 * A constraint of another shape makes the answer `unknown`, which is no answer.
 */
#include "search.h"

struct cells {
	struct machine *m;
	u32 slot;
	u64 *value;
	u32 n;
	bool unknown;
};

static void cut(struct cells *c, u64 value)
{
	for (u32 i = 0; i < c->n; i++)
		if (c->value[i] == value)
			return;
	if (c->n == MAX_CELLS)
		c->unknown = true;
	else
		c->value[c->n++] = value;
}

static bool reads(struct machine *m, u32 node, u32 slot)
{
	const struct node *n = &m->nodes[node];

	if (!node)
		return false;
	if (n->code == LEAF)
		return n->a == slot;
	return reads(m, n->a, slot) || reads(m, n->b, slot);
}

static u64 value_of(struct machine *m, u32 node, u64 constant)
{
	return node ? m->nodes[node].val : constant;
}

/* A constant plus or minus the register. */
struct linear {
	u64 plus;
	bool minus;
};

static bool linear(struct cells *c, u32 node, struct linear *l)
{
	const struct node *n = &c->m->nodes[node];
	bool in_a, in_b;

	if (!node || n->size != 8)
		return false;
	if (n->code == LEAF) {
		*l = (struct linear){ 0, false };
		return n->a == c->slot;
	}
	if (n->code != CODE_INT_ADD && n->code != CODE_INT_SUB)
		return false;
	in_a = reads(c->m, n->a, c->slot);
	in_b = reads(c->m, n->b, c->slot);
	if (in_a == in_b || !linear(c, in_a ? n->a : n->b, l))
		return false;
	if (n->code == CODE_INT_ADD) {
		l->plus += in_a ? value_of(c->m, n->b, n->vb) : value_of(c->m, n->a, n->va);
	} else if (in_a) {
		l->plus -= value_of(c->m, n->b, n->vb);
	} else {
		l->plus = value_of(c->m, n->a, n->va) - l->plus;
		l->minus = !l->minus;
	}
	return true;
}

/* The upper bits of such a sum, without the lowest `*low`, and nothing above them cut off. */
static bool upper(struct cells *c, u32 node, struct linear *l, u32 *low)
{
	const struct node *n = &c->m->nodes[node];
	u32 dropped;

	if (!node)
		return false;
	if (n->code == CODE_INT_AND && n->a == n->b)	/* TEST of a register with itself */
		return upper(c, n->a, l, low);
	*low = 0;
	if (linear(c, node, l))
		return true;
	if (n->b || (n->code != CODE_INT_RIGHT && n->code != CODE_SUBPIECE))
		return false;
	dropped = n->code == CODE_SUBPIECE ? 8 * n->vb : n->vb;
	if (n->vb >= 64 || !upper(c, n->a, l, low) || *low + dropped >= 64)
		return false;
	*low += dropped;
	return *low + 8 * n->size >= 64;
}

/* Something changes where the expression becomes `value`. */
static void cut_where(struct cells *c, const struct linear *l, u64 value)
{
	if (l->minus) {
		cut(c, l->plus - value);
		cut(c, l->plus - value + 1);
	} else {
		cut(c, value - l->plus);
	}
}

/* Where can it, compared with `with` in any way, change its answer? */
static void compared_with(struct cells *c, const struct linear *l, u64 with)
{
	const u64 top = 1ull << 63;

	cut_where(c, l, 0);
	cut_where(c, l, top);
	cut_where(c, l, with);
	cut_where(c, l, with + 1);
	cut_where(c, l, with + top);
	cut_where(c, l, with + 1 + top);
	cut_where(c, l, -with);
}

/* Add the borders of a truth value. */
static void borders(struct cells *c, u32 node)
{
	struct machine *m = c->m;
	const struct node *n = &m->nodes[node];
	struct linear l;
	u32 low;

	if (!reads(m, node, c->slot))
		return;
	switch (n->code) {
	case CODE_BOOL_NEGATE: case CODE_BOOL_AND: case CODE_BOOL_OR: case CODE_BOOL_XOR:
	case CODE_COPY: case CODE_INT_ZEXT:
		borders(c, n->a);
		borders(c, n->b);
		return;
	case CODE_INT_EQUAL: case CODE_INT_NOTEQUAL: case CODE_INT_LESS: case CODE_INT_LESSEQUAL:
	case CODE_INT_SLESS: case CODE_INT_SLESSEQUAL: case CODE_INT_CARRY: case CODE_INT_SCARRY:
	case CODE_INT_SBORROW:
		for (u32 side = 0; side < 2; side++) {
			const u32 here = side ? n->b : n->a, other = side ? n->a : n->b;
			const u64 with = value_of(m, other, side ? n->va : n->vb);

			if (!reads(m, here, c->slot))
				continue;
			if (reads(m, other, c->slot)) {
				c->unknown = true;
			} else if (linear(c, here, &l)) {
				compared_with(c, &l, with);
			} else if (m->nodes[here].code == CODE_INT_SRIGHT && !m->nodes[here].b &&
				   linear(c, m->nodes[here].a, &l)) {
				cut_where(c, &l, with << m->nodes[here].vb);
				cut_where(c, &l, (with + 1) << m->nodes[here].vb);
			} else if (n->code != CODE_INT_CARRY && n->code != CODE_INT_SCARRY &&
				   n->code != CODE_INT_SBORROW && upper(c, here, &l, &low)) {
				cut_where(c, &l, 0);
				cut_where(c, &l, 1ull << 63);
				cut_where(c, &l, with << low);
				cut_where(c, &l, (with + 1) << low);
			} else if (m->nodes[here].size == 1) {
				borders(c, here);
			} else {
				c->unknown = true;
			}
		}
		return;
	default:
		if (n->size != 1 || n->code == LEAF) {
			c->unknown = true;
			return;
		}
		/* of bytes that are truth values, one byte */
		borders(c, n->a);
		borders(c, n->b);
	}
}

/* The cells of `slot`; false if they cannot be told. */
bool free_cells(struct search *s, struct scope *root, u32 slot, struct free_register *f)
{
	struct cells c = { .m = s->m, .slot = slot, .value = f->value };
	struct linear l;

	cut(&c, 0);
	for (u32 i = 0; i < root->ncon; i++) {
		const struct constraint *con = &root->con[i];

		if (!reads(s->m, con->node, slot))
			continue;
		if (con->kind != VALUE)
			c.unknown = true;
		else if (linear(&c, con->node, &l))
			compared_with(&c, &l, con->val);
		else
			borders(&c, con->node);
	}
	f->n = c.n;
	f->unknown = c.unknown;
	for (u32 k = 0; k < c.n; k++) {
		f->holds[k] = 1;
		for (u32 i = 0; i < root->ncon && f->holds[k]; i++)
			if (reads(s->m, root->con[i].node, slot) &&
			    evaluate_with(s->m, root->con[i].node, slot, f->value[k]) != root->con[i].val)
				f->holds[k] = 0;
	}
	return !c.unknown;
}
