/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One instruction in one state, in each engine that can: the native model compiled and interpreted, Unicorn
 * (by pointers to its functions), the processor (through the helper's shared memory).
 *
 * The result is the compiled code's; where that refuses, the interpreter's.  The first difference is kept,
 * with what each of the two says.
 */
#include <errno.h>
#include <unistd.h>

#include "search.h"
#include "host.h"

#define EXPORT __attribute__((visibility("default")))

enum { TRY_UNICORN = 1, TRY_HOST = 2, OPEN_MEMORY = 4, SYSTEM_STATE = 8, REPEATS = 16, WHILE_EQUAL = 32,
       WHILE_UNEQUAL = 64 };
enum { SAME, INTERPRETER, UNICORN, HOST };
enum { FLAGS_PLACE = 1000, MEMORY_PLACE, STATUS_PLACE, VECTOR_PLACE };
enum { STOPPED = 100 };

struct request {
	u64 r[NSLOTS];
	u64 open;		/* slots that the manuals leave undefined */
	u64 va;
	u32 index, size, how, nspots;
	struct spot spots[MAX_SPOTS];
	u8 code[16];
};

struct outcome {
	u64 r[NSLOTS], hash, ours, theirs;
	u32 status, property, refused, engine, place, asked;
};

struct unicorn {
	void *engine;
	int (*write)(void *, int *, void *const *, int);
	int (*read)(void *, int *, void **, int);
	int (*start)(void *, u64, u64, u64, size_t);
	int (*write_one)(void *, int, const void *);
	int (*read_one)(void *, int, void *);
	u8 *arena;
	int id[20];		/* GPRs, FSBASE, GSBASE, EFLAGS, RIP */
	int msr, cr2, cr3;
};

struct driver {
	struct search *s;
	const struct compiled *code;
	u8 background[ARENA_SIZE];
	struct unicorn unicorn;
	struct host_shared *host;
	int to, from;
};

struct msr {
	u32 number;
	u64 value;
};

EXPORT struct search *atomicist_new(const struct image *im);
EXPORT void *crosscheck_new(const struct image *im, const u8 *background, const struct compiled *code);
EXPORT struct unicorn *crosscheck_unicorn(struct driver *d);
EXPORT void crosscheck_host(struct driver *d, struct host_shared *shared, int to, int from);
EXPORT u64 crosscheck_hash(const u8 *arena);
EXPORT int crosscheck_run(struct driver *d, const struct request *in, struct outcome *out, u32 count);

EXPORT void *crosscheck_new(const struct image *im, const u8 *background, const struct compiled *code)
{
	struct driver *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->s = atomicist_new(im);
	d->code = code;
	memcpy(d->background, background, ARENA_SIZE);
	return d->s ? d : NULL;
}

EXPORT struct unicorn *crosscheck_unicorn(struct driver *d)
{
	return &d->unicorn;
}

EXPORT void crosscheck_host(struct driver *d, struct host_shared *shared, int to, int from)
{
	d->host = shared;
	d->to = to;
	d->from = from;
	memcpy(shared->background, d->background, ARENA_SIZE);
}

EXPORT u64 crosscheck_hash(const u8 *arena)
{
	return arena_hash(arena);
}

/* The arena's pages are the first of the image. */
static void fill(struct driver *d, const struct request *in, u8 *arena)
{
	memcpy(arena, d->background, ARENA_SIZE);
	for (u32 i = 0; i < in->nspots; i++)
		memcpy(arena + in->spots[i].at, in->spots[i].bytes, 16);
}

static void differ(struct outcome *out, u32 engine, u32 place, u64 ours, u64 theirs)
{
	if (out->engine)
		return;
	out->engine = engine;
	out->place = place;
	out->ours = ours;
	out->theirs = theirs;
}

static void ready(struct driver *d, const struct request *in)
{
	struct machine *m = d->s->m;

	memcpy(m->r, in->r, sizeof(m->r));
	fill(d, in, (u8 *)m->mem);
	((struct image *)m->im)->kernel_gsbase = in->r[REG_GSBASE];
	m->nlog = m->nfindings = m->ninst = 0;
	m->early = m->shadow = false;
	m->root = 0;
	m->note = 0;
}

static void native(struct driver *d, const struct request *in, struct outcome *out)
{
	struct machine *m = d->s->m;
	u64 r[NSLOTS], hash = 0;
	int st = REFUSES, again;

	memset(out, 0, sizeof(*out));
	if (d->code->one[in->index]) {
		ready(d, in);
		m->r[REG_RIP] += in->size;
		st = d->code->one[in->index](m);
		memcpy(r, m->r, sizeof(r));
		hash = arena_hash((u8 *)m->mem);
	}
	out->refused = st == REFUSES;
	ready(d, in);
	again = step(m);
	/* what a return from an event means is the observer's business: here only what it leaves */
	if (m->note & (1u << NOTE_IRET | 1u << NOTE_SYSRET))
		again = RETURNS;
	if (st == REFUSES) {
		memcpy(r, m->r, sizeof(r));
		hash = arena_hash((u8 *)m->mem);
		st = again == GOES_ON || again == RETURNS ? again : STOPPED;
		if (m->nfindings)
			out->property = m->findings[0].property;
	} else {
		if (again != st)
			differ(out, INTERPRETER, STATUS_PLACE, (u64)st, (u64)again);
		for (u32 slot = 0; slot < NSLOTS; slot++)
			if (m->r[slot] != r[slot] && !(slot == REG_SHADOW && !r[slot]))
				differ(out, INTERPRETER, slot, r[slot], m->r[slot]);
		if (arena_hash((u8 *)m->mem) != hash)
			differ(out, INTERPRETER, MEMORY_PLACE, hash, arena_hash((u8 *)m->mem));
	}
	memcpy(out->r, r, sizeof(r));
	out->hash = hash;
	out->status = (u32)st;
}

/* Flags as RFLAGS, and the bits of it that the two may differ in. */
static u64 flags_of(const u64 *r)
{
	u64 flags = RFLAGS_FIXED;

	for (u32 i = 0; i < NFLAGS; i++)
		flags |= r[flag_slot[i]] << flag_bit[i];
	return flags;
}

static u64 open_flags(u64 open)
{
	u64 flags = 0;

	for (u32 i = 0; i < NFLAGS; i++)
		if (open >> flag_slot[i] & 1)
			flags |= (u64)((1u << slot_bits[flag_slot[i]]) - 1) << flag_bit[i];
	return flags;
}

static bool ended(const struct request *in, u64 rcx, u64 flags)
{
	bool zero = flags >> 6 & 1;

	return !rcx || (in->how & WHILE_EQUAL && !zero) || (in->how & WHILE_UNEQUAL && zero);
}

static void compare_registers(const struct request *in, struct outcome *out, u32 engine, const u64 *theirs,
			      u64 their_flags, u64 their_rip, u64 mask)
{
	const u32 bases[2] = { REG_FSBASE, REG_GSBASE };
	u64 ours = flags_of(out->r);

	for (u32 i = 0; i < 16; i++)
		if (theirs[i] != out->r[i] && !(in->open >> i & 1))
			differ(out, engine, i, out->r[i], theirs[i]);
	for (u32 i = engine == HOST; i < 2; i++)
		if (theirs[16 + i] != out->r[bases[i]])
			differ(out, engine, bases[i], out->r[bases[i]], theirs[16 + i]);
	mask &= ~open_flags(in->open);
	if ((ours ^ their_flags) & mask)
		differ(out, engine, FLAGS_PLACE, ours & mask, their_flags & mask);
	if (their_rip != out->r[REG_RIP])
		differ(out, engine, REG_RIP, out->r[REG_RIP], their_rip);
}

#define ERR_FETCH_UNMAPPED 8
#define ERR_FETCH_PROT 14
/* CF PF AF ZF SF IF DF OF IOPL NT AC ID */
#define SYSTEM_FLAGS 0x247ed5ull

static void unicorn(struct driver *d, const struct request *in, struct outcome *out)
{
	struct unicorn *u = &d->unicorn;
	struct msr msr = { 0xc0000102, in->r[REG_KERNEL_GSBASE] };
	u64 value[20], flags = flags_of(in->r);
	void *place[20];
	int error;

	for (u32 i = 0; i < 20; i++)
		place[i] = &value[i];
	memcpy(value, in->r, 16 * 8);
	value[16] = in->r[REG_FSBASE];
	value[17] = in->r[REG_GSBASE];
	value[18] = flags;
	fill(d, in, u->arena);
	u->write(u->engine, u->id, place, 19);
	if (in->how & SYSTEM_STATE) {
		u->write_one(u->engine, u->cr2, &in->r[REG_CR2]);
		u->write_one(u->engine, u->cr3, &in->r[REG_CR3]);
		u->write_one(u->engine, u->msr, &msr);
	}
	error = u->start(u->engine, in->va, 0, 0, 1);
	u->read(u->engine, u->id, place, 20);
	if (in->how & REPEATS && value[19] == in->va && ended(in, value[1], value[18])) {
		error = u->start(u->engine, in->va, 0, 0, 1);
		u->read(u->engine, u->id, place, 20);
	}
	out->asked |= 1u << UNICORN;
	if (error && error != ERR_FETCH_UNMAPPED && error != ERR_FETCH_PROT) {
		differ(out, UNICORN, VECTOR_PLACE, 0, (u64)error);
		return;
	}
	compare_registers(in, out, UNICORN, value, value[18], value[19],
			  in->how & SYSTEM_STATE ? SYSTEM_FLAGS : SETTABLE);
	if (in->how & SYSTEM_STATE) {
		u64 cr2 = 0, cr3 = 0;

		u->read_one(u->engine, u->cr2, &cr2);
		u->read_one(u->engine, u->cr3, &cr3);
		u->read_one(u->engine, u->msr, &msr);
		if (cr2 != out->r[REG_CR2])
			differ(out, UNICORN, REG_CR2, out->r[REG_CR2], cr2);
		if (cr3 != out->r[REG_CR3])
			differ(out, UNICORN, REG_CR3, out->r[REG_CR3], cr3);
		if (msr.value != out->r[REG_KERNEL_GSBASE])
			differ(out, UNICORN, REG_KERNEL_GSBASE, out->r[REG_KERNEL_GSBASE], msr.value);
	}
	if (!(in->how & OPEN_MEMORY) && arena_hash(u->arena) != out->hash)
		differ(out, UNICORN, MEMORY_PLACE, out->hash, arena_hash(u->arena));
}

static bool move(int fd, bool write_it, u32 *count)
{
	ssize_t n;

	do
		n = write_it ? write(fd, count, sizeof(*count)) : read(fd, count, sizeof(*count));
	while (n < 0 && errno == EINTR);
	return n == sizeof(*count);
}

static bool canonical(u64 va)
{
	return (u64)((int64_t)va >> 47) + 1 <= 1;
}

/* All requests of a batch that may run there; false if the helper died. */
static bool host(struct driver *d, const struct request *in, struct outcome *out, u32 count)
{
	u32 which[HOST_BATCH], n = 0, done;

	for (u32 i = 0; i < count; i++) {
		struct host_request *h = &d->host->request[n];

		if (!(in[i].how & TRY_HOST) || out[i].status == STOPPED)
			continue;
		memcpy(h->gpr, in[i].r, sizeof(h->gpr));
		h->rflags = flags_of(in[i].r);
		h->gsbase = in[i].r[REG_GSBASE];
		h->rip = in[i].va;
		memcpy(h->code, in[i].code, sizeof(h->code));
		h->nspots = in[i].nspots;
		memcpy(h->spots, in[i].spots, sizeof(h->spots));
		which[n++] = i;
	}
	done = n;
	if (n && (!move(d->to, true, &done) || !move(d->from, false, &done) || done != n))
		return false;
	for (u32 k = 0; k < n; k++) {
		const struct host_reply *h = &d->host->reply[k];
		const struct request *i = &in[which[k]];
		struct outcome *o = &out[which[k]];
		u64 value[18];

		o->asked |= 1u << HOST;
		/* 1: the single step, so all went well; a branch to nowhere faults there, in the model at the fetch */
		if (h->vector == 13 && !canonical(o->r[REG_RIP]))
			continue;
		if (h->vector != 1) {
			differ(o, HOST, VECTOR_PLACE, 0, h->vector);
			continue;
		}
		memcpy(value, h->gpr, sizeof(h->gpr));
		value[16] = 0;
		value[17] = h->gsbase;
		compare_registers(i, o, HOST, value, h->rflags, h->rip, SETTABLE);
		if (!(i->how & OPEN_MEMORY) && h->hash != o->hash)
			differ(o, HOST, MEMORY_PLACE, o->hash, h->hash);
	}
	return true;
}

/* 1: done; 0: the helper died. */
EXPORT int crosscheck_run(struct driver *d, const struct request *in, struct outcome *out, u32 count)
{
	for (u32 i = 0; i < count; i++) {
		native(d, &in[i], &out[i]);
		if (in[i].how & TRY_UNICORN && out[i].status != STOPPED && d->unicorn.engine)
			unicorn(d, &in[i], &out[i]);
	}
	return !d->host || count > HOST_BATCH || host(d, in, out, count);
}
