/*
 * A program that does to its memory what a test asks for.
 *
 *   guest                 reads commands from standard input, a line each, and
 *                         answers each with a line
 *   guest exec N          works, and execs itself N more times
 *   guest forkexec N      forks N children that exec; each works
 *
 * Pages are numbered from REGION on. What is in them follows from their number
 * and a seed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define REGION 0x600000000000UL

#define fail(...) (dprintf(2, "guest: " __VA_ARGS__), dprintf(2, ": %s\n", strerror(errno)), _exit(3))

struct found {
	unsigned long wrong, bus, first; /* first: address of the first SIGBUS */
};

static __thread sigjmp_buf out;
static __thread volatile int armed;

static void on_bus(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (!armed) {
		signal(number, SIG_DFL);
		return;
	}
	armed = 0;
	(void)info;
	siglongjmp(out, 1);
}

static uint64_t *page(unsigned long i)
{
	return (uint64_t *)(REGION + i * PAGE);
}

static uint64_t word(unsigned long i, unsigned long k, unsigned long seed)
{
	uint64_t x = (i * 512 + k) * 0x9e3779b97f4a7c15UL + seed * 0xd1b54a32d192ed03UL + 1;

	return x ^ x >> 29;
}

static void map(unsigned long pages)
{
	if (mmap((void *)REGION, pages * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
		fail("mmap");
}

static void put(unsigned long from, unsigned long to, unsigned long seed)
{
	for (unsigned long i = from; i < to; i++)
		for (unsigned long k = 0; k < PAGE / 8; k++)
			page(i)[k] = word(i, k, seed);
}

/* Compares pages with what put has written, with zeros for seed 0. */
static struct found look(unsigned long from, unsigned long to, unsigned long seed)
{
	struct found f = {0, 0, 0};

	for (volatile unsigned long i = from; i < to; i++) {
		volatile unsigned long wrong = 0;

		if (sigsetjmp(out, 1)) {
			if (!f.bus++)
				f.first = (unsigned long)page(i);
			continue;
		}
		armed = 1;
		for (unsigned long k = 0; k < PAGE / 8; k++)
			wrong |= page(i)[k] != (seed ? word(i, k, seed) : 0);
		armed = 0;
		f.wrong += wrong;
	}
	return f;
}

static void tell(struct found f)
{
	printf("wrong=%lu bus=%lu first=%#lx\n", f.wrong, f.bus, f.first);
}

static struct reader {
	pthread_t thread;
	unsigned long from, to, seed;
	struct found found;
	volatile int done;
} reader;

static void *read_beside(void *unused)
{
	(void)unused;
	reader.found = look(reader.from, reader.to, reader.seed);
	reader.done = 1;
	return NULL;
}

static int mapped(unsigned long i)
{
	unsigned char there;

	return mincore(page(i), PAGE, &there) == 0;
}

/* In a child: pages [a,b) as written, [b,c) zeros, [c,d) not mapped. Then the
 * child writes them all, and its own child sees that. */
static struct found as_child(unsigned long a, unsigned long b, unsigned long c, unsigned long d,
			     unsigned long seed, int generations)
{
	struct found f = look(a, b, seed), g = look(b, c, 0);

	f.wrong += g.wrong;
	f.bus += g.bus;
	for (unsigned long i = c; i < d; i++)
		f.wrong += (unsigned long)mapped(i);
	if (generations > 0) {
		pid_t pid;

		put(a, b, seed + 1);
		put(b, c, seed + 1); /* wiped again in the grandchild */
		pid = fork();
		if (pid == 0)
			_exit(as_child(a, b, c, d, seed + 1, generations - 1).wrong ? 9 : 0);
		int status = -1;
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			f.wrong += 1000;
		g = look(a, b, seed + 1);
		f.wrong += g.wrong;
	}
	return f;
}

static int raw_forks;

static struct found forked(unsigned long a, unsigned long b, unsigned long c, unsigned long d,
			   unsigned long seed, int generations)
{
	struct found f = {0, 0, 0};
	int ends[2];
	pid_t pid;

	if (pipe(ends))
		fail("pipe");
	pid = raw_forks ? (pid_t)syscall(SYS_fork) : fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0) {
		f = as_child(a, b, c, d, seed, generations);
		if (write(ends[1], &f, sizeof f) != (ssize_t)sizeof f)
			fail("write");
		_exit(0);
	}
	close(ends[1]);
	if (read(ends[0], &f, sizeof f) != (ssize_t)sizeof f)
		f.wrong = 100000;
	close(ends[0]);
	if (waitpid(pid, NULL, 0) != pid)
		fail("waitpid");
	return f;
}

/* A vfork child looks at its parent's pages [a,b), writes [b,c), and ends or
 * execs; its parent, which shares them, sees what it wrote. */
static struct found vforked(char *self, unsigned long a, unsigned long b, unsigned long c, unsigned long seed)
{
	static volatile struct found f;
	struct found g;
	volatile unsigned long from = a, middle = b, to = c;
	int status = -1;
	pid_t pid = vfork();

	if (pid == 0) {
		g = look(from, middle, seed);
		f.wrong = g.wrong;
		f.bus = g.bus;
		put(middle, to, seed + 1);
		if (seed & 1)
			execl(self, self, "exec", "0", (char *)0);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		fail("vfork child: status %#x", (unsigned)status);
	g = look(middle, to, seed + 1);
	g.wrong += f.wrong;
	g.bus += f.bus;
	return g;
}

/* Takes memory at one address again and again: fresh memory is zeros. Between, by
 * turns: munmap and mmap, MADV_DONTNEED, mmap over it, mremap away and mmap. */
static struct found renewed(unsigned long pages, unsigned long rounds)
{
	struct found f = {0, 0, 0}, g;
	void *away = (void *)(REGION + (1UL << 36));

	for (unsigned long k = 0; k < rounds; k++) {
		int how = (int)(k % 4);

		put(0, pages, k + 1);
		usleep(k % 3 * 300);
		g = look(0, pages, k + 1);
		f.wrong += g.wrong;
		f.bus += g.bus;
		if (how == 0 && munmap(page(0), pages * PAGE))
			fail("munmap");
		if (how == 1 && madvise(page(0), pages * PAGE, MADV_DONTNEED))
			fail("madvise");
		if (how == 3 && mremap(page(0), pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, away) != away)
			fail("mremap");
		if (how != 1 && mmap(page(0), pages * PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != (void *)REGION)
			fail("mmap");
		g = look(0, pages, 0);
		f.wrong += g.wrong;
		f.bus += g.bus;
		if (how == 3) {
			for (unsigned long i = 0; i < pages; i++)
				f.wrong += ((uint64_t *)away)[i * 512 + 7] != word(i, 7, k + 1);
			if (munmap(away, pages * PAGE))
				fail("munmap");
		}
	}
	return f;
}

static volatile int moving;
static unsigned long moved_pages, moves_pause;

#define AWAY (REGION + (1UL << 36))

static void *move_about(void *unused)
{
	unsigned long from = REGION, to = AWAY, swap;

	(void)unused;
	while (moving) {
		if (mremap((void *)from, moved_pages * PAGE, moved_pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   (void *)to) != (void *)to)
			fail("mremap");
		swap = from, from = to, to = swap;
		if (moves_pause)
			usleep(moves_pause);
	}
	if (from != REGION && mremap((void *)from, moved_pages * PAGE, moved_pages * PAGE,
				     MREMAP_MAYMOVE | MREMAP_FIXED, (void *)REGION) != (void *)REGION)
		fail("mremap");
	return NULL;
}

/* Forks while another thread moves the pages between two places: a child has them
 * at one of the two, and they are right there. */
static struct found forked_moving(unsigned long pages, unsigned long seed, unsigned long forks, unsigned long pause)
{
	struct found f = {0, 0, 0}, g;
	pthread_t thread;

	moved_pages = pages;
	moves_pause = pause;
	moving = 1;
	if (pthread_create(&thread, NULL, move_about, NULL))
		fail("pthread_create");
	while (forks-- > 0) {
		int status = -1;
		pid_t pid = fork();

		if (pid == 0) {
			unsigned long off = 0;
			int here = mapped(0), there = mapped((AWAY - REGION) / PAGE);

			if (here == there)
				_exit(8);
			if (there)
				off = (AWAY - REGION) / PAGE;
			for (unsigned long i = 0; i < pages; i++)
				for (unsigned long k = 0; k < PAGE / 8; k += 64)
					if (page(off + i)[k] != word(i, k, seed))
						_exit(there ? 7 : 6);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			fail("fork");
		if (status) {
			f.wrong++;
			f.first = (unsigned long)status;
		}
	}
	moving = 0;
	pthread_join(thread, NULL);
	g = look(0, pages, seed);
	f.wrong += g.wrong * 1000;
	return f;
}

static void advise(unsigned long from, unsigned long to, int advice)
{
	if (madvise(page(from), (to - from) * PAGE, advice))
		fail("madvise %d", advice);
	puts("ok");
}

static int work(void)
{
	struct found f;

	map(200);
	put(0, 200, 5);
	f = look(0, 200, 5);
	return f.wrong || f.bus;
}

static void command(char *self, char *line)
{
	char name[32] = "";
	unsigned long n[6] = {0};

	sscanf(line, "%31s %lu %lu %lu %lu %lu %lu", name, &n[0], &n[1], &n[2], &n[3], &n[4], &n[5]);
	if (!strcmp(name, "map")) {
		map(n[0]);
		puts("ok");
	} else if (!strcmp(name, "write")) {
		put(n[0], n[1], n[2]);
		puts("ok");
	} else if (!strcmp(name, "read")) {
		tell(look(n[0], n[1], n[2]));
	} else if (!strcmp(name, "beside")) {
		reader.from = n[0], reader.to = n[1], reader.seed = n[2], reader.done = 0;
		if (pthread_create(&reader.thread, NULL, read_beside, NULL))
			fail("pthread_create");
		puts("ok");
	} else if (!strcmp(name, "done")) {
		printf("%d\n", reader.done);
	} else if (!strcmp(name, "join")) {
		if (pthread_join(reader.thread, NULL))
			fail("pthread_join");
		tell(reader.found);
	} else if (!strcmp(name, "wipe")) {
		advise(n[0], n[1], MADV_WIPEONFORK);
	} else if (!strcmp(name, "dontfork")) {
		advise(n[0], n[1], MADV_DONTFORK);
	} else if (!strcmp(name, "drop")) {
		advise(n[0], n[1], MADV_DONTNEED);
	} else if (!strcmp(name, "fork")) {
		tell(forked(n[0], n[1], n[2], n[3], n[4], (int)n[5]));
	} else if (!strcmp(name, "rawforks")) {
		raw_forks = 1;
		puts("ok");
	} else if (!strcmp(name, "vfork")) {
		tell(vforked(self, n[0], n[1], n[2], n[3]));
	} else if (!strcmp(name, "forkmove")) {
		tell(forked_moving(n[0], n[1], n[2], n[3]));
	} else if (!strcmp(name, "move")) {
		void *from = page(0), *to = (void *)AWAY, *swap;

		for (unsigned long i = 0; i < 2 * n[1]; i++) {
			if (mremap(from, n[0] * PAGE, n[0] * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
				fail("mremap");
			swap = from, from = to, to = swap;
		}
		puts("ok");
	} else if (!strcmp(name, "renew")) {
		tell(renewed(n[0], n[1]));
	} else {
		printf("no such command: %s", line);
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER};
	static char line[256];
	char number[16];
	int count = argc > 2 ? atoi(argv[2]) : 0;

	sigaction(SIGBUS, &action, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 2 && !strcmp(argv[1], "exec")) {
		if (work())
			return 4;
		if (count == 0)
			return 0;
		snprintf(number, sizeof number, "%d", count - 1);
		execl(argv[0], argv[0], "exec", number, (char *)0);
		fail("exec");
	}
	if (argc > 2 && !strcmp(argv[1], "forkexec")) {
		if (work())
			return 4;
		for (int i = 0; i < count; i++) {
			int status = -1;
			pid_t pid = fork();

			if (pid == 0) {
				struct found f = look(0, 200, 5);

				if (f.wrong || f.bus)
					_exit(5);
				execl(argv[0], argv[0], "exec", "0", (char *)0);
				fail("exec");
			}
			if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
				fail("child: status %#x", (unsigned)status);
		}
		return look(0, 200, 5).wrong ? 6 : 0;
	}
	puts("ready");
	while (fgets(line, sizeof line, stdin))
		command(argv[0], line);
	return 0;
}
