/*
 * threads8 [MIB]: eight threads over one region. Each owns a slice and passes
 * over it forwards, backwards, in long strides and through a pipe, where the
 * kernel is the one that touches far pages; at the end each reads another's.
 */
#include <pthread.h>

#include "guest.h"

#define THREADS 8
#define OWNER 8
/* Prime, so that a stride meets every page of a slice of another length. */
#define STRIDE 1009

static char *region;
static unsigned long slice_pages;
static pthread_barrier_t all_written;
static uint64_t sums[THREADS];

static void write_then_look_backwards(unsigned long first, unsigned long end)
{
	for (unsigned long p = first; p < end; p++)
		fill(region, p, OWNER, 1);
	for (unsigned long p = end; p-- > first;)
		verify("backwards", region, p, OWNER, 1);
}

static void rewrite_in_strides(unsigned long first)
{
	unsigned long offset = 0;

	for (unsigned long n = 0; n < slice_pages; n++) {
		verify("stride", region, first + offset, OWNER, 1);
		fill(region, first + offset, OWNER, 2);
		offset = (offset + STRIDE) % slice_pages;
	}
}

/* write(2) out of the region and read(2) into it, one page at a time. */
static void rewrite_through_pipe(unsigned long first, unsigned long end)
{
	char bounce[PAGE_BYTES] __attribute__((aligned(8)));
	int ends[2];

	if (pipe(ends))
		fail_errno("pipe");
	for (unsigned long p = first; p < end; p++) {
		must_write(ends[1], page_at(region, p), PAGE_BYTES);
		must_read(ends[0], bounce, PAGE_BYTES);
		if (pattern_check(bounce, OWNER, p, 2) >= 0)
			fail("page %lu: write(2) took wrong bytes", p);
		pattern_fill(bounce, OWNER, p, 3);
		must_write(ends[1], bounce, PAGE_BYTES);
		must_read(ends[0], page_at(region, p), PAGE_BYTES);
	}
	close(ends[0]);
	close(ends[1]);
}

static uint64_t sum_of_slice(unsigned long first, unsigned long end)
{
	uint64_t sum = 0;

	for (unsigned long p = first; p < end; p++) {
		const uint64_t *words = (uint64_t *)(void *)page_at(region, p);

		verify("neighbour", region, p, OWNER, 3);
		for (unsigned int w = 0; w < PAGE_WORDS; w++)
			sum += mix(words[w] + p);
	}
	return sum;
}

static void *passes(void *argument_number)
{
	unsigned long number = (unsigned long)argument_number;
	unsigned long first = number * slice_pages;
	unsigned long other = (number + 3) % THREADS * slice_pages;

	write_then_look_backwards(first, first + slice_pages);
	if (slice_pages % STRIDE)
		rewrite_in_strides(first);
	else
		fail("size: %lu pages a thread is a multiple of the stride",
		     slice_pages);
	rewrite_through_pipe(first, first + slice_pages);
	pthread_barrier_wait(&all_written);
	sums[number] = sum_of_slice(other, other + slice_pages);
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned long mib = argument(argc, argv, 1, 256);
	pthread_t threads[THREADS];
	uint64_t sum = 0;

	slice_pages = pages_of_mib(mib) / THREADS;
	region = map_pages(slice_pages * THREADS);
	pthread_barrier_init(&all_written, NULL, THREADS);
	for (unsigned long t = 0; t < THREADS; t++)
		if (pthread_create(&threads[t], NULL, passes, (void *)t))
			fail("pthread_create");
	for (int t = 0; t < THREADS; t++)
		pthread_join(threads[t], NULL);
	for (int t = 0; t < THREADS; t++)
		sum += sums[t];
	printf("threads8: %lu pages right, sum %016lx\n",
	       slice_pages * THREADS, sum);
	return 0;
}
