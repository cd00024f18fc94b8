/* What a region's pages must hold, and what happens when one does not. */
#include <pthread.h>
#include <signal.h>

#include "churn.h"

/* First, middle and last: what moves part of a page would show. */
static const uint32_t marked_words[] = { 0, PAGE_WORDS / 2, PAGE_WORDS - 1 };
#define MARKED (sizeof(marked_words) / sizeof(*marked_words))

static uint64_t next_id;

void remember(struct worker *worker, struct region *region, const char *what,
	      uint32_t first, uint32_t count)
{
	region->history[region->deeds++ % HISTORY] = (struct deed){
		.what = what,
		.at = region->at,
		.first = first,
		.count = count,
		.step = worker->progress->steps,
	};
	worker->progress->doing = what;
	worker->progress->at = region->at;
	worker->progress->pages = region->pages;
}

char *region_page(const struct region *region, uint32_t page)
{
	return region->at + page * PAGE_BYTES;
}

void zeroed(struct region *region, uint32_t first, uint32_t count)
{
	for (uint32_t p = first; p < first + count; p++)
		region->state[p] = (struct page_state){ 0 };
}

void map_region(struct worker *worker, struct region *region)
{
	bool huge = options.operations & 1U << OP_HUGE && !pick(worker, 8);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;

	if (pick(worker, 2))
		flags |= MAP_NORESERVE;
	region->pages = huge ? REGION_PAGES_MAX : 1 + pick(worker, 400);
	region->base = 0;
	region->deeds = 0;
	region->patched = false;
	region->id = __atomic_add_fetch(&next_id, 1, __ATOMIC_RELAXED);
	region->at = mmap(NULL, region->pages * PAGE_BYTES,
			  PROT_READ | PROT_WRITE, flags, -1, 0);
	if (region->at == MAP_FAILED)
		fail_errno("mmap");
	if (huge)
		madvise(region->at, region->pages * PAGE_BYTES, MADV_HUGEPAGE);
	zeroed(region, 0, region->pages);
	remember(worker, region, huge ? "map huge" : "map", 0, region->pages);
	be_alive(worker);
	for (uint32_t p = 0; p < region->pages; p++) {
		if (pick(worker, 2))
			check_page(worker, region, p, "fresh");
		if (pick(worker, 4))
			write_page(region, p);
	}
}

void unmap_region(struct worker *worker, struct region *region)
{
	remember(worker, region, "unmap", 0, region->pages);
	if (munmap(region->at, region->pages * PAGE_BYTES))
		fail_errno("munmap");
	region->at = NULL;
}

static uint64_t expected(const struct region *region, uint32_t page)
{
	return pattern_word(region->id, region->base + page,
			    region->state[page].generation, 1);
}

void write_page(struct region *region, uint32_t page)
{
	uint64_t *words = (uint64_t *)(void *)region_page(region, page);
	uint64_t value;

	region->state[page].generation++;
	region->state[page].freed = false;
	value = expected(region, page);
	for (size_t m = 0; m < MARKED; m++)
		words[marked_words[m]] = value;
}

static void print_history(const struct region *region)
{
	uint32_t n = region->deeds > HISTORY ? region->deeds - HISTORY : 0;

	for (; n < region->deeds; n++) {
		const struct deed *deed = &region->history[n % HISTORY];

		dprintf(2, "  step %lu: %s pages %u+%u at %p\n", deed->step,
			deed->what, deed->first, deed->count,
			(void *)deed->at);
	}
}

static __attribute__((noreturn)) void
wrong(struct worker *worker, struct region *region, uint32_t page,
      const uint64_t *words, const char *when)
{
	static pthread_mutex_t one_report = PTHREAD_MUTEX_INITIALIZER;
	char *at = region_page(region, page);

	pthread_mutex_lock(&one_report);
	dprintf(2,
		"WRONG (%s): pid %d worker %u step %lu address %p page %u of %u "
		"(base %u) region %lu generation %u%s\n",
		when, getpid(), worker->number, worker->progress->steps,
		(void *)at, page, region->pages, region->base, region->id,
		region->state[page].generation,
		region->state[page].freed ? " freed" : "");
	for (size_t m = 0; m < MARKED; m++)
		dprintf(2, "  word %u: want %016lx got %016lx now %016lx\n",
			marked_words[m], expected(region, page),
			words[marked_words[m]],
			((volatile uint64_t *)(void *)at)[marked_words[m]]);
	for (uint32_t g = 1; g < region->state[page].generation; g++) {
		struct region before = { .id = region->id,
					 .base = region->base };

		before.state[page].generation = g;
		if (expected(&before, page) == words[0])
			dprintf(2, "  this is what generation %u was\n", g);
	}
	print_history(region);
	if (options.hold)
		raise(SIGSTOP);
	_exit(1);
}

void check_copy(struct worker *worker, struct region *region, uint32_t page,
		const uint64_t *words, const char *when)
{
	struct page_state *state = &region->state[page];
	uint64_t want = expected(region, page);
	size_t right = 0, zero = 0;

	worker->checks++;
	for (size_t m = 0; m < MARKED; m++) {
		right += words[marked_words[m]] == want;
		zero += !words[marked_words[m]];
	}
	if (right == MARKED)
		return;
	if (!state->freed || zero != MARKED)
		wrong(worker, region, page, words, when);
	/* Once it was seen as zeros it stays so. */
	*state = (struct page_state){ 0 };
}

void check_page(struct worker *worker, struct region *region, uint32_t page,
		const char *when)
{
	const volatile uint64_t *at =
		(uint64_t *)(void *)region_page(region, page);
	uint64_t words[PAGE_WORDS];

	for (size_t m = 0; m < MARKED; m++)
		words[marked_words[m]] = at[marked_words[m]];
	check_copy(worker, region, page, words, when);
}

void check_region(struct worker *worker, struct region *region,
		  const char *when)
{
	be_alive(worker);
	for (uint32_t p = 0; p < region->pages; p++)
		check_page(worker, region, p, when);
}

void check_all(struct worker *worker, const char *when)
{
	for (uint32_t r = 0; r < REGIONS; r++)
		if (worker->regions[r].at)
			check_region(worker, &worker->regions[r], when);
}
