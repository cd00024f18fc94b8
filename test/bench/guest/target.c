/*
 * target [loop]: the program whose memory is measured. It reads commands, one a
 * line, and answers each with a line: "ok NAME=NUMBER...", times in nanoseconds, or
 * "failed ...". What it reads back it compares with what must be there, outside of
 * what is timed.
 *
 *   map far|zero PAGES STRIDE   a new region, of which every STRIDEth page is used
 *   fill                        write the far region's pages
 *   drop                        give the far region's pages up (MADV_DONTNEED)
 *   single far|zero COUNT SEED REST  touch COUNT pages in random order, each timed,
 *                               after REST microseconds of sleep
 *   walk seq|random SEED        touch all pages of the far region, timed as a whole
 *   first PAGES                 write a word to each page of a new mapping, in order
 *   pageout                     give the far region to the kernel's swap
 *   maps BYTES COUNT            mmap and munmap
 *   fork COUNT                  fork, _exit in the child, wait
 *   spawn COUNT PROGRAM ARG...  fork, exec, wait
 *
 * With "loop" it makes a userfaultfd for its regions, hands it over descriptor 3, and
 * whoever has the other end answers the faults.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "content.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define COUNT_MAX 65536UL
#define USED_MAX (1UL << 20)

/* In BSS, and so may be far: written to before anything is timed. */
static uint64_t samples[COUNT_MAX];
static uint32_t order[USED_MAX];

struct region {
	unsigned long at, pages, stride;
};

static struct region far = {.at = FAR_AT}, zero = {.at = ZERO_AT};
static int uffd = -1;
static int unanswered;

__attribute__((format(printf, 1, 2))) static void failed(const char *format, ...)
{
	va_list arguments;

	if (!unanswered)
		return;
	unanswered = 0;
	printf("failed ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
}

#define failed_errno(what) failed("%s: %s", what, strerror(errno))

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000UL + (uint64_t)t.tv_nsec;
}

static unsigned long used(const struct region *r)
{
	return r->pages / r->stride;
}

static char *page_at(const struct region *r, unsigned long i)
{
	return (char *)r->at + i * r->stride * PAGE_BYTES;
}

static void touch(const void *at)
{
	*(const volatile uint64_t *)at;
}

/* A stopped or interrupted word would look like an answer's number: no partial
 * numbers are taken. */
static int number(const char *text, unsigned long most, unsigned long *to)
{
	char *end;

	if (!text)
		return -1;
	*to = strtoul(text, &end, 10);
	if (*end || *to > most) {
		failed("a number up to %lu is wanted, not \"%s\"", most, text);
		return -1;
	}
	return 0;
}

static struct region *region_named(const char *name)
{
	if (name && !strcmp(name, "far"))
		return &far;
	if (name && !strcmp(name, "zero"))
		return &zero;
	failed("there is no region \"%s\"", name ? name : "");
	return NULL;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* The middle and the end of the first `count` samples. */
static void answer_samples(unsigned long count)
{
	uint64_t sum = 0;

	if (!count) {
		failed("nothing to measure");
		return;
	}
	for (unsigned long i = 0; i < count; i++)
		sum += samples[i];
	qsort(samples, count, sizeof *samples, by_size);
	unanswered = 0;
	printf("ok p50=%lu p99=%lu max=%lu mean=%lu\n", samples[count / 2], samples[count * 99 / 100],
	       samples[count - 1], sum / count);
}

static void answer_total(uint64_t nanoseconds, unsigned long pages)
{
	unanswered = 0;
	printf("ok total=%lu pages=%lu\n", nanoseconds, pages);
}

/* ---- memory ---- */

static int register_region(const struct region *r)
{
	struct uffdio_register arg = {.range = {r->at, r->pages * PAGE_BYTES}, .mode = UFFDIO_REGISTER_MODE_MISSING};

	return uffd < 0 ? 0 : ioctl(uffd, UFFDIO_REGISTER, &arg);
}

static void map_region(struct region *r, unsigned long pages, unsigned long stride)
{
	if (r->pages && munmap((void *)r->at, r->pages * PAGE_BYTES)) {
		failed_errno("munmap");
		return;
	}
	r->pages = 0;
	if (mmap((void *)r->at, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)r->at) {
		failed_errno("mmap");
		return;
	}
	r->pages = pages;
	r->stride = stride;
	if (register_region(r))
		failed_errno("UFFDIO_REGISTER");
	else
		answer_total(0, used(r));
}

static void fill(void)
{
	uint64_t begun = now();

	for (unsigned long i = 0; i < used(&far); i++)
		content_fill(page_at(&far, i), i * far.stride);
	answer_total(now() - begun, used(&far));
}

static void shuffle(unsigned long count, uint64_t seed)
{
	for (unsigned long i = 0; i < count; i++)
		order[i] = (uint32_t)i;
	for (unsigned long i = count; i > 1; i--) {
		unsigned long j = mix(seed + i) % i;
		uint32_t other = order[j];

		order[j] = order[i - 1];
		order[i - 1] = other;
	}
}

static int right(const struct region *r, unsigned long i)
{
	int word = r == &zero ? zero_check(page_at(r, i)) : content_check(page_at(r, i), i * r->stride);

	if (word >= 0)
		failed("page %lu is wrong in word %d", i, word);
	return word < 0;
}

static void single(const struct region *r, unsigned long count, uint64_t seed, unsigned long rest)
{
	struct timespec pause = {.tv_nsec = (long)rest * 1000};

	if (count > used(r)) {
		failed("the region has %lu pages", used(r));
		return;
	}
	shuffle(used(r), seed);
	memset(samples, 0, count * sizeof *samples);
	for (unsigned long i = 0; i < count; i++) {
		char *page = page_at(r, order[i]);
		uint64_t begun;

		if (rest)
			nanosleep(&pause, NULL);
		begun = now();
		touch(page);
		samples[i] = now() - begun;
		if (!right(r, order[i]))
			return;
	}
	answer_samples(count);
}

static void walk(int random, uint64_t seed)
{
	uint64_t begun, took;

	shuffle(used(&far), seed);
	begun = now();
	for (unsigned long i = 0; i < used(&far); i++)
		touch(page_at(&far, random ? order[i] : i));
	took = now() - begun;
	for (unsigned long i = 0; i < used(&far); i++)
		if (!right(&far, i))
			return;
	answer_total(took, used(&far));
}

static void first(unsigned long pages)
{
	char *at = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t begun, took;

	if (at == MAP_FAILED) {
		failed_errno("mmap");
		return;
	}
	begun = now();
	for (unsigned long p = 0; p < pages; p++)
		*(volatile uint64_t *)(at + p * PAGE_BYTES) = 1;
	took = now() - begun;
	if (munmap(at, pages * PAGE_BYTES))
		failed_errno("munmap");
	else
		answer_total(took, pages);
}

/* How many pages of the region are in swap, of pagemap(5)'s bit 62. */
static unsigned long swapped(const struct region *r)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	unsigned long found = 0;

	for (unsigned long i = 0; fd >= 0 && i < used(r); i++) {
		uint64_t entry;

		if (pread(fd, &entry, sizeof entry, (off_t)((uint64_t)page_at(r, i) / PAGE_BYTES * sizeof entry)) != sizeof entry)
			break;
		found += entry >> 62 & 1;
	}
	if (fd >= 0)
		close(fd);
	return found;
}

static void pageout(void)
{
	uint64_t begun = now(), took;

	if (madvise((void *)far.at, far.pages * PAGE_BYTES, MADV_PAGEOUT)) {
		failed_errno("MADV_PAGEOUT");
		return;
	}
	took = now() - begun;
	answer_total(took, swapped(&far));
}

static void maps(unsigned long bytes, unsigned long count)
{
	uint64_t begun = now();

	for (unsigned long i = 0; i < count; i++) {
		void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (at == MAP_FAILED || munmap(at, bytes)) {
			failed_errno("mmap or munmap");
			return;
		}
	}
	answer_total(now() - begun, count);
}

/* ---- processes ---- */

static int ended_well(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR) {
			failed_errno("waitpid");
			return 0;
		}
	if (status)
		failed("a child ended with wait status %#x", status);
	return !status;
}

static void forks(unsigned long count)
{
	for (unsigned long i = 0; i < count; i++) {
		uint64_t begun = now();
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid < 0)
			failed_errno("fork");
		if (pid < 0 || !ended_well(pid))
			return;
		samples[i] = now() - begun;
	}
	answer_samples(count);
}

static void spawn(unsigned long count, char **argv)
{
	extern char **environ;

	for (unsigned long i = 0; i < count; i++) {
		uint64_t begun = now();
		pid_t pid = fork();

		if (!pid) {
			execve(argv[0], argv, environ);
			_exit(127);
		}
		if (pid < 0)
			failed_errno("fork");
		if (pid < 0 || !ended_well(pid))
			return;
		samples[i] = now() - begun;
	}
	answer_samples(count);
}

/* ---- the C loop ---- */

/* The descriptor stays open here: far pages would be zeros without it. */
static void hand_over(int socket)
{
	struct uffdio_api api = {.api = UFFD_API};
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	char byte = 0, control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	uffd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) {
		perror("target: userfaultfd");
		exit(1);
	}
	close(device);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof uffd);
	memcpy(CMSG_DATA(header), &uffd, sizeof uffd);
	if (sendmsg(socket, &message, 0) != 1) {
		perror("target: hand the userfaultfd over");
		exit(1);
	}
}

/* ---- commands ---- */

#define WORDS_MAX 16

static void obey(char **word)
{
	unsigned long a, b, c;
	struct region *r;

	if (!strcmp(word[0], "map")) {
		if ((r = region_named(word[1])) && !number(word[2], USED_MAX, &a) && !number(word[3], a, &b) && b)
			map_region(r, a, b);
	} else if (!strcmp(word[0], "single")) {
		if ((r = region_named(word[1])) && !number(word[2], COUNT_MAX, &a) && !number(word[3], ~0UL, &b) &&
		    !number(word[4], 999999, &c))
			single(r, a, b, c);
	} else if (!strcmp(word[0], "walk")) {
		if (word[1] && !number(word[2], ~0UL, &b))
			walk(!strcmp(word[1], "random"), b);
	} else if (!strcmp(word[0], "maps")) {
		if (!number(word[1], ~0UL, &a) && !number(word[2], ~0UL, &b))
			maps(a, b);
	} else if (!strcmp(word[0], "spawn")) {
		if (!number(word[1], COUNT_MAX, &a) && word[2])
			spawn(a, word + 2);
	} else if (!strcmp(word[0], "fork")) {
		if (!number(word[1], COUNT_MAX, &a))
			forks(a);
	} else if (!strcmp(word[0], "first")) {
		if (!number(word[1], ~0UL, &a))
			first(a);
	} else if (!strcmp(word[0], "fill")) {
		fill();
	} else if (!strcmp(word[0], "pageout")) {
		pageout();
	} else if (!strcmp(word[0], "drop")) {
		if (madvise((void *)far.at, far.pages * PAGE_BYTES, MADV_DONTNEED))
			failed_errno("MADV_DONTNEED");
		else
			answer_total(0, far.pages);
	}
	failed("not a command, or a word is missing");
}

int main(int argc, char **argv)
{
	static char line[4096];

	if (argc > 1 && !strcmp(argv[1], "loop"))
		hand_over(3);
	far.stride = zero.stride = 1;
	printf("ok pid=%d\n", getpid());
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		char *word[WORDS_MAX + 1] = {NULL};
		int words = 0;

		for (char *at = strtok(line, " \n"); at && words < WORDS_MAX; at = strtok(NULL, " \n"))
			word[words++] = at;
		unanswered = 1;
		if (words)
			obey(word);
		else
			failed("an empty line");
		fflush(stdout);
	}
	return 0;
}
