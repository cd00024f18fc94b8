/* Says what hangs, and ends the program. */
#include <pthread.h>

#include "churn.h"

static void print_state(const struct worker *workers, const uint32_t *idle)
{
	for (uint32_t w = 0; w < options.threads; w++) {
		const struct progress *progress = workers[w].progress;

		dprintf(2,
			"  worker %u tid %d step %lu: %s, region %p of %u pages, "
			"no step for %u s\n",
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
			uint64_t steps = __atomic_load_n(
				&workers[w].progress->steps, __ATOMIC_RELAXED);

			idle[w] = steps == seen[w] ? idle[w] + 1 : 0;
			seen[w] = steps;
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
