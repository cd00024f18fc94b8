/*
 * owners: threads begin and lock robust mutexes in pages that were cold until just now, and
 * may be on their way out of the process. The kernel writes to those pages when the threads
 * end, where it waits for no one: into the thread block, for pthread_join, and into each
 * mutex that is still held. All joins must return and all locks must say EOWNERDEAD.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "coldexit.h"
#include "steps.h"

#define AT 0x600000000000UL
#define OWNERS 4
#define STACK_PAGES 16UL

/* A page for each mutex, and one that nothing is read into. */
union page {
	pthread_mutex_t mutex;
	char bytes[PAGE_BYTES];
};

static union page *mutexes;
static char *stacks;
static pthread_barrier_t all_locked;
static int leave[2];

static char *map_at(char *at, unsigned long pages)
{
	if (mmap(at, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
		fail_errno("mmap");
	return at;
}

static void make_mutexes(void)
{
	pthread_mutexattr_t robust;

	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	for (int o = 0; o < OWNERS; o++)
		if (pthread_mutex_init(&mutexes[o].mutex, &robust))
			fail("pthread_mutex_init");
	pthread_mutexattr_destroy(&robust);
}

/* All pages get bytes, and from the last one to the first, so that none comes along with
 * another: the agent then thinks the same of all. */
static void touch_all(void)
{
	char *at = (char *)mutexes;
	unsigned long pages = OWNERS + 1 + OWNERS * STACK_PAGES;

	while (pages--)
		page_at(at, pages)[PAGE_BYTES / 2] = 1;
}

static void *own_until_end(void *mutex)
{
	if (pthread_mutex_lock(mutex))
		fail("pthread_mutex_lock");
	pthread_barrier_wait(&all_locked);
	wait_and_exit_cold(leave[0], mutexes[OWNERS].bytes);
}

static void start(pthread_t *threads)
{
	pthread_attr_t attributes;

	pthread_attr_init(&attributes);
	for (int o = 0; o < OWNERS; o++)
		if (pthread_attr_setstack(&attributes,
					  page_at(stacks, (unsigned long)o * STACK_PAGES),
					  STACK_PAGES * PAGE_BYTES) ||
		    pthread_create(&threads[o], &attributes, own_until_end,
				   &mutexes[o].mutex))
			fail("pthread_create");
	pthread_attr_destroy(&attributes);
	pthread_barrier_wait(&all_locked);
}

int main(void)
{
	pthread_t threads[OWNERS];

	open_fifos();
	mutexes = (union page *)(void *)map_at((char *)AT, OWNERS + 1);
	stacks = map_at((char *)&mutexes[OWNERS + 1], OWNERS * STACK_PAGES);
	make_mutexes();
	pthread_barrier_init(&all_locked, NULL, OWNERS + 1);
	if (pipe(leave))
		fail_errno("pipe");

	touch_all();
	tell_part("mutexes", mutexes, OWNERS);
	tell_part("stacks", stacks, OWNERS * STACK_PAGES);
	step("touched");
	touch_all();
	step("touched again");
	start(threads);
	step("owned");

	alarm(20);
	close(leave[1]);
	for (int o = 0; o < OWNERS; o++)
		if (pthread_join(threads[o], NULL))
			fail("pthread_join");
	for (int o = 0; o < OWNERS; o++)
		if (pthread_mutex_lock(&mutexes[o].mutex) != EOWNERDEAD)
			fail("mutex %d: its owner's end was not marked", o);
	puts("owners: all is right");
	return 0;
}
