/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Dependences: what a run's course and result depend on.
 *
 * A *scope* begins where an event is about to be delivered.  Inside it every
 * place (register or word) that was not yet written is a LEAF: "what this
 * place held when the scope began".  Values computed from leaves are nodes;
 * a node of 0 means a constant.  Where the course of the run depends on a
 * value - a branch, an address, a check - `require` records the constraint
 * that the node has the value it had.  Another state that satisfies all the
 * constraints of a scope takes the same course, and leaves behind the same
 * functions of what it began with: this is what makes it sound to explore the
 * scope once for all of them.
 *
 * Scopes nest.  A constraint of an inner scope is carried to the outer one by
 * replacing each leaf by what the outer scope had in that place (`to_parent`).
 */
#include "model.h"

static u64 sext(u64 v, u32 size)
{
	u32 n = 64 - 8 * size;

	return (u64)((int64_t)(v << n) >> n);
}

/* The pure operations on up to 8 bytes; atomicist.isa.arithmetic defines them. */
u64 apply(u32 code, u64 a, u32 sa, u64 b, u32 sb, u32 size)
{
	u64 v;

	switch (code) {
	case CODE_COPY: case CODE_INT_ZEXT: v = a; break;
	case CODE_INT_ADD: v = a + b; break;
	case CODE_INT_SUB: v = a - b; break;
	case CODE_INT_MULT: v = a * b; break;
	case CODE_INT_AND: case CODE_BOOL_AND: v = a & b; break;
	case CODE_INT_OR: case CODE_BOOL_OR: v = a | b; break;
	case CODE_INT_XOR: case CODE_BOOL_XOR: v = a ^ b; break;
	case CODE_INT_LEFT: v = b < 8 * sa ? a << b : 0; break;
	case CODE_INT_RIGHT: v = b < 8 * sa ? a >> b : 0; break;
	case CODE_INT_SRIGHT: v = (u64)((int64_t)sext(a, sa) >> (b < 8 * sa ? b : 8 * sa - 1)); break;
	case CODE_INT_EQUAL: v = a == b; break;
	case CODE_INT_NOTEQUAL: v = a != b; break;
	case CODE_INT_LESS: v = a < b; break;
	case CODE_INT_LESSEQUAL: v = a <= b; break;
	case CODE_INT_SLESS: v = (int64_t)sext(a, sa) < (int64_t)sext(b, sb); break;
	case CODE_INT_SLESSEQUAL: v = (int64_t)sext(a, sa) <= (int64_t)sext(b, sb); break;
	case CODE_INT_CARRY: v = ((a + b) & MASK(sa)) < a; break;
	case CODE_INT_SCARRY: v = ((~(a ^ b) & (a ^ (a + b))) >> (8 * sa - 1)) & 1; break;
	case CODE_INT_SBORROW: v = (((a ^ b) & (a ^ (a - b))) >> (8 * sa - 1)) & 1; break;
	case CODE_INT_SEXT: v = sext(a, sa); break;
	case CODE_INT_NEGATE: v = ~a; break;
	case CODE_INT_2COMP: v = -a; break;
	case CODE_BOOL_NEGATE: v = a ^ 1; break;
	case CODE_PIECE: v = a << (8 * sb) | b; break;
	case CODE_SUBPIECE: v = b < 8 ? a >> (8 * b) : 0; break;
	case CODE_POPCOUNT: v = (u64)__builtin_popcountll(a); break;
	case CODE_LZCOUNT: v = a ? (u64)__builtin_clzll(a) - (64 - 8 * sa) : 8 * sa; break;
	default: __builtin_trap();
	}
	return v & MASK(size);
}

static u32 tag_of(const struct node *n)
{
	u64 h = n->val * 0x9e3779b97f4a7c15ull ^ (n->va ^ n->vb << 32 ^ n->vb >> 32) * 0xd6e8feb86659fd93ull ^
		((u64)n->a << 32 | n->b) * 0xff51afd7ed558ccdull ^
		((u64)n->scope << 32 | n->code) * 0xc2b2ae3d27d4eb4full;

	return (u32)(h >> 32);
}

/* A low bit of a product depends on few bits of its factors: the high ones choose the slot. */
static u32 slot_of(const struct machine *m, u32 tag)
{
	return tag >> m->hash_shift;
}

/* The table grows with its use, so that it stays in the caches where nodes are few. */
static void widen(struct machine *m)
{
	m->hash_shift--;
	memset(m->node_hash, 0, (HASH_MASK(m) + 1ull) * sizeof(*m->node_hash));
	for (u32 k = 1; k <= m->nnodes; k++) {
		u32 tag = tag_of(&m->nodes[k]), i = slot_of(m, tag);

		while (m->node_hash[i])
			i = (i + 1) & HASH_MASK(m);
		m->node_hash[i] = (u64)tag << 32 | k;
	}
}

static u32 intern(struct machine *m, const struct node *n)
{
	u32 tag = tag_of(n), i = slot_of(m, tag);

	while (m->node_hash[i]) {
		u64 there = m->node_hash[i];

		if (there >> 32 == tag) {
			const struct node *o = &m->nodes[(u32)there];

			if (o->code == n->code && o->a == n->a && o->b == n->b && o->va == n->va &&
			    o->vb == n->vb && o->val == n->val && o->scope == n->scope && o->size == n->size)
				return (u32)there;
		}
		i = (i + 1) & HASH_MASK(m);
	}
	if (m->nnodes == m->capnodes) {
		m->overflow = __LINE__;
		return 0;
	}
	m->nodes[m->nnodes] = *n;
	m->node_hash[i] = (u64)tag << 32 | m->nnodes;
	if (m->nnodes * 2 > HASH_MASK(m))
		widen(m);
	return m->nnodes++;
}

static u32 *node_place(struct machine *m, u32 loc, u32 **scope)
{
	if (loc < NSLOTS) {
		*scope = &m->rscope[loc];
		return &m->rnode[loc];
	}
	*scope = &m->mscope[loc - NSLOTS];
	return &m->mnode[loc - NSLOTS];
}

u64 value_at(struct machine *m, u32 loc)
{
	return loc < NSLOTS ? m->r[loc] : m->mem[loc - NSLOTS];
}

/* What `loc` holds, as a node of scope `s`, which has not written it. */
static u32 leaf_in(struct machine *m, struct scope *s, u32 loc)
{
	struct node n = { .code = LEAF, .a = loc, .val = value_at(m, loc), .scope = s->id, .size = 8 };
	u32 *scope, *node = node_place(m, loc, &scope);

	if (*scope == s->id)
		return *node = force(m, *node);
	if (s->parent)
		n.b = leaf_in(m, s->parent, loc);
	return intern(m, &n);
}

/* What `loc` holds in the present scope; it may not be a node yet. */
u32 place_node(struct machine *m, u32 loc)
{
	u32 *scope, *node = node_place(m, loc, &scope);
	u32 n;

	if (*scope == m->scope->id)
		return *node;
	/* what never changes is no dependence */
	if (loc >= NSLOTS && m->pages[(loc - NSLOTS) / WORDS].flags & CONSTANT)
		return 0;
	n = leaf_in(m, m->scope, loc);
	if (loc >= NSLOTS) {
		u32 version = m->version[loc];

		/* that the place is looked at does not change it */
		if (!log_word(m, loc))
			return n;
		m->version[loc] = version;
	}
	*node = n;
	*scope = m->scope->id;
	return n;
}

/* The same as a node. */
u32 leaf(struct machine *m, u32 loc)
{
	u32 *scope, *node = node_place(m, loc, &scope);
	u32 n = place_node(m, loc);

	return n & LAZY ? *node = force(m, n) : n;
}

struct value {
	u32 node;
	u64 val;
};

/*
 * The low `size` bytes of a value.  Compilers compute in 32 bits with flags that
 * live in a byte of an otherwise unused register; truncating the operands rather
 * than the result keeps what is not used out of the dependences.
 */
static struct value truncate(struct machine *m, struct value v, u32 size)
{
	struct node n;
	struct value a, b;

	v.val &= MASK(size);
	if (!v.node)
		return v;
	n = m->nodes[v.node];
	if (n.size <= size)
		return v;
	a = (struct value){ n.a, n.a && n.code != LEAF ? m->nodes[n.a].val : n.va };
	b = (struct value){ n.b, n.b && n.code != LEAF ? m->nodes[n.b].val : n.vb };
	switch (n.code) {
	case CODE_SUBPIECE:
		if (!n.b && n.vb == 0)
			return truncate(m, a, size);
		break;
	case CODE_INT_LEFT:
		if (!n.b && n.vb >= 8 * size)
			return (struct value){ 0, 0 };
		break;
	case CODE_INT_AND:
		if ((!n.b && !(n.vb & MASK(size))) || (!n.a && !(n.va & MASK(size))))
			return (struct value){ 0, 0 };
		/* fall through */
	case CODE_INT_OR: case CODE_INT_XOR: case CODE_INT_ADD: case CODE_INT_SUB:
		a = truncate(m, a, size);
		b = truncate(m, b, size);
		v.node = mk_node(m, n.code, size, a.node, a.val, size, b.node, b.val, size, v.val);
		return v;
	default:
		break;
	}
	n = (struct node){ .code = CODE_SUBPIECE, .a = v.node, .val = v.val, .scope = m->scope->id,
			   .size = (u8)size, .sa = 8, .sb = 4 };
	v.node = intern(m, &n);
	return v;
}

/* A half of a word: what its bits are, lower (0) or upper (1). */
struct half {
	u32 node;
	u32 of;
};

/* The lower or upper half of `node`, as it was before it was moved about. */
static struct half half_of(const struct machine *m, u32 node, u32 of)
{
	const struct node *n = &m->nodes[node];

	if (!node || !n->a || n->b)
		return (struct half){ node, of };
	if (n->code == CODE_SUBPIECE && n->size == 4 && !of && (n->vb == 0 || n->vb == 4))
		return half_of(m, n->a, (u32)n->vb / 4);
	if (n->code == CODE_INT_AND && (u32)(n->vb >> 32 * of) == ~0u)
		return half_of(m, n->a, of);
	if (n->code == CODE_INT_RIGHT && n->size == 8 && n->vb == 32 && !of)
		return half_of(m, n->a, 1);
	if (n->code == CODE_INT_LEFT && n->size == 8 && n->vb == 32 && of)
		return half_of(m, n->a, 0);
	return (struct half){ node, of };
}

static bool is_zero_half(const struct machine *m, u32 node, u32 of)
{
	const struct node *n = &m->nodes[node];

	return (of && n->size <= 4) ||
	       (!n->b && ((n->code == CODE_INT_AND && !(u32)(n->vb >> 32 * of)) ||
			  (n->code == (of ? CODE_INT_RIGHT : CODE_INT_LEFT) && n->vb == 32)));
}

/*
 * The word whose halves `low` and `high` are, each with zeros in place of the other; or 0.
 * RDMSR takes it apart, code puts it together, and WRMSR takes halves again.
 */
static u32 both_halves(const struct machine *m, u32 low, u32 high)
{
	struct half l, h;

	if (!low || !high || !is_zero_half(m, low, 1) || !is_zero_half(m, high, 0))
		return 0;
	l = half_of(m, low, 0);
	h = half_of(m, high, 1);
	return l.node == h.node && !l.of && h.of && m->nodes[l.node].size == 8 ? l.node : 0;
}

u32 mk_node(struct machine *m, u32 code, u32 size, u32 a, u64 va, u32 sa,
	    u32 b, u64 vb, u32 sb, u64 val)
{
	struct node n = { .code = code, .val = val, .size = (u8)size, .sa = (u8)sa, .sb = (u8)sb,
			  .a = a, .b = b, .va = a ? 0 : va, .vb = b ? 0 : vb, .scope = m->scope->id };

	if (!a && !b)
		return 0;
	if (code == CODE_COPY || code == CODE_INT_ZEXT)
		return a;
	if (code == CODE_SUBPIECE && !b && vb == 0)
		return truncate(m, (struct value){ a, val }, size).node;
	if ((code == CODE_INT_OR || code == CODE_INT_XOR || code == CODE_INT_ADD) && (a ? !b && !vb : !va))
		return a ? a : b;
	if (code == CODE_INT_OR && size == 8) {
		u32 whole = both_halves(m, a, b);

		if (!whole)
			whole = both_halves(m, b, a);
		if (whole)
			return whole;
	}
	return intern(m, &n);
}

/* A value for which a node is made when it is asked for, as mk_node() would now. */
u32 later(struct machine *m, u32 code, u32 size, u32 a, u64 va, u32 sa,
	  u32 b, u64 vb, u32 sb, u64 val)
{
	struct lazy *l;
	u32 da, db, depth;

	if (!a && !b)
		return 0;
	if (code == CODE_COPY || code == CODE_INT_ZEXT)
		return a;
	if ((code == CODE_INT_OR || code == CODE_INT_XOR || code == CODE_INT_ADD) && (a ? !b && !vb : !va))
		return a ? a : b;
	da = a & LAZY ? m->lazies[a & ~LAZY].depth + 1u : 0;
	db = b & LAZY ? m->lazies[b & ~LAZY].depth + 1u : 0;
	depth = da > db ? da : db;
	if (depth > MAX_LAZY_DEPTH || m->nlazies == m->caplazies) {
		a = force(m, a);
		b = force(m, b);
		if ((code == CODE_INT_XOR || code == CODE_INT_SUB) && a && a == b)
			return 0;
		return mk_node(m, code, size, a, va, sa, b, vb, sb, val);
	}
	l = &m->lazies[m->nlazies];
	l->val = val;
	l->va = va;
	l->vb = vb;
	l->a = a;
	l->b = b;
	l->scope = m->scope->id;
	l->node = 0;
	l->code = (u16)code;
	l->depth = (u16)depth;
	l->size = (u8)size;
	l->sa = (u8)sa;
	l->sb = (u8)sb;
	return m->nlazies++ | LAZY;
}

/* The node of what may not be one yet; 0: it is a constant after all. */
u32 force(struct machine *m, u32 node)
{
	struct scope *present = m->scope, *s = present;
	struct lazy *l;
	u32 a, b;

	if (!(node & LAZY))
		return node;
	l = &m->lazies[node & ~LAZY];
	if (l->node)
		return l->node - 1;
	a = force(m, l->a);
	b = force(m, l->b);
	/* it belongs to the scope in which it was computed, one of those around this */
	while (s->id != l->scope)
		s = s->parent;
	m->scope = s;
	/* x ^ x, x - x */
	node = (l->code == CODE_INT_XOR || l->code == CODE_INT_SUB) && a && a == b ? 0 :
	       mk_node(m, l->code, l->size, a, l->va, l->sa, b, l->vb, l->sb, l->val);
	m->scope = present;
	l->node = node + 1;
	return node;
}

/* The course of the run depends on `node` having the value `val`. */
void require(struct machine *m, u32 node, u64 val)
{
	constrain(m, VALUE, node, val, 0, 0);
}

/* The word at `va` was used, or is where a stack pointer was met. */
void require_address(struct machine *m, u32 node, u64 va)
{
	constrain(m, ADDRESS, node, va, 0, 7);
}

/* The result is right only if the first context's `slot` held `val`. */
void require_origin(struct machine *m, u32 slot, u64 val)
{
	struct node n = { .code = LEAF, .a = slot, .val = val, .scope = 1, .size = 8 };
	struct scope *s = m->scope;

	m->scope = m->outer;
	require(m, intern(m, &n), val);
	m->scope = s;
}

/* Bytes `low` to `high` were used, at an address that is not computed from the interrupted RSP. */
void used_at(struct machine *m, u64 low, u64 high)
{
	for (u32 i = 0; i < m->im->nregions; i++)
		if (m->regions[i].kind >= MAIN_STACK && high >= m->regions[i].bottom && low < m->regions[i].top)
			m->absolute |= 1u << m->regions[i].kind;
}

void constrain(struct machine *m, u32 kind, u32 node, u64 val, int64_t low, int64_t high)
{
	struct scope *s = m->scope;
	u64 whole = val;

	if (kind == ADDRESS && !node)
		used_at(m, val + (u64)low, val + (u64)high);
	/* of an address on a stack only the distance is stripped: it need not be a node */
	while (node & LAZY) {
		const struct lazy *l = &m->lazies[node & ~LAZY];

		if (l->code == CODE_INT_ADD && !l->b) {
			val = (val - l->vb) & MASK(l->size);
			node = l->a;
		} else if (l->code == CODE_INT_ADD && !l->a) {
			val = (val - l->va) & MASK(l->size);
			node = l->b;
		} else if (l->code == CODE_INT_SUB && !l->b) {
			val = (val + l->vb) & MASK(l->size);
			node = l->a;
		} else {
			node = force(m, node);
		}
	}
	while (node) {
		const struct node *n = &m->nodes[node];

		if (n->code == CODE_INT_ADD && !n->b) {
			val = (val - n->vb) & MASK(n->size);
			node = n->a;
		} else if (n->code == CODE_INT_ADD && !n->a) {
			val = (val - n->va) & MASK(n->size);
			node = n->b;
		} else if (n->code == CODE_INT_SUB && !n->b) {
			val = (val + n->vb) & MASK(n->size);
			node = n->a;
		} else if (n->code == CODE_BOOL_NEGATE) {
			val ^= 1;
			node = n->a;
		} else {
			break;
		}
	}
	low += (int64_t)(whole - val);
	high += (int64_t)(whole - val);
	if (!node)
		return;
	for (u32 i = 0; i < s->ncon; i++)
		if (s->con[i].node == node && s->con[i].val == val && s->con[i].kind == kind) {
			s->con[i].low = low < s->con[i].low ? low : s->con[i].low;
			s->con[i].high = high > s->con[i].high ? high : s->con[i].high;
			return;
		}
	if (s->ncon == MAX_CONSTRAINTS) {
		m->overflow = __LINE__;
		return;
	}
	s->con[s->ncon++] = (struct constraint){
		.kind = kind, .node = node, .val = val, .low = low, .high = high, .where = m->pc,
	};
}

static void copy_leaf(void *arg, u32 loc)
{
	struct machine *m = arg;
	struct scope *s = m->scope;

	if (m->depended[loc] == s->id)
		return;
	m->depended[loc] = s->id;
	for (u32 i = 0; i < s->ncop; i++)
		if (s->cop[i].loc == loc)
			return;
	if (s->ncop == MAX_COPIED) {
		m->overflow = __LINE__;
		return;
	}
	s->cop[s->ncop++] = (struct copied){ .loc = loc };
}

/* The result of the scope depends on the leaves of `node`. */
void depend(struct machine *m, u32 node)
{
	leaves(m, node, copy_leaf, m);
}

void leaves(struct machine *m, u32 node, void (*fn)(void *, u32), void *arg)
{
	const struct node *n = &m->nodes[node];

	if (!node)
		return;
	if (n->code == LEAF) {
		fn(arg, n->a);
		return;
	}
	leaves(m, n->a, fn, arg);
	leaves(m, n->b, fn, arg);
}

static u32 rebuild(struct machine *m, u32 node, u32 (*of_leaf)(struct machine *, const struct node *))
{
	const struct node *n = &m->nodes[node];
	u32 a, b;
	struct node copy = *n;

	if (!node)
		return 0;
	if (n->code == LEAF)
		return of_leaf(m, n);
	a = rebuild(m, copy.a, of_leaf);
	b = rebuild(m, copy.b, of_leaf);
	return mk_node(m, copy.code, copy.size,
		       a, copy.a ? m->nodes[copy.a].val : copy.va, copy.sa,
		       b, copy.b ? m->nodes[copy.b].val : copy.vb, copy.sb, copy.val);
}

static u32 parent_leaf(struct machine *m, const struct node *n)
{
	(void)m;
	return n->b;
}

/* The same value as a node of the parent scope. Call with m->scope = parent. */
u32 to_parent(struct machine *m, u32 node)
{
	return rebuild(m, node, parent_leaf);
}

static u32 root_leaf(struct machine *m, const struct node *n)
{
	if (n->scope == 1)
		return (u32)(n - m->nodes);
	return rebuild(m, n->b, root_leaf);
}

/* The same value as a node of scope 0, whose id is 1. */
u32 to_root(struct machine *m, u32 node)
{
	struct scope *s = m->scope;
	u32 n;

	if (!node || m->nodes[node].scope == 1)
		return node;
	if (m->nodes[node].root)
		return m->nodes[node].root - 1;
	m->scope = m->outer;
	n = rebuild(m, node, root_leaf);
	m->scope = s;
	m->nodes[node].root = n + 1;
	return n;
}

/* The node that `node`'s expression over places has in the present state; its value in *val. */
u32 substitute_now(struct machine *m, u32 node, u64 *val)
{
	const struct node copy = m->nodes[node];
	u64 va = copy.va, vb = copy.vb;
	u32 a, b;

	if (copy.code == LEAF) {
		*val = value_at(m, copy.a);
		return leaf(m, copy.a);
	}
	a = copy.a ? substitute_now(m, copy.a, &va) : 0;
	b = copy.b ? substitute_now(m, copy.b, &vb) : 0;
	*val = apply(copy.code, va, copy.sa, vb, copy.sb, copy.size);
	return mk_node(m, copy.code, copy.size, a, va, copy.sa, b, vb, copy.sb, *val);
}

/* The value of `node`'s expression over places in the present state. */
u64 evaluate_now(struct machine *m, u32 node)
{
	const struct node *n = &m->nodes[node];
	u64 a, b;

	if (n->code == LEAF)
		return value_at(m, n->a);
	a = n->a ? evaluate_now(m, n->a) : n->va;
	b = n->b ? evaluate_now(m, n->b) : n->vb;
	return apply(n->code, a, n->sa, b, n->sb, n->size);
}

/* The value of `node` had place `loc` held `val` at the start of its scope. */
u64 evaluate_with(struct machine *m, u32 node, u32 loc, u64 val)
{
	const struct node *n = &m->nodes[node];
	u64 a, b;

	if (n->code == LEAF)
		return n->a == loc ? val : n->val;
	a = n->a ? evaluate_with(m, n->a, loc, val) : n->va;
	b = n->b ? evaluate_with(m, n->b, loc, val) : n->vb;
	return apply(n->code, a, n->sa, b, n->sb, n->size);
}

/* The value of `node`, of scope 0, in the context `regs`. */
u64 evaluate_in(struct machine *m, u32 node, const u64 *regs)
{
	const struct node *n = &m->nodes[node];
	u64 a, b;

	if (n->code == LEAF)
		return n->a < NSLOTS ? regs[n->a] : n->val;
	a = n->a ? evaluate_in(m, n->a, regs) : n->va;
	b = n->b ? evaluate_in(m, n->b, regs) : n->vb;
	return apply(n->code, a, n->sa, b, n->sb, n->size);
}

enum source { CONSTANT_ONLY, ORIGIN, ELSEWHERE };

/*
 * Where does the field of `node` that starts at `bit` come from?  RFLAGS images are
 * ORs of shifted flags, whose fields do not overlap and which hold no more than
 * their field: so the image can be looked through.
 */
static enum source bit_source(struct machine *m, u32 node, u32 bit, u32 loc)
{
	const struct node *n = &m->nodes[node];
	enum source a, b;

	if (!node || bit >= 8u * n->size)
		return CONSTANT_ONLY;
	switch (n->code) {
	case LEAF:
		if (n->a == loc && bit == 0)
			return ORIGIN;
		return n->a < NSLOTS && bit >= slot_bits[n->a] ? CONSTANT_ONLY : ELSEWHERE;
	case CODE_INT_LEFT:
		if (n->b)
			return ELSEWHERE;
		return n->vb > bit ? CONSTANT_ONLY : bit_source(m, n->a, bit - (u32)n->vb, loc);
	case CODE_INT_RIGHT:
		return n->b ? ELSEWHERE : bit_source(m, n->a, bit + (u32)n->vb, loc);
	case CODE_SUBPIECE:
		return n->b || n->vb ? ELSEWHERE : bit_source(m, n->a, bit, loc);
	case CODE_INT_AND:
		if (n->b || !n->a)
			return ELSEWHERE;
		return n->vb >> bit & 1 ? bit_source(m, n->a, bit, loc) : CONSTANT_ONLY;
	case CODE_INT_OR:
		a = bit_source(m, n->a, bit, loc);
		b = bit_source(m, n->b, bit, loc);
		if (a == ELSEWHERE || b == ELSEWHERE || (a == ORIGIN && b == ORIGIN))
			return ELSEWHERE;
		/* a constant one hides the flag */
		if ((a == CONSTANT_ONLY && (n->a ? m->nodes[n->a].val : n->va) >> bit & 1) ||
		    (b == CONSTANT_ONLY && (n->b ? m->nodes[n->b].val : n->vb) >> bit & 1))
			return CONSTANT_ONLY;
		return a == ORIGIN || b == ORIGIN ? ORIGIN : CONSTANT_ONLY;
	default:
		return ELSEWHERE;
	}
}

/* Is the flag in field `bit` of `node` what `loc` held, or else a constant? */
bool is_origin_bit(struct machine *m, u32 node, u32 bit, u32 loc)
{
	return bit_source(m, node, bit, loc) != ELSEWHERE;
}

/* Is `node` nothing but what `loc` held when the scope began? */
bool is_origin(struct machine *m, u32 node, u32 loc)
{
	const struct node *n = &m->nodes[node];
	u32 size = loc < NSLOTS ? slot_size[loc] : 8;

	if (!node)
		return false;
	if (n->code == LEAF)
		return n->a == loc;
	if (size == 1)
		return bit_source(m, node, 0, loc) != ELSEWHERE;
	/* what is cut off must be no part of it: a selector has two bytes, and is pushed as eight */
	if (n->code == CODE_SUBPIECE && !n->b && n->vb == 0 && n->size >= size)
		return is_origin(m, n->a, loc);
	if (n->code == CODE_INT_AND && !n->b && n->vb == 0xffff && size <= 2)
		return is_origin(m, n->a, loc);
	return false;
}

/* Is that flag a constant, whatever it was in the first context? */
bool is_constant_bit(struct machine *m, u32 node, u32 bit, u32 loc)
{
	return bit_source(m, node, bit, loc) == CONSTANT_ONLY;
}
