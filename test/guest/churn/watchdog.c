/* Says what hangs, and ends the program. */
#include <pthread.h>
#include <unistd.h>

#include "churn.h"

void be_alive(struct worker *worker)
{
	worker->progress->alive++;
	if (worker->is_child)
		alarm(HUNG_AFTER_SECONDS);
}

static void print_state(const struct worker *workers, const uint32_t *idle)
{
	for (uint32_t w = 0; w < options.threads; w++) {
		const struct progress *progress = workers[w].progress;

		dprintf(2,
			"  worker %u tid %d step %lu: %s, region %p of %u pages, "
			"nothing done for %u s\n",
			w, progress->tid, progress->steps,
			progress->doing ? progress->doing : "nothing yet",
			(void *)progress->at, progress->pages, idle[w]);
	}
}

static void *watch(void *argument_workers)
{
	const struct worker *workers = argument_workers;
	uint64_t seen[WORKERS_MAX] = { 0 };
	uint32_t idle[WORKERS_MAX] = { 0 };

	for (;;) {
		sleep(1);
		for (uint32_t w = 0; w < options.threads; w++) {
			uint64_t alive = __atomic_load_n(
				&workers[w].progress->alive, __ATOMIC_RELAXED);

			idle[w] = alive == seen[w] ? idle[w] + 1 : 0;
			seen[w] = alive;
			if (idle[w] < HUNG_AFTER_SECONDS)
				continue;
			dprintf(2, "HUNG: worker %u\n", w);
			print_state(workers, idle);
			abort();
		}
	}
}

void start_watchdog(const struct worker *workers)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, watch, (void *)(uintptr_t)workers))
		fail("pthread_create");
	pthread_detach(thread);
}
