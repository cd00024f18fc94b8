/* What every guest needs to start and to give up. */
#ifndef GUEST_H
#define GUEST_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pattern.h"

/* _exit, not exit: a forked child must not flush its parent's stdout again. */
#define fail(...)                            \
	do {                                 \
		dprintf(2, "FAIL: " __VA_ARGS__); \
		dprintf(2, "\n");            \
		_exit(1);                    \
	} while (0)

#define fail_errno(what) fail("%s: %s", what, strerror(errno))

/* The numeric argument at `index`, or `otherwise` where there is none. */
static inline unsigned long argument(int argc, char **argv, int index,
				     unsigned long otherwise)
{
	char *end;
	unsigned long value;

	if (index >= argc)
		return otherwise;
	value = strtoul(argv[index], &end, 10);
	if (*end || !value)
		fail("argument %d: want a positive number, got \"%s\"", index,
		     argv[index]);
	return value;
}

static inline unsigned long pages_of_mib(unsigned long mib)
{
	return (mib << 20) / PAGE_BYTES;
}

static inline char *map_pages(unsigned long pages)
{
	char *at = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		fail_errno("mmap");
	return at;
}

static inline char *page_at(char *region, unsigned long page)
{
	return region + page * PAGE_BYTES;
}

static inline void fill(char *region, unsigned long page, uint64_t owner,
			uint64_t generation)
{
	pattern_fill(page_at(region, page), owner, page, generation);
}

/* Ends the process when the page does not hold what it must. */
static inline void verify(const char *when, char *region, unsigned long page,
			  uint64_t owner, uint64_t generation)
{
	char *at = page_at(region, page);
	int word = pattern_check(at, owner, page, generation);

	if (word >= 0)
		fail("%s: pid %d page %lu at %p word %d: want %016lx of owner "
		     "%lu generation %lu, got %016lx",
		     when, getpid(), page, (void *)at, word,
		     pattern_word(owner, page, generation, (unsigned int)word),
		     owner, generation, ((uint64_t *)(void *)at)[word]);
}

static inline void must_wait(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			fail_errno("waitpid");
	if (status)
		fail("child %d ended with wait status %#x", pid, status);
}

static inline void must_read(int fd, void *to, size_t bytes)
{
	char *at = to;

	while (bytes) {
		ssize_t n = read(fd, at, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail_errno("read");
		if (!n)
			fail("read: end of file, %zu bytes missing", bytes);
		at += n;
		bytes -= (size_t)n;
	}
}

static inline void must_write(int fd, const void *from, size_t bytes)
{
	const char *at = from;

	while (bytes) {
		ssize_t n = write(fd, at, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail_errno("write");
		at += n;
		bytes -= (size_t)n;
	}
}

#endif
