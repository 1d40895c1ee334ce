/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Executes one instruction at a time on this machine's own processor.
 *
 * Requests and replies lie in memory shared with the parent (whose descriptor is the argument); a count on standard input
 * says how many are there, and one on standard output that they are done.  The registers are loaded by the
 * return from a signal handler, with TF set; after one instruction (of a repeated string instruction: one
 * iteration) the #DB, or whatever it raised instead, ends it.  Memory for operands is the arena, at a fixed
 * address with nothing mapped around it.  Its users send unprivileged instructions of a white list only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <asm/prctl.h>
#include <ucontext.h>
#include <unistd.h>

#include "host.h"

#define HWCAP2_FSGSBASE 2
#define TF 0x100

/* Registers in the order of their encoding, as the requests have them. */
static const int order[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static struct host_request *in;
static struct host_reply *out;
static gregset_t saved;

static void begin(int number, siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number, (void)info;
	memcpy(saved, g, sizeof(saved));
	for (int i = 0; i < 16; i++)
		g[order[i]] = (greg_t)in->gpr[i];
	g[REG_RIP] = (greg_t)in->rip;
	g[REG_EFL] = (greg_t)(((uint64_t)g[REG_EFL] & ~SETTABLE) | (in->rflags & SETTABLE) | TF);
}

static void end(int number, siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number, (void)info;
	for (int i = 0; i < 16; i++)
		out->gpr[i] = (uint64_t)g[order[i]];
	out->rip = (uint64_t)g[REG_RIP];
	out->rflags = (uint64_t)g[REG_EFL] & SETTABLE;
	out->vector = (uint64_t)g[REG_TRAPNO];
	out->error = (uint64_t)g[REG_ERR];
	out->address = (uint64_t)g[REG_CR2];
	memcpy(g, saved, sizeof(saved));
}

static int move(int write_it, void *data, size_t size)
{
	for (uint8_t *p = data; size;) {
		ssize_t n = write_it ? write(1, p, size) : read(0, p, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		p += n;
		size -= (size_t)n;
	}
	return 1;
}

/* arch_prctl takes addresses of user mode only, but knows a processor without FSGSBASE. */
static void set_gsbase(uint64_t base)
{
	if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)
		__asm__ volatile("wrgsbase %0" : : "r"(base));
	else
		syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}

static uint64_t get_gsbase(void)
{
	uint64_t base;

	if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)
		__asm__ volatile("rdgsbase %0" : "=r"(base));
	else
		syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	return base;
}

static uint8_t *map(uint64_t at, size_t size, int protection)
{
	return mmap((void *)at, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
}

int main(int argc, char **argv)
{
	static uint8_t stack[1 << 16];
	static const int ends[] = { SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE };
	struct rlimit none = { 0, 0 };
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	struct host_shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, argc > 1 ? atoi(argv[1]) : -1, 0);
	uint8_t *code, *arena;
	uint32_t count;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setrlimit(RLIMIT_CORE, &none);
	code = map(CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
	arena = map(ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE);
	if (shared == MAP_FAILED || (uint64_t)code != CODE || (uint64_t)arena != ARENA ||
	    sigaltstack(&alternate, NULL))
		return 2;
	memset(code, 0xcc, CODE_SIZE); /* INT3 */
	sigfillset(&action.sa_mask);
	action.sa_sigaction = begin;
	sigaction(SIGUSR1, &action, NULL);
	action.sa_sigaction = end;
	for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
		sigaction(ends[i], &action, NULL);
		sigdelset(&action.sa_mask, ends[i]);
	}
	while (move(0, &count, sizeof(count)) && count <= HOST_BATCH) {
		for (uint32_t i = 0; i < count; i++) {
			in = &shared->request[i];
			out = &shared->reply[i];
			memcpy(arena, shared->background, ARENA_SIZE);
			for (uint32_t k = 0; k < in->nspots && k < MAX_SPOTS; k++)
				if (in->spots[k].at <= ARENA_SIZE - 16)
					memcpy(arena + in->spots[k].at, in->spots[k].bytes, 16);
			memcpy((void *)in->rip, in->code, sizeof(in->code));
			set_gsbase(in->gsbase);
			raise(SIGUSR1);
			out->gsbase = get_gsbase();
			memset((void *)in->rip, 0xcc, sizeof(in->code));
			out->hash = arena_hash(arena);
		}
		memcpy(shared->arena, arena, ARENA_SIZE);
		if (!move(1, &count, sizeof(count)))
			break;
	}
	return 0;
}
