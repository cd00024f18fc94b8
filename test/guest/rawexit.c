/*
 * rawexit [MIB [MOST_MIB]]: threads that end by exit(2) and not by their library, the
 * first thread among them, which leaves the process to the others.
 *
 * Some threads write a part of the region each and end so; the first thread joins
 * them and reads what they wrote. Then it ends too. One thread is left, writes and
 * reads everything a few times more, says so, and ends. Both have status 7: of which
 * of them the process takes it, kernels do not agree.
 *
 * With MOST_MIB, that is how much of its memory may be resident meanwhile.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "guest.h"

#define THREADS 4
#define OWNER 1
#define ROUNDS 3
#define STATUS 7

static char *region;
static unsigned long pages;
static unsigned long most_kib;
static int first_has_ended[2];

static void *write_a_part(void *thread_number)
{
	for (unsigned long p = (unsigned long)thread_number; p < pages;
	     p += THREADS)
		fill(region, p, OWNER, 1);
	syscall(SYS_exit, 0);
	return NULL;
}

/* Of the process: the first thread's file is empty once that has ended. */
static unsigned long resident_kib(void)
{
	static char text[8192];
	int fd = open("/proc/thread-self/status", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	char *line;

	if (n < 0)
		fail_errno("/proc/thread-self/status");
	close(fd);
	text[n] = 0;
	line = strstr(text, "\nRssAnon:");
	if (!line)
		fail("no RssAnon in /proc/thread-self/status");
	return strtoul(line + strlen("\nRssAnon:"), NULL, 10);
}

/* A process that was taken in late has been large meanwhile. */
static void await_small(void)
{
	for (int tries = 0; most_kib && resident_kib() > most_kib; tries++) {
		if (tries == 2000)
			fail("%lu KiB stay resident", resident_kib());
		usleep(10000);
	}
}

static void expect_small(unsigned long page)
{
	if (most_kib && page % 256 == 0 && resident_kib() > most_kib)
		fail("%lu KiB are resident, more than %lu", resident_kib(),
		     most_kib);
}

/* /proc tells when the first thread is a zombie. */
static void await_first(void)
{
	char path[64], text[512];
	char *state;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", getpid());
	do {
		int fd = open(path, O_RDONLY);
		ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

		if (n <= 0)
			fail_errno(path);
		close(fd);
		text[n] = 0;
		state = strrchr(text, ')');
		usleep(1000);
	} while (!state || state[2] != 'Z');
}

static void *go_on_alone(void *unused)
{
	char byte;

	(void)unused;
	must_read(first_has_ended[0], &byte, 1);
	await_first();
	await_small();
	for (uint64_t round = 1; round <= ROUNDS; round++)
		for (unsigned long p = 0; p < pages; p++) {
			verify("alone", region, p, OWNER, round);
			fill(region, p, OWNER, round + 1);
			expect_small(p);
		}
	for (unsigned long p = 0; p < pages; p++)
		verify("at the end", region, p, OWNER, ROUNDS + 1);
	printf("rawexit: %lu pages right\n", pages);
	fflush(stdout);
	syscall(SYS_exit, STATUS);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t writers[THREADS], last;

	pages = pages_of_mib(argument(argc, argv, 1, 64));
	most_kib = argc > 2 ? argument(argc, argv, 2, 1) << 10 : 0;
	region = map_pages(pages);
	if (pipe(first_has_ended))
		fail_errno("pipe");
	for (unsigned long t = 0; t < THREADS; t++)
		if (pthread_create(&writers[t], NULL, write_a_part, (void *)t))
			fail("pthread_create");
	for (int t = 0; t < THREADS; t++)
		if (pthread_join(writers[t], NULL))
			fail("pthread_join");
	for (unsigned long p = 0; p < pages; p++)
		verify("joined", region, p, OWNER, 1);
	if (pthread_create(&last, NULL, go_on_alone, NULL))
		fail("pthread_create");
	must_write(first_has_ended[1], "", 1);
	syscall(SYS_exit, STATUS);
	return 1;
}
