/*
 * daemonise [MIB] [DAEMONS] [PAGES]: processes that go the way of a daemon:
 * forked, the parent gone at once, a session of its own, forked again, that
 * parent gone too. What is left verifies PAGES inherited pages, writes them,
 * verifies them again and reports; the first process waits for all reports.
 */
#include "guest.h"

#define AT_A_TIME 8

struct report {
	uint32_t daemon;
	uint32_t right;
};

static char *region;
static unsigned long pages;
static unsigned long pages_each;

static unsigned long nth_page(unsigned long daemon, unsigned long n)
{
	return mix(daemon * 1000003 + n) % pages;
}

/* The generation counts how often the first process has rewritten a page. */
static void work(unsigned long daemon, uint64_t generation, int report_to)
{
	struct report report = { .daemon = (uint32_t)daemon };

	/* Pages come up twice when nth_page meets one again: hence two loops. */
	for (unsigned long n = 0; n < pages_each; n++)
		verify("daemon inherited", region, nth_page(daemon, n), 1,
		       generation);
	for (unsigned long n = 0; n < pages_each; n++)
		fill(region, nth_page(daemon, n), daemon + 2, 1);
	for (unsigned long n = 0; n < pages_each; n++)
		verify("daemon wrote", region, nth_page(daemon, n), daemon + 2,
		       1);
	report.right = 1;
	must_write(report_to, &report, sizeof(report));
}

static pid_t must_fork(void)
{
	pid_t pid = fork();

	if (pid < 0)
		fail_errno("fork");
	return pid;
}

static void start(unsigned long daemon, uint64_t generation, int report_to)
{
	pid_t first = must_fork();

	if (first) {
		must_wait(first);
		return;
	}
	if (must_fork())
		_exit(0);
	setsid();
	if (must_fork())
		_exit(0);
	work(daemon, generation, report_to);
	_exit(0);
}

static void await(int report_from, unsigned long reports)
{
	while (reports--) {
		struct report report;

		must_read(report_from, &report, sizeof(report));
		if (!report.right)
			fail("daemon %u is wrong", report.daemon);
	}
}

int main(int argc, char **argv)
{
	unsigned long daemons = argument(argc, argv, 2, 64);
	uint64_t generation = 1;

	pages = pages_of_mib(argument(argc, argv, 1, 64));
	pages_each = argument(argc, argv, 3, 512);
	region = map_pages(pages);
	for (unsigned long p = 0; p < pages; p++)
		fill(region, p, 1, generation);
	for (unsigned long started = 0; started < daemons;) {
		unsigned long batch = 0;
		int ends[2];

		if (pipe(ends))
			fail_errno("pipe");
		for (; batch < AT_A_TIME && started < daemons; batch++)
			start(started++, generation, ends[1]);
		/* Only the daemons hold it now: one that dies shows as end of file. */
		close(ends[1]);
		/* While they read, the pages change under their first ancestor. */
		generation++;
		for (unsigned long p = 0; p < pages; p++) {
			verify("ancestor", region, p, 1, generation - 1);
			fill(region, p, 1, generation);
		}
		await(ends[0], batch);
		close(ends[0]);
	}
	printf("daemonise: %lu daemons of %lu pages right\n", daemons,
	       pages_each);
	return 0;
}
