/* SPDX-License-Identifier: GPL-2.0-only */
/* What the C printed by native/codegen.py is written in. */
#ifndef ATOMICIST_COMPILED_H
#define ATOMICIST_COMPILED_H

#include "model.h"

typedef int64_t s64;
typedef __int128 s128;
/* guest accesses need no alignment */
typedef u16 u16u __attribute__((aligned(1)));
typedef u32 u32u __attribute__((aligned(1)));
typedef u64 u64u __attribute__((aligned(1)));

/* The machine in the names that the printed code uses. */
#define MACHINE								\
	u64 *const R = m->r;						\
	u64 *const W = m->mem;						\
	u8 *const M = (u8 *)W;						\
	const struct page *const P = m->pages;				\
	struct known *const K = m->known;				\
	u64 *u = m->saved + m->nsaved;					\
	u64 *const start = u;						\
	u64 *const last = m->saved + m->capsaved;			\
	const bool early = m->early;					\
	u32 root = m->root = root_of(m)

#define REFUSE_IF(x) do {						\
	if (__builtin_expect(!!(x), 0))					\
		goto refused;						\
} while (0)

#define TAKE_BACK(mark) do {						\
	take_back(W, u, (mark));					\
	u = (mark);							\
} while (0)

#define WRITTEN(page, word) do {					\
	if (K[page].clean > (word))					\
		K[page].clean = (u16)(word);				\
} while (0)

#define LOG(word) do {							\
	u[0] = W[(word) - NSLOTS];					\
	u[1] = saved_head((word), 1);					\
	u += 2;								\
} while (0)

/* The row that is `i` words behind `word`, of those that LOG_ROWS(word, n) closes. */
#define LOG_ROW(word, i)						\
	(*(row *)(u + (i)) = *(const row *)(W + (s64)(word) - (s64)NSLOTS + (i)))

#define LOG_ROWS(word, n) do {						\
	u[n] = saved_head((word), (n));					\
	u += (n) + 1;							\
} while (0)

/* `size` bytes from the byte `byte` of the word `word` on */
#define LOG_BYTES(word, byte, size) do {				\
	LOG((word) + (byte) / 8);					\
	if (((byte) & 7) + (size) > 8)					\
		LOG((word) + (byte) / 8 + 1);				\
} while (0)

static inline u32 root_of(const struct machine *m)
{
	return m->im->user_root_bit && (m->r[REG_CR3] & m->im->user_root_bit);
}

#endif
