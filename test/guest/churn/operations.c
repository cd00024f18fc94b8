/* What a worker does to its regions, one operation a step. */
#define _GNU_SOURCE
#include "churn.h"

const char *const operation_names[OPERATIONS] = {
	[OP_READ] = "read",	    [OP_WRITE] = "write",
	[OP_PIPE] = "pipe",	    [OP_DONTNEED] = "dontneed",
	[OP_FREE] = "free",	    [OP_REPLACE] = "replace",
	[OP_TRIM] = "trim",	    [OP_OVERMAP] = "overmap",
	[OP_GROW] = "grow",	    [OP_SHRINK] = "shrink",
	[OP_MOVE] = "move",	    [OP_FIXED] = "fixed",
	[OP_DANCE] = "dance",
	[OP_PROTECT] = "protect",   [OP_FORK] = "fork",
	[OP_HUGE] = "huge",
};

/* A run of pages inside a region. */
struct run {
	uint32_t first;
	uint32_t count;
};

static struct run some_run(struct worker *worker, const struct region *region)
{
	struct run run;

	run.first = pick(worker, region->pages);
	run.count = 1 + pick(worker, region->pages - run.first);
	return run;
}

static size_t bytes(uint32_t pages)
{
	return pages * PAGE_BYTES;
}

static void check_run(struct worker *worker, struct region *region,
		      struct run run, const char *when)
{
	for (uint32_t p = run.first; p < run.first + run.count; p++)
		check_page(worker, region, p, when);
}

static void write_run(struct region *region, struct run run)
{
	for (uint32_t p = run.first; p < run.first + run.count; p++)
		write_page(region, p);
}

/* A purged run is left alone, or looked at and partly written again. */
static void maybe_reuse(struct worker *worker, struct region *region,
			struct run run, const char *when)
{
	if (pick(worker, 2))
		return;
	for (uint32_t p = run.first; p < run.first + run.count; p++) {
		check_page(worker, region, p, when);
		if (pick(worker, 2))
			write_page(region, p);
	}
}

static void do_read(struct worker *worker, struct region *region)
{
	struct run run = some_run(worker, region);

	remember(worker, region, "read", run.first, run.count);
	check_run(worker, region, run, "read");
}

static void do_write(struct worker *worker, struct region *region)
{
	struct run run = some_run(worker, region);

	remember(worker, region, "write", run.first, run.count);
	write_run(region, run);
}

/* The kernel reads the page, and writes it back. */
static void do_pipe(struct worker *worker, struct region *region)
{
	uint32_t page = pick(worker, region->pages);
	uint64_t words[PAGE_WORDS];

	remember(worker, region, "pipe", page, 1);
	must_write(worker->pipe[1], region_page(region, page), PAGE_BYTES);
	must_read(worker->pipe[0], words, PAGE_BYTES);
	check_copy(worker, region, page, words, "pipe");
	must_write(worker->pipe[1], words, PAGE_BYTES);
	must_read(worker->pipe[0], region_page(region, page), PAGE_BYTES);
	region->state[page].freed = false;
}

static void do_dontneed(struct worker *worker, struct region *region)
{
	struct run run = some_run(worker, region);

	remember(worker, region, "dontneed", run.first, run.count);
	if (madvise(region_page(region, run.first), bytes(run.count),
		    MADV_DONTNEED))
		fail_errno("MADV_DONTNEED");
	zeroed(region, run.first, run.count);
	maybe_reuse(worker, region, run, "after dontneed");
}

static void do_free(struct worker *worker, struct region *region)
{
	struct run run = some_run(worker, region);

	remember(worker, region, "free", run.first, run.count);
	if (madvise(region_page(region, run.first), bytes(run.count),
		    MADV_FREE))
		fail_errno("MADV_FREE");
	for (uint32_t p = run.first; p < run.first + run.count; p++)
		region->state[p].freed = true;
	maybe_reuse(worker, region, run, "after free");
}

static void do_replace(struct worker *worker, struct region *region)
{
	unmap_region(worker, region);
	map_region(worker, region);
}

static void do_trim(struct worker *worker, struct region *region)
{
	uint32_t count = pick(worker, region->pages);
	bool head = pick(worker, 2);

	if (!count)
		return;
	remember(worker, region, head ? "trim head" : "trim tail",
		 head ? 0 : region->pages - count, count);
	if (munmap(region_page(region, head ? 0 : region->pages - count),
		   bytes(count)))
		fail_errno("munmap");
	region->pages -= count;
	if (!head)
		return;
	region->at += bytes(count);
	region->base += count;
	memmove(region->state, region->state + count,
		region->pages * sizeof(*region->state));
}

static void do_overmap(struct worker *worker, struct region *region)
{
	struct run run = some_run(worker, region);

	remember(worker, region, "overmap", run.first, run.count);
	if (mmap(region_page(region, run.first), bytes(run.count),
		 PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		fail_errno("mmap over a region");
	region->patched = true;
	zeroed(region, run.first, run.count);
	maybe_reuse(worker, region, run, "after overmap");
}

/*
 * mremap refuses with EFAULT what lies in more than one VMA. Whether two merged
 * depends on more than this program, so it is no error.
 */
static char *try_mremap(struct worker *worker, struct region *region,
			uint32_t pages, int flags, char *target)
{
	char *at = mremap(region->at, bytes(region->pages), bytes(pages), flags,
			  target);

	if (at != MAP_FAILED)
		return at;
	if (errno != EFAULT && errno != ENOMEM)
		fail_errno("mremap");
	worker->refused++;
	return NULL;
}

static bool resize(struct worker *worker, struct region *region, uint32_t pages)
{
	char *at = try_mremap(worker, region, pages, MREMAP_MAYMOVE, NULL);

	if (!at)
		return false;
	region->at = at;
	if (pages > region->pages)
		zeroed(region, region->pages, pages - region->pages);
	region->pages = pages;
	return true;
}

static void do_resize(struct worker *worker, struct region *region,
		      uint32_t pages, const char *what)
{
	remember(worker, region, what, region->pages, pages);
	if (!resize(worker, region, pages))
		return;
	remember(worker, region, "resized", 0, pages);
	for (uint32_t p = pick(worker, 2); p < pages; p += 2)
		check_page(worker, region, p, what);
}

static void do_grow(struct worker *worker, struct region *region)
{
	uint32_t pages = region->pages + 1 + pick(worker, 100);

	if (pages <= REGION_PAGES_MAX)
		do_resize(worker, region, pages, "grow");
}

static void do_shrink(struct worker *worker, struct region *region)
{
	do_resize(worker, region, 1 + pick(worker, region->pages), "shrink");
}

/*
 * After an mremap onto `target` that failed, the kernel may or may not have
 * unmapped the target, and if it has, another worker may be there by now. So it
 * is left as it is and never looked at again.
 */
static void give_up_target(struct worker *worker, uint32_t pages)
{
	worker->abandoned_pages += pages;
}

/* So moves are for regions that are likely to be one VMA, and not for ever. */
static bool may_move(const struct worker *worker, const struct region *region)
{
	return !region->patched && worker->abandoned_pages < 8192;
}

static bool move_onto(struct worker *worker, struct region *region,
		      char *target)
{
	char *at = try_mremap(worker, region, region->pages,
			      MREMAP_MAYMOVE | MREMAP_FIXED, target);

	if (!at)
		return false;
	region->at = at;
	remember(worker, region, "moved", 0, region->pages);
	check_region(worker, region, "moved");
	return true;
}

/* Onto addresses that are reserved for it. */
static void do_move(struct worker *worker, struct region *region)
{
	char *target;

	if (!may_move(worker, region))
		return;
	target = mmap(NULL, bytes(region->pages), PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (target == MAP_FAILED)
		fail_errno("mmap of a reservation");
	remember(worker, region, "move", 0, region->pages);
	if (!move_onto(worker, region, target))
		give_up_target(worker, region->pages);
}

/* Elsewhere, and the old place stays mapped, with zeros, until it is unmapped. */
static bool stay_and_unmap(struct worker *worker, struct region *region)
{
	char *old = region->at;
	char *at = try_mremap(worker, region, region->pages,
			      MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);

	if (!at)
		return false;
	region->at = at;
	if (!pick(worker, 4) &&
	    *(volatile uint64_t *)(void *)(old + bytes(pick(worker, region->pages))))
		fail("MREMAP_DONTUNMAP has left something behind at %p", (void *)old);
	if (munmap(old, bytes(region->pages)))
		fail_errno("munmap of what stayed");
	return true;
}

/* Moves, grows and shrinks several times without looking at a page in between. */
static void do_dance(struct worker *worker, struct region *region)
{
	bool goes_on = may_move(worker, region);

	remember(worker, region, "dance", 0, region->pages);
	for (uint32_t n = 2 + pick(worker, 6); goes_on && n; n--) {
		uint32_t grown = region->pages + 1 + pick(worker, 50);

		switch (pick(worker, 4)) {
		case 0:
			goes_on = grown > REGION_PAGES_MAX || resize(worker, region, grown);
			break;
		case 1:
			goes_on = resize(worker, region, 1 + pick(worker, region->pages));
			break;
		default:
			goes_on = stay_and_unmap(worker, region);
		}
	}
	remember(worker, region, "danced", 0, region->pages);
	check_region(worker, region, "danced");
}

/* Onto another region of the same worker, whose rest goes too. */
static void do_fixed(struct worker *worker, struct region *region)
{
	struct region *target = &worker->regions[pick(worker, REGIONS)];
	uint32_t rest;

	if (target == region || !target->at || target->pages < region->pages ||
	    !may_move(worker, region))
		return;
	remember(worker, region, "fixed", 0, region->pages);
	rest = target->pages - region->pages;
	if (rest && munmap(region_page(target, region->pages), bytes(rest)))
		fail_errno("munmap");
	if (!move_onto(worker, region, target->at))
		give_up_target(worker, region->pages);
	target->at = NULL;
}

static void do_protect(struct worker *worker, struct region *region)
{
	struct run run = some_run(worker, region);
	char *at = region_page(region, run.first);
	bool readable = pick(worker, 2);

	remember(worker, region, readable ? "protect read" : "protect none",
		 run.first, run.count);
	if (mprotect(at, bytes(run.count), readable ? PROT_READ : PROT_NONE))
		fail_errno("mprotect");
	if (readable && pick(worker, 2))
		check_run(worker, region, run, "read only");
	if (mprotect(at, bytes(run.count), PROT_READ | PROT_WRITE))
		fail_errno("mprotect back");
	if (pick(worker, 2))
		check_run(worker, region, run, "writable again");
}

static void do_fork(struct worker *worker, struct region *region)
{
	(void)region;
	if (worker->child || pick(worker, 4))
		return;
	worker->progress->doing = "fork";
	fork_and_check(worker);
	worker->done[OP_FORK]++;
}

static const struct {
	uint32_t weight;
	void (*run)(struct worker *worker, struct region *region);
} operations[OPERATIONS] = {
	[OP_READ] = { 4, do_read },	    [OP_WRITE] = { 3, do_write },
	[OP_PIPE] = { 1, do_pipe },	    [OP_DONTNEED] = { 2, do_dontneed },
	[OP_FREE] = { 1, do_free },	    [OP_REPLACE] = { 2, do_replace },
	[OP_TRIM] = { 1, do_trim },	    [OP_OVERMAP] = { 1, do_overmap },
	[OP_GROW] = { 2, do_grow },	    [OP_SHRINK] = { 1, do_shrink },
	[OP_MOVE] = { 1, do_move },	    [OP_FIXED] = { 1, do_fixed },
	[OP_DANCE] = { 1, do_dance },
	[OP_PROTECT] = { 1, do_protect },   [OP_FORK] = { 1, do_fork },
	[OP_HUGE] = { 0, NULL }, /* a way to map, see map_region */
};

static enum operation some_operation(struct worker *worker)
{
	uint32_t total = 0, at;

	for (int op = 0; op < OPERATIONS; op++)
		total += operations[op].weight;
	at = pick(worker, total);
	for (int op = 0; op < OPERATIONS; op++) {
		if (at < operations[op].weight)
			return (enum operation)op;
		at -= operations[op].weight;
	}
	abort();
}

void step(struct worker *worker)
{
	struct region *region = &worker->regions[pick(worker, REGIONS)];
	enum operation operation = some_operation(worker);

	worker->progress->steps++;
	be_alive(worker);
	if (worker->child)
		reap(worker, false);
	if (!region->at) {
		map_region(worker, region);
		return;
	}
	if (!(options.operations & 1U << operation))
		return;
	operations[operation].run(worker, region);
	if (operation != OP_FORK)
		worker->done[operation]++;
}
