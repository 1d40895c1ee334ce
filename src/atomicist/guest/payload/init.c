// SPDX-License-Identifier: GPL-2.0-only
/*
 * The first process of a guest under test. It takes commands from the second serial port, one a line, and
 * answers each with one line:
 *
 *	hello			{"cpus": 2, "fsgsbase": 1, "version": "6.1.192"}
 *	start KINDS [CPU]	a worker on each CPU, or only on that one; KINDS is a sum of 1 hold registers, 2 trace
 *				with TF, 4 hardware breakpoints and watchpoints, 8 stay in system calls; their process
 *				ids as a JSON array
 *	stop			the workers end; their sums as JSON
 *	quiet			nothing more on the console, not even a panic
 *	count NMI|MCE		of /proc/interrupts, one number for each CPU, as a JSON array
 *	file PATH		the first 2000 bytes of a file, as a JSON string
 *	write PATH TEXT		writes to a file; "ok"
 *	stacks			reads every /proc/PID/stack: {"tasks": 50, "empty": 2, "frames": 300, "odd": 0,
 *				"ends": ["ret_from_fork+0x1f/0x30", ...]}: how many, with nothing in them, lines that
 *				are a frame, lines that are not, and what the last lines were
 *	chains NAME OFFSET MS	stays in system calls for so long; the first call chains that perf has taken of it,
 *				where the kernel was at NAME + OFFSET, as JSON: [["0x1f", ...], ...]
 *	spin			never answers: a user context on CPU 0 that only runs in registers
 *	exit N			writes N to isa-debug-exit, which ends QEMU
 *
 * Nothing is judged by what appears on a console. This process stays on CPU 0, so that it answers while another CPU
 * is held up.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define EXIT_PORT 0xf4
#define MAX_CPUS 8
#define ROUNDS 20000
#define TRACED 6
#define HWCAP2_FSGSBASE 2

enum { HOLD = 1, TRACE = 2, BREAK = 4, CALL = 8 };

unsigned long hold_registers(unsigned long rounds);
void breakpoint_here(void);
void run_traced(void);
void spin_forever(void);
extern unsigned long hold_found, hold_gsbase, hold_fsgsbase, hold_pid;

/* What a worker did, and saw; in memory that all processes share. */
struct tally {
	unsigned long rounds, traced, traps, executed, executions, written, writes, called, calls, copied, copies;
	unsigned long changed, found;
	char trouble[96];
};

static volatile int *halt;
static struct tally *tallies;
static volatile unsigned long traps;
static volatile unsigned long watched __attribute__((aligned(8)));
static unsigned long copied_to __attribute__((aligned(8)));
static int port;

static void say(const char *format, ...)
{
	char line[16384];
	va_list args;
	int n, at = 0;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	while (at < n) {
		int done = write(port, line + at, n - at);

		if (done <= 0)
			break;
		at += done;
	}
}

static void on_trap(int number)
{
	(void)number;
	traps++;
}

static int on_address(unsigned long address, int type, int length)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_BREAKPOINT, .size = sizeof(attr), .bp_type = type, .bp_addr = address, .bp_len = length,
	};

	return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static unsigned long counted(int fd)
{
	unsigned long value = 0;

	if (fd < 0 || read(fd, &value, sizeof(value)) != sizeof(value))
		return 0;
	return value;
}

static unsigned long kernel_symbol(const char *wanted)
{
	char line[256], name[128], type;
	unsigned long address, found = 0;
	FILE *file = fopen("/proc/kallsyms", "r");

	if (!file)
		return 0;
	while (!found && fgets(line, sizeof(line), file))
		if (sscanf(line, "%lx %c %127s", &address, &type, name) == 3 && !strcmp(name, wanted))
			found = address;
	fclose(file);
	return found;
}

static void use_breakpoints(struct tally *t, const int *fd, const int *pipes)
{
	unsigned long word = 0x5a5a;

	for (int i = 0; i < 8; i++) {
		breakpoint_here();
		t->executed++;
		watched = i;
		t->written++;
		syscall(SYS_getppid);
		t->called += fd[2] >= 0;
		if (write(pipes[1], &word, 8) == 8 && read(pipes[0], &copied_to, 8) == 8)
			t->copied++;
	}
	t->executions = counted(fd[0]);
	t->writes = counted(fd[1]);
	t->calls = counted(fd[2]);
	t->copies = counted(fd[3]);
}

/* A long system call, nearly all of it in the kernel. */
static void stay_in_the_kernel(void)
{
	static char text[65536];
	int fd = open("/proc/kallsyms", O_RDONLY);

	while (fd >= 0 && read(fd, text, sizeof(text)) > 0)
		;
	if (fd >= 0)
		close(fd);
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void work(int cpu, int kinds)
{
	struct tally *t = &tallies[cpu];
	int fd[4] = { -1, -1, -1, -1 }, pipes[2] = { -1, -1 }, errno_of_kernel;

	stay_on(cpu);
	signal(SIGTRAP, on_trap);
	hold_pid = syscall(SYS_getpid);
	hold_fsgsbase = !!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE);
	/* With FSGSBASE a user may choose the kernel's half, too. */
	hold_gsbase = hold_fsgsbase && (cpu & 1) == 0 ? 0xffff888000ba5e00 : 0x00007f00ba5e0000;
	if (hold_fsgsbase)
		asm volatile("wrgsbase %0" : : "r"(hold_gsbase));
	else
		syscall(SYS_arch_prctl, ARCH_SET_GS, hold_gsbase);
	if (kinds & BREAK) {
		unsigned long function = kernel_symbol("__x64_sys_getppid");

		if (pipe(pipes))
			snprintf(t->trouble, sizeof(t->trouble), "pipe: %s", strerror(errno));
		fd[0] = on_address((unsigned long)breakpoint_here, HW_BREAKPOINT_X, sizeof(long));
		fd[1] = on_address((unsigned long)&watched, HW_BREAKPOINT_W, HW_BREAKPOINT_LEN_8);
		fd[2] = on_address(function, HW_BREAKPOINT_X, sizeof(long));
		errno_of_kernel = errno;
		fd[3] = on_address((unsigned long)&copied_to, HW_BREAKPOINT_W, HW_BREAKPOINT_LEN_8);
		for (int i = 0; i < 4; i++)
			/* Without CONFIG_KPROBES the kernel takes no breakpoint on its own code. */
			if (fd[i] < 0 && (i != 2 || errno_of_kernel != EINVAL))
				snprintf(t->trouble, sizeof(t->trouble), "breakpoint %d: %s", i, strerror(errno));
	}
	while (!*halt && !t->changed) {
		if (kinds & HOLD) {
			t->changed = hold_registers(ROUNDS);
			t->found = hold_found;
			t->rounds += ROUNDS;
		}
		if (kinds & TRACE) {
			run_traced();
			t->traced += TRACED;
			t->traps = traps;
		}
		if (kinds & BREAK)
			use_breakpoints(t, fd, pipes);
		if (kinds & CALL)
			stay_in_the_kernel();
	}
	_exit(0);
}

static int cpus(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n > MAX_CPUS ? MAX_CPUS : n;
}

/*
 * An NMI that nobody expects is reported with KERN_EMERG, and writing that to a serial port takes longer than
 * all the rest of the handler. The kernel's log keeps it anyway.
 */
static void console_loglevel(const char *levels)
{
	int fd = open("/proc/sys/kernel/printk", O_WRONLY);

	if (fd < 0 || write(fd, levels, strlen(levels)) < 0)
		fprintf(stderr, "init: printk: %s\n", strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void start(const char *argument)
{
	int kinds = 0, only = -1, n = 0;
	char text[MAX_CPUS * 12] = "";

	sscanf(argument, "%d %d", &kinds, &only);
	*halt = 0;
	memset(tallies, 0, MAX_CPUS * sizeof(*tallies));
	for (int i = 0; i < cpus(); i++) {
		int pid;

		if (only >= 0 && i != only)
			continue;
		pid = fork();
		if (pid == 0)
			work(i, kinds);
		n += snprintf(text + n, sizeof(text) - n, "%s%d", n ? ", " : "", pid);
	}
	say("[%s]", text);
}

static void stop(void)
{
	struct tally sum = { 0 };

	*halt = 1;
	for (int i = 0; i < cpus(); i++) {
		int status = 0;

		if (wait(&status) > 0 && status)
			snprintf(sum.trouble, sizeof(sum.trouble), "a worker ended with status %#x", status);
	}
	for (int i = 0; i < cpus(); i++) {
		struct tally *t = &tallies[i];

		sum.rounds += t->rounds;
		sum.traced += t->traced;
		sum.traps += t->traps;
		sum.executed += t->executed;
		sum.executions += t->executions;
		sum.written += t->written;
		sum.writes += t->writes;
		sum.called += t->called;
		sum.calls += t->calls;
		sum.copied += t->copied;
		sum.copies += t->copies;
		if (t->changed) {
			sum.changed = t->changed;
			sum.found = t->found;
		}
		if (t->trouble[0])
			memcpy(sum.trouble, t->trouble, sizeof(sum.trouble));
	}
	say("{\"rounds\": %lu, \"traced\": %lu, \"traps\": %lu, \"executed\": %lu, \"executions\": %lu, "
	    "\"written\": %lu, \"writes\": %lu, \"called\": %lu, \"calls\": %lu, \"copied\": %lu, \"copies\": %lu, "
	    "\"changed\": %lu, \"found\": %lu, \"trouble\": \"%s\"}",
	    sum.rounds, sum.traced, sum.traps, sum.executed, sum.executions, sum.written, sum.writes, sum.called,
	    sum.calls, sum.copied, sum.copies, sum.changed, sum.found, sum.trouble);
}

static void count(const char *name)
{
	char line[512], text[256] = "";
	FILE *file = fopen("/proc/interrupts", "r");

	while (file && fgets(line, sizeof(line), file)) {
		char *at = line + strspn(line, " "), *end;

		if (strncmp(at, name, 3) || at[3] != ':')
			continue;
		at += 4;
		for (int i = 0; i < cpus(); i++) {
			unsigned long n = strtoul(at, &end, 10);

			if (end == at)
				break;
			at = end;
			snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%lu", i ? ", " : "", n);
		}
	}
	if (file)
		fclose(file);
	say("[%s]", text);
}

static void show(const char *path)
{
	char data[2001], text[4001];
	int fd = open(path, O_RDONLY), n = fd < 0 ? -1 : read(fd, data, 2000), at = 0;

	for (int i = 0; i < n; i++) {
		if (data[i] == '\n') {
			text[at++] = '\\';
			text[at++] = 'n';
		} else if (data[i] == '"' || data[i] == '\\') {
			text[at++] = '\\';
			text[at++] = data[i];
		} else {
			text[at++] = data[i] < ' ' ? ' ' : data[i];
		}
	}
	text[at] = 0;
	if (fd >= 0)
		close(fd);
	if (n < 0)
		say("null");
	else
		say("\"%s\"", text);
}

#define SHOWN_ENDS 32

/* Adds @line, without its address, to the different ones in @text. */
static void note_end(char *text, int size, const char *line)
{
	int n = strlen(text);
	char quoted[128];

	snprintf(quoted, sizeof(quoted), "\"%s\"", line);
	if (!strstr(text, quoted))
		snprintf(text + n, size - n, "%s%s", n ? ", " : "", quoted);
}

static void read_stacks(void)
{
	int tasks = 0, empty = 0, frames = 0, odd = 0;
	char ends[SHOWN_ENDS * 128] = "";
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	while (dir && (entry = readdir(dir))) {
		char path[300], data[8192], *line, *rest = data, *last = NULL;
		int fd, n;

		if (!isdigit(entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stack", entry->d_name);
		fd = open(path, O_RDONLY);
		n = fd < 0 ? -1 : read(fd, data, sizeof(data) - 1);
		if (fd >= 0)
			close(fd);
		if (n < 0)
			continue;
		tasks++;
		empty += n == 0;
		data[n] = 0;
		while ((line = strsep(&rest, "\n")) && *line) {
			if (strncmp(line, "[<0>] ", 6)) {
				odd++;
				continue;
			}
			frames++;
			last = line + 6;
		}
		if (last)
			note_end(ends, sizeof(ends), last);
	}
	if (dir)
		closedir(dir);
	say("{\"tasks\": %d, \"empty\": %d, \"frames\": %d, \"odd\": %d, \"ends\": [%s]}",
	    tasks, empty, frames, odd, ends);
}

static void put(char *line)
{
	char *text = strchr(line, ' ');
	int fd, n = -1;

	if (text)
		*text++ = 0;
	fd = open(line, O_WRONLY);
	if (fd >= 0 && text)
		n = write(fd, text, strlen(text));
	if (fd >= 0)
		close(fd);
	say(n > 0 ? "\"ok\"" : "null");
}

#define RING 65536
#define SHOWN_CHAINS 16

/* perf_event_open(2): a header, then what is asked for, here the number of addresses and the addresses. */
static void show_chains(const char *ring)
{
	const struct perf_event_mmap_page *control = (const void *)ring;
	const char *data = ring + 4096;
	unsigned long head = __atomic_load_n(&control->data_head, __ATOMIC_ACQUIRE), at = 0;
	char text[16000] = "";
	int n = 0, chains = 0;

	while (at + 16 <= head && head <= RING && chains < SHOWN_CHAINS) {
		const struct perf_event_header *header = (const void *)(data + at);
		const unsigned long *words = (const void *)(header + 1);

		if (!header->size)
			break;
		if (header->type == PERF_RECORD_SAMPLE && words[0] < 40) {
			n += snprintf(text + n, sizeof(text) - n, "%s[", chains++ ? ", " : "");
			for (unsigned long i = 0; i < words[0]; i++)
				n += snprintf(text + n, sizeof(text) - n, "%s\"%#lx\"", i ? ", " : "", words[1 + i]);
			n += snprintf(text + n, sizeof(text) - n, "]");
		}
		at += header->size;
	}
	say("[%s]", text);
}

static void take_chains(char *function)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr), .sample_period = 1, .sample_type = PERF_SAMPLE_CALLCHAIN,
		.kprobe_func = (unsigned long)function,
	};
	FILE *type = fopen("/sys/bus/event_source/devices/kprobe/type", "r");
	char *argument = strchr(function, ' '), *ring;
	struct timespec now, end;
	unsigned long offset, ms;
	int fd;

	if (argument)
		*argument++ = 0;
	if (!type || fscanf(type, "%u", &attr.type) != 1 || !argument ||
	    sscanf(argument, "%lu %lu", &offset, &ms) != 2) {
		say("null");
		return;
	}
	fclose(type);
	attr.probe_offset = offset;
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	ring = mmap(0, 4096 + RING, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || ring == MAP_FAILED) {
		say("\"%s\"", strerror(errno));
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += ms / 1000;
	do {
		stay_in_the_kernel();
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec <= end.tv_sec);
	ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
	show_chains(ring);
	munmap(ring, 4096 + RING);
	close(fd);
}

static void hello(void)
{
	struct utsname name;

	uname(&name);
	say("{\"cpus\": %d, \"fsgsbase\": %d, \"version\": \"%s\"}", cpus(),
	    !!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE), name.release);
}

static void obey(char *line)
{
	char *argument = strchr(line, ' ');

	if (argument)
		*argument++ = 0;
	if (!strcmp(line, "hello"))
		hello();
	else if (!strcmp(line, "start") && argument)
		start(argument);
	else if (!strcmp(line, "stop"))
		stop();
	else if (!strcmp(line, "quiet")) {
		console_loglevel("0 4 0 7");
		say("\"ok\"");
	}
	else if (!strcmp(line, "count") && argument)
		count(argument);
	else if (!strcmp(line, "file") && argument)
		show(argument);
	else if (!strcmp(line, "write") && argument)
		put(argument);
	else if (!strcmp(line, "stacks"))
		read_stacks();
	else if (!strcmp(line, "chains") && argument)
		take_chains(argument);
	else if (!strcmp(line, "spin"))
		spin_forever();
	else if (!strcmp(line, "exit") && argument)
		outb(atoi(argument), EXIT_PORT);
	else
		say("\"unknown command\"");
}

int main(void)
{
	struct termios raw;
	char line[256];
	int n = 0;

	stay_on(0);
	mount("proc", "/proc", "proc", 0, 0);
	mount("sysfs", "/sys", "sysfs", 0, 0);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, 0);
	port = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
	if (port < 0 || iopl(3)) {
		fprintf(stderr, "init: no second serial port, or no port I/O: %s\n", strerror(errno));
		return 1;
	}
	tcgetattr(port, &raw);
	cfmakeraw(&raw);
	tcsetattr(port, TCSANOW, &raw);
	halt = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	tallies = mmap(0, MAX_CPUS * sizeof(*tallies), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (halt == MAP_FAILED || tallies == MAP_FAILED)
		return 1;
	say("\"ready\"");
	for (;;) {
		char c;

		if (read(port, &c, 1) != 1)
			continue;
		if (c != '\n' && n < (int)sizeof(line) - 1) {
			line[n++] = c;
			continue;
		}
		line[n] = 0;
		n = 0;
		obey(line);
	}
}
