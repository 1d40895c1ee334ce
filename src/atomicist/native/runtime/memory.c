/* SPDX-License-Identifier: GPL-2.0-only */
/* Guest memory: pages, two page-table roots, live parts of stacks, undo. */
#include "model.h"

int find_page(struct machine *m, u64 va)
{
	u64 base = va & ~(u64)(PAGE - 1);
	u32 h = (u32)((base >> 12) ^ (base >> 21)) & 255;
	u32 i = m->tlb[h];

	if (i < m->im->npages && m->pages[i].base == base)
		return (int)i;
	for (i = 0; i < m->im->npages; i++) {
		if (m->pages[i].base == base) {
			m->tlb[h] = i;
			return (int)i;
		}
	}
	return -1;
}

struct region *region_of(struct machine *m, u64 va)
{
	for (u32 i = 0; i < m->im->nregions; i++)
		if (va >= m->regions[i].bottom && va < m->regions[i].top)
			return &m->regions[i];
	return NULL;
}

/* Words from `live` up belong to the interrupted context: refuse to write them. */
void set_live(struct machine *m, struct region *reg, u64 live)
{
	reg->live = live;
	for (u64 base = reg->bottom & ~(u64)(PAGE - 1); base < reg->top; base += PAGE) {
		int i = find_page(m, base);
		u32 limit, flags;

		if (i < 0)
			continue;
		flags = m->pages[i].flags;
		limit = live <= base ? 0 : live - base < PAGE ? (u32)(live - base) : PAGE;
		m->pages[i].wlimit[0] = flags & WRITABLE && flags & KERNEL_ROOT ? limit : 0;
		m->pages[i].wlimit[1] = flags & WRITABLE && flags & USER_ROOT ? limit : 0;
	}
}

void log_word(struct machine *m, u32 loc)
{
	struct undo *u;

	if (m->nlog == m->caplog) {
		m->overflow = __LINE__;
		return;
	}
	u = &m->log[m->nlog++];
	u->loc = loc;
	u->old = m->mem[loc - NSLOTS];
	if (m->shadow) {
		u->node = m->mnode[loc - NSLOTS];
		u->scope = m->mscope[loc - NSLOTS];
		u->version = m->version[loc];
		touch(m, loc);
	} else {
		u16 *clean = &m->clean[(loc - NSLOTS) / WORDS], at = (u16)((loc - NSLOTS) % WORDS);

		*clean = *clean < at ? *clean : at;
	}
}

void rollback(struct machine *m, u32 mark)
{
	const struct undo *const first = m->log + mark, *u = m->log + m->nlog;
	u64 *const mem = m->mem;

	if (m->nlog <= mark)
		return;
	m->nlog = mark;
	if (!m->shadow) {
		while (u > first) {
			u--;
			mem[u->loc - NSLOTS] = u->old;
		}
		return;
	}
	while (u > first) {
		u32 w = (--u)->loc - NSLOTS;

		mem[w] = u->old;
		m->mnode[w] = u->node;
		m->mscope[w] = u->scope;
		m->version[u->loc] = u->version;
	}
}

static u64 poison_of(u64 va)
{
	return POISON | (va & 0xffffff);
}

/* Poison `n` words from word `w` on, which is at `va`; most are poisoned already. */
static void poison_words(struct machine *m, u64 va, u32 w, u32 n)
{
	if (!m->shadow && m->nlog + n <= m->caplog) {
		struct undo *u = m->log + m->nlog;

		for (u32 i = 0; i < n; i++, w++, va += 8) {
			u64 old = m->mem[w];

			/* written in any case, counted if it differs: no branch to mispredict */
			u->old = old;
			u->loc = w + NSLOTS;
			u += old != poison_of(va);
			m->mem[w] = poison_of(va);
		}
		m->nlog = (u32)(u - m->log);
		return;
	}
	for (u32 i = 0; i < n; i++, w++, va += 8) {
		if (m->mem[w] == poison_of(va) && !(m->shadow && (m->mnode[w] || m->mscope[w] != m->scope->id)))
			continue;
		log_word(m, w + NSLOTS);
		m->mem[w] = poison_of(va);
		if (m->shadow) {
			m->mnode[w] = 0;
			m->mscope[w] = m->scope->id;
		}
	}
}

/* Are these eight words poison? */
static bool poisoned(const u64 *p, u64 va)
{
	u64 differ = 0, val = poison_of(va);

	for (u32 i = 0; i < 8; i++)
		differ |= p[i] ^ (val + 8 * i);
	return !differ;
}

/* Overwrite free memory with values that betray any use of them. */
void poison(struct machine *m, u64 from, u64 to)
{
	u64 next;

	for (u64 va = (from + 7) & ~7ull; va < to; va = next) {
		int i = find_page(m, va);
		u32 w, n;

		next = (va | (PAGE - 1)) + 1;
		if (i < 0)
			continue;
		w = (u32)i * WORDS + (u32)(va & (PAGE - 1)) / 8;
		n = (u32)(((next < to ? next : to) - va + 7) / 8);
		if (!m->shadow) {
			u32 known = m->clean[i], at = w % WORDS, end = at + n, skip = known > at ? known - at : 0;

			skip = skip < n ? skip : n;
			for (n -= skip, w += skip, va += 8 * skip; n >= 8; n -= 8, w += 8, va += 64)
				if (!poisoned(&m->mem[w], va))
					poison_words(m, va, w, 8);
			poison_words(m, va, w, n);
			if (known >= at)
				m->clean[i] = (u16)(known > end ? known : end);
			continue;
		}
		poison_words(m, va, w, n);
	}
}

bool read_word(struct machine *m, u64 va, u64 *val)
{
	int i = find_page(m, va);

	if (i < 0 || (va & 7))
		return false;
	*val = m->mem[(u32)i * WORDS + (u32)(va & (PAGE - 1)) / 8];
	return true;
}
