/* SPDX-License-Identifier: GPL-2.0-only */
/* Guest memory: pages, two page-table roots, live parts of stacks, undo. */
#include "model.h"

int search_page(struct machine *m, u64 va)
{
	u64 base = va & ~(u64)(PAGE - 1);

	for (u32 i = 0; i < m->im->npages; i++) {
		if (m->pages[i].base == base) {
			m->tlb[tlb_slot(va)] = i;
			return (int)i;
		}
	}
	return -1;
}

struct region *search_region(struct machine *m, u64 va)
{
	for (u32 i = 0; i < m->im->nregions; i++) {
		if (va < m->regions[i].bottom || va >= m->regions[i].top)
			continue;
		if (m->apart)
			m->region_tlb[tlb_slot(va)] = &m->regions[i];
		return &m->regions[i];
	}
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

bool log_word(struct machine *m, u32 loc)
{
	struct undo *u;

	if (!m->shadow) {
		u16 *clean = &m->known[(loc - NSLOTS) / WORDS].clean, at = (u16)((loc - NSLOTS) % WORDS);

		if (m->nsaved + 2 > m->capsaved) {
			m->overflow = __LINE__;
			return false;
		}
		m->saved[m->nsaved++] = m->mem[loc - NSLOTS];
		m->saved[m->nsaved++] = saved_head(loc, 1);
		*clean = *clean < at ? *clean : at;
		return true;
	}
	if (m->nlog == m->caplog) {
		m->overflow = __LINE__;
		return false;
	}
	u = &m->log[m->nlog++];
	u->loc = loc;
	u->old = m->mem[loc - NSLOTS];
	u->node = m->mnode[loc - NSLOTS];
	u->scope = m->mscope[loc - NSLOTS];
	u->version = m->version[loc];
	touch(m, loc);
	return true;
}

void rollback(struct machine *m, u32 mark)
{
	const struct undo *const first = m->log + mark, *u = m->log + m->nlog;
	u64 *const mem = m->mem;

	if (!m->shadow) {
		take_back(mem, m->saved + m->nsaved, m->saved + mark);
		m->nsaved = mark;
		return;
	}
	if (m->nlog <= mark)
		return;
	m->nlog = mark;
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
	if (!m->shadow && m->nsaved + 2 * n + 2 <= m->capsaved) {
		u64 *u = m->saved + m->nsaved;

		for (u32 i = 0; i < n; i++, w++, va += 8) {
			u64 old = m->mem[w];

			/* written in any case, counted if it differs: no branch to mispredict */
			u[0] = old;
			u[1] = saved_head(w + NSLOTS, 1);
			u += old != poison_of(va) ? 2 : 0;
			m->mem[w] = poison_of(va);
		}
		m->nsaved = (u32)(u - m->saved);
		return;
	}
	for (u32 i = 0; i < n; i++, w++, va += 8) {
		if (m->mem[w] == poison_of(va) && !(m->shadow && (m->mnode[w] || m->mscope[w] != m->scope->id)))
			continue;
		if (!log_word(m, w + NSLOTS))
			return;
		m->mem[w] = poison_of(va);
		if (m->shadow) {
			m->mnode[w] = 0;
			m->mscope[w] = m->scope->id;
		}
	}
}

/* Poison `n` words, in eights, from word `w` on; without shadow. */
static void poison_rows(struct machine *m, u64 va, u32 w, u32 n)
{
	row *at = (row *)(m->mem + w), *const end = (row *)(m->mem + w + n);
	u64 *u = m->saved + m->nsaved, *const last = m->saved + m->capsaved;
	row low = poison_of(va) + (row){ 0, 8, 16, 24 }, high = low + 8 * ROW;

	for (; at < end; at += 2, low += 16 * ROW, high += 16 * ROW, w += 2 * ROW) {
		const row differ = (at[0] ^ low) | (at[1] ^ high);

		if (!(differ[0] | differ[1] | differ[2] | differ[3]))
			continue;
		if (last - u < (ptrdiff_t)(2 * ROW + 1)) {
			m->overflow = __LINE__;
			break;
		}
		((row *)u)[0] = at[0];
		((row *)u)[1] = at[1];
		u[2 * ROW] = saved_head(w + NSLOTS, 2 * ROW);
		u += 2 * ROW + 1;
		at[0] = low;
		at[1] = high;
	}
	m->nsaved = (u32)(u - m->saved);
}

#define NEAR 64u			/* words below the end of what is poisoned: used next */

/* Let what is at `offset`, and a little below, hold the poison that it is known to be. */
void materialize(struct machine *m, u32 page, u32 offset)
{
	struct known *k = &m->known[page];
	u32 to = offset > 8 * NEAR ? (offset - 8 * NEAR) & ~63u : 0;

	if (to >= k->floor)
		return;
	poison_rows(m, m->pages[page].base + to, page * WORDS + to / 8, (k->floor - to) / 8);
	k->floor = (u16)to;
}

/* Poison the words [`at`, `end`) of a page, the first of them at `va`; without shadow. */
static void poison_page(struct machine *m, u32 page, u64 va, u32 at, u32 end)
{
	struct known *k = &m->known[page];
	const bool joins = k->clean >= at;
	u32 from = joins ? k->clean : at, later = end > NEAR ? (end - NEAR) & ~7u : 0, eights;

	if (joins && later > from) {
		k->floor = (u16)(8 * later);
		from = later;
	}
	if (from >= end)
		return;
	va += 8 * (from - at);
	eights = (end - from) & ~7u;
	poison_rows(m, va, page * WORDS + from, eights);
	poison_words(m, va + 8 * eights, page * WORDS + from + eights, end - from - eights);
	if (joins)
		k->clean = (u16)end;
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
			poison_page(m, (u32)i, va, w % WORDS, w % WORDS + n);
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
	if (!m->shadow && (va & (PAGE - 1)) < m->known[i].floor)
		materialize(m, (u32)i, (u32)(va & (PAGE - 1)));
	*val = m->mem[(u32)i * WORDS + (u32)(va & (PAGE - 1)) / 8];
	return true;
}
