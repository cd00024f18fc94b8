/*
 * threadexit [MIB] [ROUNDS] [shared|private]: threads that end while their
 * memory is cold. The kernel writes to it at a thread's end, where it waits for
 * no one: it clears the thread id for pthread_join and marks the robust mutexes
 * that the thread still held. All joins must return and all locks must say
 * EOWNERDEAD.
 *
 * The mutexes are in shared memory, as robust mutexes mostly are, or with
 * "private" in memory that may be far itself when its owner ends.
 */
#include <pthread.h>

#include "coldexit.h"
#include "guest.h"

#define THREADS 8
#define OWNER 1

/* A page for each, so that one is not kept warm by its neighbour. */
union slot {
	pthread_mutex_t mutex;
	char page[PAGE_BYTES];
};

static union slot *slots;
static pthread_barrier_t all_locked;
static int leave[2];

static void make_robust(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t robust;

	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
	if (pthread_mutex_init(mutex, &robust))
		fail("pthread_mutex_init");
	pthread_mutexattr_destroy(&robust);
}

/*
 * Odd threads go the cold way, even ones return as threads do. With musl all
 * return: its pthread_join waits for what pthread_exit writes.
 */
static int goes_cold(unsigned long number)
{
#ifdef __GLIBC__
	return number % 2;
#else
	(void)wait_and_exit_cold;
	(void)number;
	return 0;
#endif
}

static void *hold_until_end(void *thread_number)
{
	unsigned long number = (unsigned long)thread_number;
	char byte;

	if (pthread_mutex_lock(&slots[number].mutex))
		fail("thread %lu: pthread_mutex_lock", number);
	pthread_barrier_wait(&all_locked);
	if (goes_cold(number))
		wait_and_exit_cold(leave[0], slots[THREADS].page);
	if (read(leave[0], &byte, 1) != 0)
		fail("thread %lu: read", number);
	return NULL;
}

static void expect_owner_dead(unsigned long round, int number)
{
	pthread_mutex_t *mutex = &slots[number].mutex;
	int error = pthread_mutex_lock(mutex);

	if (error != EOWNERDEAD)
		fail("round %lu thread %d: want EOWNERDEAD of its mutex, got %s",
		     round, number, error ? strerror(error) : "success");
	if (pthread_mutex_consistent(mutex) || pthread_mutex_unlock(mutex))
		fail("round %lu thread %d: pthread_mutex_consistent", round,
		     number);
}

static void one_round(unsigned long round, char *region, unsigned long pages)
{
	pthread_t threads[THREADS];

	if (pipe(leave))
		fail_errno("pipe");
	for (unsigned long t = 0; t < THREADS; t++)
		if (pthread_create(&threads[t], NULL, hold_until_end, (void *)t))
			fail("round %lu: pthread_create", round);
	pthread_barrier_wait(&all_locked);
	/* What the threads have touched gets cold while this goes by. */
	for (unsigned long p = 0; p < pages; p++) {
		verify("walk", region, p, OWNER, round);
		fill(region, p, OWNER, round + 1);
	}
	close(leave[1]);
	for (int t = 0; t < THREADS; t++)
		if (pthread_join(threads[t], NULL))
			fail("round %lu: pthread_join", round);
	for (int t = 0; t < THREADS; t++)
		expect_owner_dead(round, t);
	close(leave[0]);
}

int main(int argc, char **argv)
{
	unsigned long pages = pages_of_mib(argument(argc, argv, 1, 64));
	unsigned long rounds = argument(argc, argv, 2, 20);
	int sharing = argc > 3 && !strcmp(argv[3], "private") ? MAP_PRIVATE :
								MAP_SHARED;
	char *region = map_pages(pages);

	slots = mmap(NULL, (THREADS + 1) * sizeof(*slots),
		     PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
	if (slots == MAP_FAILED)
		fail_errno("mmap");
	for (int t = 0; t < THREADS; t++)
		make_robust(&slots[t].mutex);
	pthread_barrier_init(&all_locked, NULL, THREADS + 1);
	for (unsigned long p = 0; p < pages; p++)
		fill(region, p, OWNER, 1);
	for (unsigned long round = 1; round <= rounds; round++)
		one_round(round, region, pages);
	printf("threadexit: %lu rounds of %d threads right\n", rounds, THREADS);
	return 0;
}
