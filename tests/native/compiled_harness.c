/* SPDX-License-Identifier: GPL-2.0-only */
/* Runs one instruction of compiled code on a machine made for it. */
#include <stdlib.h>

#include "model.h"

extern const struct compiled atomicist_code;

struct outcome {
	u64 status, insns, mem_writes;
};

/*
 * The instruction numbered `index` of the image, at RIP, by `run` or by `one`.  `regs`
 * and `mem` (of all pages) are changed in place.  Stores must be in the log: they
 * are taken back and made again by it.
 */
__attribute__((visibility("default")))
int harness(const struct page *pages, u32 npages, u64 *regs, u64 *mem, u64 gsbase, u32 index, u32 size,
	    u32 by_one, struct outcome *out);

int harness(const struct page *pages, u32 npages, u64 *regs, u64 *mem, u64 gsbase, u32 index, u32 size,
	    u32 by_one, struct outcome *out)
{
	struct image im = { .npages = npages, .kernel_gsbase = gsbase };
	struct machine *m = calloc(1, sizeof(*m));
	size_t bytes = (size_t)npages * PAGE;
	u64 *before = malloc(bytes);
	int ok = 0, st = REFUSES;

	if (!m || !before)
		goto done;
	memcpy(before, mem, bytes);
	m->im = &im;
	m->mem = mem;
	m->pages = malloc(npages * sizeof(*m->pages));
	m->clean = calloc(npages, sizeof(*m->clean));
	m->caplog = 4096;
	m->log = malloc(m->caplog * sizeof(*m->log));
	if (!m->pages || !m->clean || !m->log)
		goto done;
	memcpy(m->pages, pages, npages * sizeof(*m->pages));
	for (u32 i = 0; i < npages; i++) {
		m->pages[i].rlimit[0] = m->pages[i].flags & USER_PAGE ? 0 : PAGE;
		m->pages[i].wlimit[0] = m->pages[i].flags & WRITABLE ? m->pages[i].rlimit[0] : 0;
		m->clean[i] = WORDS;
	}
	memcpy(m->r, regs, sizeof(m->r));
	if (!by_one) {
		st = atomicist_code.run(m, 1);
		out->insns = m->guest_insns;
	} else if (atomicist_code.one[index]) {
		m->r[REG_RIP] += size;
		st = atomicist_code.one[index](m);
		out->insns = st != REFUSES;
		if (st == REFUSES)
			m->r[REG_RIP] -= size;
	}
	out->status = (u64)st;
	out->mem_writes = m->nlog;
	memcpy(regs, m->r, sizeof(m->r));
	ok = 1;
	for (u32 w = 0; w < npages * WORDS; w++)
		ok &= mem[w] == before[w] || m->clean[w / WORDS] <= w % WORDS;
	/* what the log gives back is what was there */
	for (u32 i = m->nlog; i-- > 0;) {
		u64 *at = &mem[m->log[i].loc - NSLOTS], now = *at;

		*at = m->log[i].old;
		m->log[i].old = now;
	}
	ok &= !memcmp(mem, before, bytes);
	for (u32 i = 0; i < m->nlog; i++)
		mem[m->log[i].loc - NSLOTS] = m->log[i].old;
done:
	if (m) {
		free(m->pages);
		free(m->clean);
		free(m->log);
	}
	free(m);
	free(before);
	return ok;
}
