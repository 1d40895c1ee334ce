/* SPDX-License-Identifier: GPL-2.0-only */
/* The entry points that Python calls; nothing else is visible outside. */
#include <stdlib.h>
#include <sys/mman.h>

#include "search.h"

#define EXPORT __attribute__((visibility("default")))

#define HUGE_PAGE (2ul << 20)

/* Memory, not cleared, for a table that is read here and there: in large pages, if there are any. */
static void *table(size_t count, size_t size)
{
	size_t bytes = (count * size + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
	void *p = aligned_alloc(HUGE_PAGE, bytes);

	if (p)
		madvise(p, bytes, MADV_HUGEPAGE);
	return p;
}

static void forget_insns(struct machine *m)
{
	free(m->code_pages);
	free(m->insn_index);
	m->code_pages = NULL;
	m->insn_index = NULL;
}

EXPORT void atomicist_free(struct search *s)
{
	struct machine *m = s ? s->m : NULL;

	if (m) {
		free(m->mem ? m->mem - IN_FRONT : NULL);
		free(m->depended);
		free(m->version);
		free(m->journal);
		free(m->mnode);
		free(m->mscope);
		free(m->pages);
		free(m->regions);
		free(m->log);
		free(m->saved);
		free(m->known);
		free(m->nodes);
		free(m->lazies);
		free(m->node_hash);
		free(m->findings);
		forget_insns(m);
		free(m->delivered);
		free(m->offered);
		free(m->ran);
		free(m);
		free(s->root);
	}
	if (s) {
		free(s->memo);
		free(s->committed);
		free(s->out);
		free(s->seen);
		free(s->covers);
		free(s->covers_rsp);
		free(s->hashes);
		free(s->known);
		free(s);
	}
}

/* Find instructions by address; of two at one address, the first. */
static bool index_insns(struct machine *m)
{
	const struct insn *const insns = m->im->insns;
	u32 size = 16, pages = 0;

	for (u32 k = 0; k < m->im->ninsns; k++)
		pages += !k || insns[k].va / PAGE != insns[k - 1].va / PAGE;
	while (size < 4 * pages)
		size *= 2;
	m->code_mask = size - 1;
	m->code_pages = calloc(size, sizeof(*m->code_pages));
	m->insn_index = calloc((size_t)pages * PAGE + 1, sizeof(*m->insn_index));
	if (!m->code_pages || !m->insn_index)
		return false;
	pages = 0;
	for (u32 k = 0; k < m->im->ninsns; k++) {
		struct code_page *page = code_page(m, insns[k].va);
		u32 *at;

		if (!page->index) {
			page->number = insns[k].va / PAGE;
			page->index = m->insn_index + (size_t)PAGE * pages++;
		}
		at = &page->index[insns[k].va & (PAGE - 1)];
		*at = *at ? *at : k + 1;
	}
	return true;
}

/* Rows of the table of instructions were changed: find them by address again. */
EXPORT int atomicist_reindex(struct search *s)
{
	forget_insns(s->m);
	return index_insns(s->m);
}

/* What was executed, of each instruction, since it was last forgotten. */
EXPORT const u8 *atomicist_ran(const struct search *s)
{
	return s->m->ran;
}

EXPORT void atomicist_forget_ran(struct search *s)
{
	memset(s->m->ran, 0, s->m->im->ninsns);
}

/* Let runs that violate one of `properties`, a bit set, pass as if they had ended well. */
EXPORT void atomicist_ignore(struct search *s, u64 properties)
{
	s->m->ignored = properties;
}

static void page_limits(struct page *p)
{
	for (u32 root = 0; root < 2; root++) {
		bool there = p->flags & (root ? USER_ROOT : KERNEL_ROOT) && !(p->flags & USER_PAGE);

		p->rlimit[root] = there ? PAGE : 0;
		p->wlimit[root] = there && p->flags & WRITABLE ? PAGE : 0;
	}
}

/* A search over `im`, which must outlive it. NULL: out of memory. */
EXPORT struct search *atomicist_new(const struct image *im)
{
	struct search *s = calloc(1, sizeof(*s));
	struct machine *m = calloc(1, sizeof(*m));
	size_t words = (size_t)im->npages * WORDS;

	if (!s || !m) {
		free(s);
		free(m);
		return NULL;
	}
	s->m = m;
	m->im = im;
	m->caplog = 1 << 20;
	m->capsaved = 1 << 21;
	m->capnodes = (1u << (32 - HASH_SHIFT_MOST)) / 2;
	m->caplazies = 1 << 18;
	m->capfindings = 4096;
	s->capout = 1 << 17;
	s->seen_size = 1 << 16;
	s->hashes_size = FEW_HASHES;
	m->capjournal = 1 << 18;
	m->mem = calloc(words + IN_FRONT, 8);
	m->mem = m->mem ? m->mem + IN_FRONT : NULL;
	m->journal = malloc(m->capjournal * sizeof(*m->journal));
	m->version = calloc(NSLOTS + words, sizeof(u32));
	m->depended = calloc(NSLOTS + words, sizeof(u32));
	m->mnode = calloc(words, sizeof(u32));
	m->mscope = calloc(words, sizeof(u32));
	m->pages = malloc(im->npages * sizeof(*m->pages));
	m->regions = malloc(im->nregions * sizeof(*m->regions) + 1);
	m->log = malloc(m->caplog * sizeof(*m->log));
	m->saved = malloc(m->capsaved * sizeof(*m->saved));
	m->known = calloc(known_size(im), sizeof(*m->known));
	m->nodes = table(m->capnodes, sizeof(*m->nodes));
	m->lazies = table(m->caplazies, sizeof(*m->lazies));
	m->node_hash = table(1u << (32 - HASH_SHIFT_MOST), sizeof(*m->node_hash));
	m->ran = calloc(im->ninsns + 1, 1);
	m->delivered = calloc((size_t)im->ninsns * NVEC + 1, sizeof(*m->delivered));
	m->offered = calloc((size_t)im->ninsns * NVEC + 1, sizeof(*m->offered));
	m->findings = malloc(m->capfindings * sizeof(*m->findings));
	s->memo = malloc(MAX_MEMO * sizeof(*s->memo));
	s->committed = malloc(MAX_COMMITTED * sizeof(*s->committed));
	s->out = malloc(s->capout * sizeof(*s->out));
	s->seen = calloc(s->seen_size, sizeof(*s->seen));
	s->covers = calloc(im->ninsns + 1, 1);
	s->covers_rsp = calloc(MAX_STACK_WORDS, 1);
	s->known = calloc(known_size(im) * (MAX_CHAIN + 1), sizeof(*s->known));
	s->hashes = calloc(s->hashes_size, sizeof(*s->hashes));
	if (!m->mem || !m->journal || !m->depended || !m->version || !m->mnode || !m->mscope || !m->pages || !m->regions || !m->log || !m->saved || !m->known || !m->nodes ||
	    !m->lazies || !m->node_hash || !m->ran || !m->findings || !s->memo || !s->committed || !s->out || !s->seen ||
	    !s->covers || !s->covers_rsp || !s->hashes || !s->known || !m->delivered || !m->offered || !index_insns(m)) {
		atomicist_free(s);
		return NULL;
	}
	memcpy(m->mem, im->contents, words * 8);
	memcpy(m->pages, im->pages, im->npages * sizeof(*m->pages));
	memcpy(m->regions, im->regions, im->nregions * sizeof(*m->regions));
	for (u32 i = im->nregions; i-- > 0;) {
		if (m->regions[i].kind == MAIN_STACK)
			m->main = &m->regions[i];
		if (m->regions[i].kind == ENTRY_STACK)
			m->entry = &m->regions[i];
	}
	m->apart = true;
	for (u32 i = 0; i < im->nregions; i++)
		for (u32 j = 0; j < i; j++)
			m->apart &= im->regions[i].top <= im->regions[j].bottom ||
				    im->regions[j].top <= im->regions[i].bottom;
	for (u32 i = 0; i < im->npages; i++)
		page_limits(&m->pages[i]);
	memset(m->tlb, 0xff, sizeof(m->tlb));
	m->lowest_main = ~0ull;
	return s;
}

static void fresh(struct search *s)
{
	s->m->nfindings = 0;
	s->m->overflow = false;
	s->nout = 0;
	/* each certificate names all that it meets: for its other members these are others */
	if (s->nseen)
		memset(s->seen, 0, s->seen_size * sizeof(*s->seen));
	s->nseen = 0;
	memset(s->m->delivered, 0, s->m->im->ninsns * NVEC * sizeof(*s->m->delivered));
	memset(s->m->offered, 0, s->m->im->ninsns * NVEC * sizeof(*s->m->offered));
	s->m->guest_insns = s->m->interleavings = s->m->executed = s->m->boundaries = 0;
	s->hits = s->misses = 0;
}

/* All nestings from a context with one first event. */
EXPORT int atomicist_certify(struct search *s, const u64 *regs, u32 vector, u32 expect_df, u32 no_stack, u32 mode)
{
	fresh(s);
	s->mode = mode;
	return certify(s, regs, vector, expect_df, no_stack);
}

/* Does what was certified last hold for `regs` too? */
EXPORT int atomicist_holds(struct search *s, const u64 *regs)
{
	return holds_for(s, regs);
}

/* All schedules of at most `budget` events, vectors in `offered`, first in `first`. */
EXPORT int atomicist_enumerate(struct search *s, const u64 *regs, u32 budget, u32 offered, u32 first,
			       u32 expect_df, u32 no_stack, u32 stop, u64 limit, const struct compiled *run)
{
	fresh(s);
	s->budget = budget;
	s->offered = offered;
	s->first = first;
	s->stop = stop;
	s->limit = limit;
	s->m->code = run;
	s->alone = false;
	s->broken_slot = NSLOTS;
	return enumerate(s, regs, expect_df, no_stack);
}

/* One schedule, as it is: an enum status. */
EXPORT int atomicist_follow(struct search *s, const u64 *regs, u32 expect_df, u32 no_stack,
			    const struct event *events, u32 n, const struct compiled *run)
{
	fresh(s);
	s->m->code = run;
	s->alone = true;
	s->broken_slot = NSLOTS;
	return follow_schedule(s, regs, expect_df, no_stack, events, n);
}

EXPORT void atomicist_totals(const struct search *s, struct totals *t)
{
	const struct machine *m = s->m;

	*t = (struct totals){
		.guest_insns = m->guest_insns, .interleavings = m->interleavings, .executed = m->executed,
		.boundaries = m->boundaries, .hits = s->hits, .misses = s->misses,
		.worst_commit = m->worst_commit, .lowest_main = m->lowest_main, .findings = m->nfindings,
		.emitted = s->nout, .overflow = m->overflow, .broken_slot = s->broken_slot,
		.broken_where = s->broken_where,
	};
	for (u32 i = 0; i < s->ends.n; i++)
		t->ends += s->ends.of[i];
	for (u32 i = 0; i < s->told.n; i++)
		t->told += s->told.of[i];
}

EXPORT const struct finding *atomicist_findings(const struct search *s)
{
	return s->m->findings;
}

EXPORT const struct emitted *atomicist_emitted(const struct search *s)
{
	return s->out;
}

/* By instruction and event: how often it was delivered there one by one, how often tried in all. */
EXPORT const u64 *atomicist_delivered(const struct search *s)
{
	return s->m->delivered;
}

EXPORT const u64 *atomicist_offered(const struct search *s)
{
	return s->m->offered;
}

EXPORT const u8 *atomicist_covers(const struct search *s)
{
	return s->covers;
}

/* The values of key register `key` that `covers_key` is to answer for. */
EXPORT void atomicist_candidates(struct search *s, u32 key, const u64 *values, u32 count)
{
	s->ncandidates[key] = count < MAX_CANDIDATES ? count : MAX_CANDIDATES;
	memcpy(s->candidate[key], values, s->ncandidates[key] * sizeof(*values));
}

EXPORT const u8 *atomicist_covers_key(const struct search *s)
{
	return s->covers_key[0];
}

/* The registers of tables.h: free_slot, for a context in user mode or with the user's RSP. */
EXPORT const struct free_register *atomicist_free_registers(const struct search *s)
{
	return s->free;
}

EXPORT const u8 *atomicist_covers_rsp(const struct search *s)
{
	return s->covers_rsp;
}
