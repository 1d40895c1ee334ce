/* SPDX-License-Identifier: GPL-2.0-only */
/* What the two searches keep, and what they hand out. */
#ifndef ATOMICIST_SEARCH_H
#define ATOMICIST_SEARCH_H

#include "model.h"

#define FEW_HASHES 1024u
#define MAX_MEMO 8192
#define MAX_COMMITTED 1024
#define MAX_STACK_WORDS 4096
#define MAX_CANDIDATES 32
#define MAX_LIVE (MAX_CHAIN * 32)
#define MAX_ENDS 2048

#define DEP_HEADS 128
#define NO_DEP 0xffffu
#define MEMO_HEADS 1024

/* One constraint, or behind them one copied place, that reads `loc`. */
struct dep {
	u32 loc;
	u16 item;
	u16 next;
};

/* What is left behind, by value, each once: see note_end(). */
struct ends {
	u64 of[MAX_ENDS];
	u32 n;
};

/* A finished scope: its course's constraints, its result's ingredients. */
struct memo {
	u32 chain;		/* events under way, oldest in the high digits */
	u32 vector;
	u32 ncon, ncop;
	struct constraint *con;
	struct copied *cop;
	u64 count;
	u32 tells;		/* constraint that told a state apart last */
	u32 next;		/* of the same chain and vector, + 1 */
	struct dep *dep;	/* by place: what is to be asked again when it changes */
	u16 head[DEP_HEADS];
	u64 rip_low, rip_high;	/* for RIPs between these all that tests it alone holds */
	u32 scope;		/* in which the present state was last found the same ... */
	u32 clock;		/* ... and when */
};

/* A state just after a commit, with dead memory left out. */
struct committed {
	u64 hash;
	u32 chain;
	u32 nwords;
	u64 r[NSLOTS];
	u32 rnode[NSLOTS];
	u64 va[MAX_LIVE], val[MAX_LIVE];
	u32 node[MAX_LIVE];
	struct instance inst[MAX_CHAIN];
	u32 ninst;
	struct event sched[MAX_CHAIN];
	u32 nsched, steps;
};

/* A context met after a commit, to be certified in its turn. */
struct emitted {
	u64 r[NKEY];
	u64 rip;
	u32 source[NKEY];	/* slot of the first context that it comes from, or NSLOTS */
	u32 relative;		/* its RSP moves with the interrupted one */
	u32 handler;		/* inside a handler: RSP may be any lower */
	u32 nevents;
	u32 steps;
	struct event events[MAX_CHAIN];
};

/* A register that a user chooses: see free.c. */
#define MAX_CELLS 256
#define NFREE 3

struct free_register {
	u64 value[MAX_CELLS];	/* the first value of each cell */
	u8 holds[MAX_CELLS];
	u32 n;
	u32 unknown;
};

struct search {
	struct machine *m;
	struct memo *memo;
	u32 nmemo;
	u32 memo_head[MEMO_HEADS];	/* by chain and vector, + 1; the last used first */
	u16 items[MAX_CONSTRAINTS + MAX_COPIED];	/* of a memo: what is to be asked again */
	u32 nitems;
	struct committed *committed;
	u32 ncommitted;
	struct ends ends, told;
	struct emitted *out;
	u32 nout, capout;
	u64 *seen;
	u32 seen_size, nseen;
	u8 *covers;		/* by instruction: RIPs for which the result holds */
	u64 candidate[NKEY][MAX_CANDIDATES];
	u32 ncandidates[NKEY];
	u8 covers_key[NKEY][MAX_CANDIDATES];	/* values of key registers that do as well */
	u8 *covers_rsp;		/* by word of the region that holds RSP */
	struct free_register free[NFREE];
	struct scope *root;	/* what was certified last rests on, or NULL ... */
	u64 certified[NSLOTS];	/* ... and its context */
	u32 broken_slot;	/* NSLOTS: the result rests on no value it may not */
	u64 broken_where;
	u64 hits, misses;
	u32 mode;		/* enum mode */
	/* enumeration */
	u32 budget;		/* events in one schedule */
	u32 offered;		/* bit set of vectors */
	u32 first;
	u64 *hashes;		/* committed states already followed */
	u32 hashes_size, nhashes;
	u32 stop;		/* findings after which to stop */
	u64 limit;		/* schedules after which to stop, unfinished; 0: none */
	u32 alone;		/* a given schedule: nothing is merged */
	u32 kept;		/* instances that belong to an event being tried */
	u32 ntries;
	struct known *known;	/* machine.known, by event being tried */
};

/* How certificates use what they remember; all but USUAL are for tests. */
enum mode {
	USUAL,
	BRUTE,		/* not at all: every nesting is walked */
	CHECKED,	/* and ask all again where a part was asked; overflow: the answers differ */
};

/* Totals that Python reads in one go. */
struct totals {
	u64 guest_insns, interleavings, executed, boundaries, hits, misses;
	u64 worst_commit, lowest_main, findings, emitted, overflow, broken_slot, broken_where, ends, told;
};

/* Entries of a copy of machine.known: whole rows. */
static inline size_t known_size(const struct image *im)
{
	const size_t n = sizeof(row) / sizeof(struct known);

	return (im->npages + n - 1) / n * n;
}

bool free_cells(struct search *s, struct scope *root, u32 slot, struct free_register *f);
int certify(struct search *s, const u64 *regs, u32 vector, u32 expect_df, u32 no_stack);
bool holds_for(struct search *s, const u64 *regs);
int enumerate(struct search *s, const u64 *regs, u32 expect_df, u32 no_stack);
int follow_schedule(struct search *s, const u64 *regs, u32 expect_df, u32 no_stack, const struct event *events, u32 n);

#endif
