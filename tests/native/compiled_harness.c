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
	u64 *room = calloc(IN_FRONT * sizeof(u64) + bytes, 1), *before;
	int ok = 0, st = REFUSES;

	if (!m || !room)
		goto done;
	m->im = &im;
	m->mem = room + IN_FRONT;
	memcpy(m->mem, mem, bytes);
	m->pages = malloc(npages * sizeof(*m->pages));
	m->known = calloc(npages, sizeof(*m->known));
	m->capsaved = 4096;
	m->saved = malloc(m->capsaved * sizeof(*m->saved));
	if (!m->pages || !m->known || !m->saved)
		goto done;
	memcpy(m->pages, pages, npages * sizeof(*m->pages));
	for (u32 i = 0; i < npages; i++) {
		m->pages[i].rlimit[0] = m->pages[i].flags & USER_PAGE ? 0 : PAGE;
		m->pages[i].wlimit[0] = m->pages[i].flags & WRITABLE ? m->pages[i].rlimit[0] : 0;
		m->known[i].clean = WORDS;
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
	out->mem_writes = m->nsaved;
	memcpy(regs, m->r, sizeof(m->r));
	ok = 1;
	for (u32 w = 0; w < npages * WORDS; w++)
		ok &= mem[w] == m->mem[w] || m->known[w / WORDS].clean <= w % WORDS;
	/* what the log gives back is what was there */
	before = malloc(bytes);
	if (!before) {
		ok = 0;
		goto done;
	}
	memcpy(before, mem, bytes);
	memcpy(mem, m->mem, bytes);
	take_back(m->mem, m->saved + m->nsaved, m->saved);
	ok &= !memcmp(m->mem, before, bytes);
	free(before);
done:
	if (m) {
		free(m->pages);
		free(m->known);
		free(m->saved);
	}
	free(m);
	free(room);
	return ok;
}
