/* A child that goes on alone with what its worker had at that moment. */
#include <time.h>

#include "churn.h"

#define FRESH_REGIONS 6

static void sleep_a_little(struct worker *worker)
{
	struct timespec pause = { .tv_nsec = pick(worker, 3000) * 1000 };

	nanosleep(&pause, NULL);
}

static void write_every_third(struct worker *worker)
{
	for (uint32_t r = 0; r < REGIONS; r++) {
		struct region *region = &worker->regions[r];

		if (!region->at)
			continue;
		be_alive(worker);
		remember(worker, region, "written in a child", 0,
			 region->pages);
		for (uint32_t p = 0; p < region->pages; p += 3)
			write_page(region, p);
	}
}

static void map_fresh(struct worker *worker)
{
	static struct region fresh;

	for (int n = 0; n < FRESH_REGIONS; n++) {
		map_region(worker, &fresh);
		check_region(worker, &fresh, "fresh in a child");
		if (n % 2)
			unmap_region(worker, &fresh);
	}
}

/* Has one thread and no watchdog: the alarm ends a child that hangs. */
static __attribute__((noreturn)) void live_as_child(struct worker *worker)
{
	struct progress own = { .steps = worker->progress->steps };

	worker->progress = &own;
	worker->is_child = true;
	check_all(worker, "inherited");
	write_every_third(worker);
	map_fresh(worker);
	sleep_a_little(worker);
	check_all(worker, "in a child");
	_exit(0);
}

void fork_and_check(struct worker *worker)
{
	worker->child = fork();
	if (worker->child < 0)
		fail_errno("fork");
	if (!worker->child)
		live_as_child(worker);
}

void reap(struct worker *worker, bool wait)
{
	pid_t pid;
	int status;

	for (;;) {
		pid = waitpid(worker->child, &status, WNOHANG);
		if (pid < 0 && errno == EINTR)
			continue;
		if (pid || !wait)
			break;
		be_alive(worker); /* the child's alarm says when it is not */
		usleep(10000);
	}
	if (pid < 0)
		fail_errno("waitpid");
	if (!pid)
		return;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		fail("HUNG: a child of worker %u, for %d s", worker->number,
		     HUNG_AFTER_SECONDS);
	if (status)
		fail("a child of worker %u ended with wait status %#x",
		     worker->number, status);
	worker->child = 0;
}
