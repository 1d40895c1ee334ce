/* SPDX-License-Identifier: GPL-2.0-only */
/* What the process that runs instructions on the processor is asked, and answers. */
#ifndef ATOMICIST_HOST_H
#define ATOMICIST_HOST_H

#include <stdint.h>
#include <string.h>

#define HOST_BATCH 256
#define MAX_SPOTS 3
#define SETTABLE 0xcd5ull /* CF PF AF ZF SF DF OF */

/* Sixteen bytes of the arena that differ from the background. */
struct spot {
	uint32_t at, unused;
	uint8_t bytes[16];
};

struct host_request {
	uint64_t gpr[16], rflags, gsbase, rip;
	uint8_t code[16];
	uint32_t nspots, unused;
	struct spot spots[MAX_SPOTS];
};

struct host_reply {
	uint64_t gpr[16], rflags, gsbase, rip, vector, error, address, hash;
};

struct host_shared {
	uint8_t background[ARENA_SIZE];
	uint8_t arena[ARENA_SIZE];	/* as the last request left it */
	struct host_request request[HOST_BATCH];
	struct host_reply reply[HOST_BATCH];
};

/* Four chains, so that they do not wait for one another. */
static inline uint64_t arena_hash(const uint8_t *arena)
{
	uint64_t hash[4] = { 1, 2, 3, 4 }, word[4];

	for (unsigned i = 0; i < ARENA_SIZE; i += sizeof(word)) {
		memcpy(word, arena + i, sizeof(word));
		for (unsigned k = 0; k < 4; k++) {
			hash[k] = (hash[k] ^ word[k]) * 0x9e3779b97f4a7c15ull;
			hash[k] ^= hash[k] >> 29;
		}
	}
	for (unsigned k = 1; k < 4; k++)
		hash[0] = (hash[0] ^ hash[k]) * 0x9e3779b97f4a7c15ull;
	return hash[0];
}

#endif
