/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Runs a piece of entry code as user code: from behind its last privileged
 * instruction to its commit label, on memory laid out like its stacks.  The copy of
 * the label is overwritten with a jump back to here.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static void *volatile saved_rsp;

/* Seconds for `loops` runs; negative: it cannot be done here. */
__attribute__((visibility("default")))
double native_loop(const uint8_t *text, uint64_t text_size, uint64_t start, uint64_t label, uint64_t data_size,
		   uint64_t rsp, const uint8_t *frame, uint64_t frame_size, uint64_t loops);

double native_loop(const uint8_t *text, uint64_t text_size, uint64_t start, uint64_t label, uint64_t data_size,
		   uint64_t rsp, const uint8_t *frame, uint64_t frame_size, uint64_t loops)
{
#ifdef __x86_64__
	uint8_t *code = mmap(NULL, text_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *data = mmap(NULL, data_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct timespec t0, t1;
	void *volatile entry, *volatile sp;

	if (code == MAP_FAILED || data == MAP_FAILED)
		return -1;
	memcpy(code, text, text_size);
	/* movabs $back, %r11; jmp *%r11: R11 is clear by now, and clobbered below */
	memcpy(code + label, "\x49\xbb", 2);
	{
		void *back;

		__asm__("leaq .Lnative_back(%%rip), %0" : "=r"(back));
		memcpy(code + label + 2, &back, 8);
	}
	memcpy(code + label + 10, "\x41\xff\xe3", 3);
	memcpy(data + rsp, frame, frame_size);
	if (mprotect(code, text_size, PROT_READ | PROT_EXEC))
		return -1;
	entry = code + start;
	sp = data + rsp;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
	for (volatile uint64_t i = 0; i < loops; i++) {
		__asm__ volatile(
			"pushq %%rbp\n\tpushq %%rbx\n\t"
			"movq %%rsp, %[save]\n\t"
			"movq %[sp], %%rsp\n\t"
			"jmp *%[entry]\n"
			".Lnative_back:\n\tmovq %[save], %%rsp\n\t"
			"popq %%rbx\n\tpopq %%rbp\n\t"
			: [save] "+m"(saved_rsp)
			: [sp] "r"(sp), [entry] "r"(entry)
			: "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc",
			  "memory");
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
	munmap(code, text_size);
	munmap(data, data_size);
	return (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
#else
	return -1;
#endif
}
