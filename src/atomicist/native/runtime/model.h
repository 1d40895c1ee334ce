/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The data of the native runtime: IR tables, memory, machine, observer.
 *
 * Everything that has a meaning (register numbers, operation codes, the flag
 * table) comes from tables.h, which is printed from the Python tables that
 * define it.  Addresses are guest addresses; a `loc` numbers an 8-byte place:
 * register slots first, then the words of all pages, one after another.
 */
#ifndef ATOMICIST_MODEL_H
#define ATOMICIST_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tables.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef unsigned __int128 u128;

#define PAGE 4096u
#define WORDS (PAGE / 8)
#define NVEC 4			/* NMI, DB, MC, VC: the events of the search */
#define MAX_CHAIN 12
#define MAX_TEMPS 256
#define TLB 256u

struct var {
	u64 val;		/* constant, register byte offset, temporary */
	u32 space;
	u32 size;
};

struct op {
	u32 code;
	u32 text;
	struct var out;
	struct var in[3];
};

struct insn {
	u64 va;
	u32 first;
	u32 count;
	u32 size;
	u32 flow;
	u32 place;		/* enum place */
	u32 handler;		/* vector + 1 of a handler that starts here */
};

/* What a location in the image means to the observer. */
enum place {
	IN_ENTRY	= 1,	/* entry text: may be interrupted and replaced */
	COMMITTED	= 2,	/* label: from here the IST stacks are free */
	DELIBERATE	= 4,	/* part of a deliberate double fault */
	NO_ROOM		= 8,	/* ... for want of room on the main stack */
	RET_LEFT	= 16,	/* of a sequence that must not be resumed a RET is left */
	LEA_LEFT	= 32,	/* ... and before it a LEA 8(%rsp), %rsp */
};

enum page_flags {
	KERNEL_ROOT	= 1,	/* mapped in the kernel's page tables */
	USER_ROOT	= 2,	/* mapped in the user's page tables too */
	USER_PAGE	= 4,	/* U/S bit: user memory */
	WRITABLE	= 8,
	EXECUTABLE	= 16,
	CONSTANT	= 32,	/* never written; same in all contexts */
	SCRATCH		= 64,	/* the entry may write here before its commit */
};

enum region_kind { OTHER, IST_STACK, MAIN_STACK, TASK_STACK, ENTRY_STACK, IRQ_STACK };

struct page {
	u64 base;
	u32 flags;
	u32 region;
	u32 rlimit[2];		/* by root: bytes [0, limit) may be read ... */
	u32 wlimit[2];		/* ... and written; 0: not mapped there */
};

struct region {
	u64 bottom;
	u64 top;
	u32 kind;
	u32 vector;		/* of an IST stack: its vector, or NVEC (#DF) */
	u64 live;		/* [live, top) belongs to the interrupted context */
};

struct gate {
	u32 first;		/* delivery microcode */
	u32 count;
	u32 number;		/* hardware vector */
	u32 present;
};

struct image {
	const struct op *ops;
	const struct insn *insns;
	u32 ninsns;
	u32 npages;
	u32 nregions;
	u32 ngates;
	const struct page *pages;
	const u64 *contents;	/* npages * WORDS */
	const struct region *regions;
	const struct gate *gates;	/* NVEC events first, then faults */
	u64 user_root_bit;	/* of CR3; 0 without PTI */
	u64 kernel_gsbase;
	u64 kernel_cr3;
	u64 kernel_spec_ctrl;	/* what handlers run with, where `ibrs` */
	u32 claims;		/* the image has COMMITTED labels */
	u32 reserve;		/* bytes a handler may count on */
	u32 slot_bytes;
	u32 exit_bytes;		/* of the entry stack, below who is on it */
	u32 max_steps;
	u32 ibrs;
	u32 call_alignment;	/* of RSP + 8, where a handler starts */
};

/* One write that can be taken back, and what followed dependences there. */
struct undo {
	u64 old;
	u32 loc;
	u32 node;
	u32 scope;
	u32 version;
};

/* A value as a function of the state in which its scope began. */
struct node {
	u64 val;
	u64 va, vb;		/* inputs that are constants */
	u32 a, b;		/* inputs that are nodes; LEAF: a = loc, b = parent's node */
	u32 code;		/* CODE_*, or LEAF */
	u32 scope;
	u32 root;		/* to_root() + 1, once it is known */
	u8 size, sa, sb;
};

#define LEAF 0xffffu

/*
 * A node that nobody has asked for yet: most flags are never looked at, and are
 * overwritten.  Numbers with LAZY set stand for these, wherever a node is kept; what
 * is handed to shadow.c is made a node first, by force().
 */
struct lazy {
	u64 val;
	u64 va, vb;		/* values of the inputs */
	u32 a, b;
	u32 scope;
	u32 node;		/* once it is made, + 1 */
	u16 code;
	u16 depth;
	u8 size, sa, sb;
};

#define LAZY 0x80000000u
#define MAX_LAZY_DEPTH 64
#define MAX_LEAVES 6

/*
 * Part of the condition under which a run goes this way.
 *
 * VALUE: the node has this value.  ADDRESS: the node is an address that was used, or an
 * RSP that was met.  Inside a search both mean equality; but where an address is computed
 * from an interrupted RSP on the main stack, another RSP that shifts it along by the same
 * distance, and stays on that stack, gives the same run further up or down.
 */
enum constraint_kind { VALUE, ADDRESS };

struct constraint {
	u32 node;
	u32 kind;
	u32 nleaves;		/* places it reads, if no more than MAX_LEAVES */
	u32 leaf[MAX_LEAVES];
	u64 val;
	int64_t low, high;	/* of an ADDRESS: bytes used, from `val` on */
	u64 where;
	u64 seen;		/* signature of the last scope that inherited it */
};

/* "this place, whose value the result depends on, holds this" */
struct copied {
	u32 loc;
	u32 root;		/* node of scope 0 */
	u64 val;
	u32 last;		/* node that was last seen to have that root */
	u32 pad;
};

#define MAX_CONSTRAINTS 1024
#define MAX_COPIED 1024

struct scope {
	u32 id;
	u32 ncon;
	u32 ncop;
	struct scope *parent;
	struct constraint con[MAX_CONSTRAINTS];
	struct copied cop[MAX_COPIED];
};

struct instance {
	u32 vector;
	u32 handled;
	u32 abandoned;
	u32 gone;		/* its context no longer exists: see context() */
	u32 in_entry;		/* hit entry code of a kernel-mode context */
	u64 x[NSLOTS];		/* the context that it interrupted, and that is to be resumed */
	bool finished;		/* that is not where it was hit: see finish() */
	u64 hit_rip, hit_rsp;
	u32 live_region;	/* region whose live bound this event moved, or ~0 */
	u64 old_live;
	u64 error;
	u64 regs;		/* where the entry pushes its pt_regs: around the frame */
};

/* How a run ended, and the properties of the specification. Keep in step with
 * atomicist.spec.properties, which prints tables.h: P_* come from there. */
enum status { GOES_ON, DONE, FOUND, DOUBLE_FAULT, COMMIT, RETURNS, REFUSES };

struct event {
	u32 vector;
	u32 steps;		/* instructions since the event before */
	u64 rip;
};

struct finding {
	u32 property;
	u32 nevents;
	struct event events[MAX_CHAIN];
	u64 rip;
	u64 expected;
	u64 found;
	u32 reg;		/* slot concerned, or NSLOTS */
	u32 text;		/* text of an UNKNOWN operation, or 0 */
	u64 address;
};

struct temp {
	u128 v;
	u32 node;
};

/* A context that no longer exists: nothing can return to it. */
static const u64 no_context[NSLOTS] __attribute__((unused));

/* The context that `in` interrupted. */
static inline const u64 *context(const struct instance *in)
{
	return in->gone ? no_context : in->x;
}

/* Where RSP was when `in` hit. */
static inline u64 hit_rsp(const struct instance *in)
{
	return in->finished && !in->gone ? in->hit_rsp : context(in)[REG_RSP];
}

struct machine;

/*
 * The image as machine code (native/codegen.py), for searches without dependences.
 * `run` executes at most `fuel` instructions and says GOES_ON where it stopped, or
 * RETURNS behind an IRET or SYSRET, for at_return() to judge.  `one` has for each
 * instruction, in the image's order, a function that executes it alone, or NULL: RIP
 * is to point behind it, and is written by a branch only.  `one` and `deliver` say
 * GOES_ON or, with nothing changed, REFUSES; `one` says RETURNS too.
 */
typedef int one_fn(struct machine *m);

struct compiled {
	int (*run)(struct machine *m, u64 fuel);
	one_fn *const *one;
	int (*deliver)(struct machine *m, u32 index, u64 error);
};

/* Of as many slots as `hash_shift` leaves, the last. */
#define HASH_MASK(m)	(~0u >> (m)->hash_shift)
#define HASH_SHIFT_FEW	16	/* 65,536 slots */
#define HASH_SHIFT_MOST	10

/* A page with instructions. */
struct code_page {
	u64 number;
	u32 *index;		/* by byte: number of the instruction + 1, or 0; NULL: no such page */
};

/*
 * What is known of a page.  Most of what is poisoned is rolled back without anybody having
 * looked: below `floor` it is poison whatever the memory holds, until materialize().
 */
struct known {
	u16 clean;		/* words from its start that are poison */
	u16 floor;		/* bytes, no more than those words, in whole eights of words */
};

struct machine {
	const struct image *im;
	const struct compiled *code;	/* or NULL */
	u64 *mem;
	u32 *mnode;
	u32 *mscope;
	struct page *pages;
	struct region *regions;
	struct region *main;	/* or NULL */
	struct region *entry;	/* the entry stack, or NULL */
	u32 tlb[TLB];
	struct region *region_tlb[TLB];
	bool apart;		/* no two regions overlap */
	u32 root;
	u64 r[NSLOTS];
	u32 rnode[NSLOTS];
	u32 rscope[NSLOTS];
	struct temp tmp[MAX_TEMPS];
	struct undo *log;	/* with shadow */
	u32 nlog, caplog;
	u64 *saved;		/* without: see take_back() */
	u32 nsaved, capsaved;
	struct known *known;	/* by page (without shadow) */

	bool shadow;		/* follow dependences */
	bool early;		/* before the commit of the ongoing entry */
	struct scope *scope;
	struct scope *outer;	/* scope 0, whose id is 1 */
	u32 next_scope;
	struct node *nodes;
	u32 nnodes, capnodes;
	struct lazy *lazies;
	u32 nlazies, caplazies;
	u64 *node_hash;		/* tag and index of a node, or 0 */
	u32 hash_shift;		/* its slot is the tag without so many low bits */
	u32 *version;		/* by place: `clock` when it was written last */
	u32 clock;
	u32 *journal;		/* by clock: the place written then */
	u32 capjournal;
	u32 *depended;		/* by place: the scope that last noted it as copied */

	struct instance inst[MAX_CHAIN];
	u32 ninst;
	u32 owed[NVEC];		/* events that returned unhandled */
	u32 spare;		/* NMIs served by a handler that began after them */
	struct event sched[MAX_CHAIN];
	u32 nsched;
	u32 steps;
	u32 note;
	u64 pc;			/* of the instruction under way */
	struct finding *findings;
	u32 nfindings, capfindings;
	u8 *ran;		/* by instruction: bit 0 executed, 1 fell through, 2 went elsewhere */
	u64 ignored;		/* bit set of properties whose violation ends a run silently */
	struct code_page *code_pages;	/* hashed by number */
	u32 *insn_index;		/* of all of them */
	u32 code_mask;
	u32 expect_df;		/* this context contradicts itself: only #DF is right */
	u64 stray[4];		/* words stored where an event may overwrite them */
	u32 nstray;
	u32 refused_levels;	/* bit n: n levels were refused for want of room */
	u32 absolute;		/* bit set of region kinds that were used by a fixed address */
	u32 no_stack;		/* the context's RSP is not a kernel stack's (gap) */
	u32 overflow;		/* source line of a table that was too small, or 0 */

	u64 *delivered, *offered;	/* by instruction and event: how often it came there, one by one and in all */
	u64 guest_insns;
	u64 interleavings;
	u64 executed;
	u64 boundaries;
	u32 worst_commit;
	u64 lowest_main;
};

/*
 * The log of writes without shadow: words as they were, behind them where they belong and how
 * many they are, one or rows.  Rows may hold more words than are written then, below them,
 * and so of a page of others; in front of the memory there is room for that.
 */
#define ROW 4u
#define IN_FRONT ROW
typedef u64 row __attribute__((vector_size(8 * ROW), aligned(2), may_alias));

static inline u64 saved_head(u32 loc, u32 n)
{
	return (u64)loc << 32 | n;
}

/* Copy a register file; libc would be called for that, and take longer. */
static inline void copy_file(u64 *to, const u64 *from)
{
	u32 i;

#pragma GCC unroll 16
	for (i = 0; i + ROW <= NSLOTS; i += ROW)
		*(row *)(to + i) = *(const row *)(from + i);
	for (; i < NSLOTS; i++)
		to[i] = from[i];
}

/* Undo what was logged between `first` and `u`, the last first. */
static inline void take_back(u64 *mem, const u64 *u, const u64 *first)
{
	while (u > first) {
		const u64 head = *--u;
		const u32 n = (u32)head;
		u64 *to = mem + (int64_t)(head >> 32) - (int64_t)NSLOTS;

		u -= n;
		if (n == 1) {
			*to = *u;
			continue;
		}
		for (const u64 *from = u, *const end = u + n; from < end; from += ROW, to += ROW)
			*(row *)to = *(const row *)from;
	}
}

/* Is that within a sequence that must not be resumed? */
static inline bool unfinished(const struct insn *in)
{
	return in && in->place & (RET_LEFT | LEA_LEFT);
}

static inline u32 tlb_slot(u64 va)
{
	return (u32)(va >> 12 ^ va >> 21) & (TLB - 1);
}

/* `loc` is written now. */
static inline void touch(struct machine *m, u32 loc)
{
	m->version[loc] = ++m->clock;
	if (m->clock < m->capjournal)
		m->journal[m->clock] = loc;
}

/* memory.c */
int search_page(struct machine *m, u64 va);
struct region *search_region(struct machine *m, u64 va);
void materialize(struct machine *m, u32 page, u32 offset);
void poison(struct machine *m, u64 from, u64 to);
void set_live(struct machine *m, struct region *reg, u64 live);
void rollback(struct machine *m, u32 mark);
bool log_word(struct machine *m, u32 loc);
bool read_word(struct machine *m, u64 va, u64 *val);

/* shadow.c */
u32 leaf(struct machine *m, u32 loc);
u32 place_node(struct machine *m, u32 loc);
u32 force(struct machine *m, u32 node);
u32 later(struct machine *m, u32 code, u32 size, u32 a, u64 va, u32 sa,
	  u32 b, u64 vb, u32 sb, u64 val);
u32 mk_node(struct machine *m, u32 code, u32 size, u32 a, u64 va, u32 sa,
	    u32 b, u64 vb, u32 sb, u64 val);
void require(struct machine *m, u32 node, u64 val);
void require_address(struct machine *m, u32 node, u64 va);
void constrain(struct machine *m, u32 kind, u32 node, u64 val, int64_t low, int64_t high);
void used_at(struct machine *m, u64 low, u64 high);
void require_origin(struct machine *m, u32 slot, u64 val);
void depend(struct machine *m, u32 node);
u32 to_parent(struct machine *m, u32 node);
u32 to_root(struct machine *m, u32 node);
u64 value_at(struct machine *m, u32 loc);
u64 evaluate_now(struct machine *m, u32 node);
u64 evaluate_with(struct machine *m, u32 node, u32 loc, u64 val);
u64 evaluate_in(struct machine *m, u32 node, const u64 *regs);
bool is_origin(struct machine *m, u32 node, u32 loc);
bool is_origin_bit(struct machine *m, u32 node, u32 bit, u32 loc);
bool is_constant_bit(struct machine *m, u32 node, u32 bit, u32 loc);
void leaves(struct machine *m, u32 node, void (*fn)(void *, u32 loc), void *arg);
u32 substitute_now(struct machine *m, u32 node, u64 *val);
u64 apply(u32 code, u64 a, u32 sa, u64 b, u32 sb, u32 size);

/* The page that holds `va`, -1 if there is none. */
static inline int find_page(struct machine *m, u64 va)
{
	const u32 i = m->tlb[tlb_slot(va)];

	return i < m->im->npages && m->pages[i].base == (va & ~(u64)(PAGE - 1)) ? (int)i : search_page(m, va);
}

/* The first region that holds `va`, or NULL. */
static inline struct region *region_of(struct machine *m, u64 va)
{
	struct region *reg = m->region_tlb[tlb_slot(va)];

	return reg && va >= reg->bottom && va < reg->top ? reg : search_region(m, va);
}

static inline struct code_page *code_page(const struct machine *m, u64 va)
{
	const u64 number = va / PAGE;
	u32 i = (u32)(number * 0x9e3779b97f4a7c15ull >> 40) & m->code_mask;

	while (m->code_pages[i].index && m->code_pages[i].number != number)
		i = (i + 1) & m->code_mask;
	return &m->code_pages[i];
}

/* The instruction at `va`, or NULL. */
static inline const struct insn *insn_at(const struct machine *m, u64 va)
{
	const struct code_page *page = code_page(m, va);
	const u32 i = page->index ? page->index[va & (PAGE - 1)] : 0;

	return i ? &m->im->insns[i - 1] : NULL;
}

/* exec.c */

/* One more event `vector` at `in`, in the table `counts` of the machine. */
static inline void count_event(const struct machine *m, u64 *counts, const struct insn *in, u32 vector)
{
	if (in)
		counts[(u64)(in - m->im->insns) * NVEC + vector]++;
}
int step(struct machine *m);
int deliver(struct machine *m, u32 vector, u64 error);

/* observe.c */
int report(struct machine *m, u32 property, u64 address, u32 reg, u64 expected, u64 found);
int push_event(struct machine *m, u32 vector);
int at_handler(struct machine *m, u32 vector);
int check_committed(struct machine *m);
int at_return(struct machine *m);
void begin(struct machine *m, const u64 *regs);
void start_live(struct machine *m);
bool no_room_for(struct machine *m, u64 rsp, u32 levels);
struct region *main_stack(struct machine *m);
int fault(struct machine *m, u32 number, u64 error, u64 address);
u64 pack_flags(const u64 *r);

#define MASK(size) ((size) >= 8 ? ~0ull : (1ull << (8 * (size))) - 1)
#define POISON 0xdead57ac00000000ull

#endif
