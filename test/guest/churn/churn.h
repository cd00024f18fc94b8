/*
 * churn: threads that map, touch, purge, unmap, move and fork as an allocator
 * would at its worst, so that addresses are used again and again, and that know
 * at any time what each of their pages must hold.
 *
 * A region belongs to one worker; nobody else touches it. What workers have in
 * common is the address space: where one unmaps, another maps next.
 */
#ifndef CHURN_H
#define CHURN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../guest.h"

#define REGION_PAGES_MAX 1024
#define REGIONS 24
#define WORKERS_MAX 64
#define HISTORY 32
#define HUNG_AFTER_SECONDS 60

enum operation {
	OP_READ,
	OP_WRITE,
	OP_PIPE,
	OP_DONTNEED,
	OP_FREE,
	OP_REPLACE,
	OP_TRIM,
	OP_OVERMAP,
	OP_GROW,
	OP_SHRINK,
	OP_MOVE,
	OP_FIXED,
	OP_DANCE,
	OP_PROTECT,
	OP_FORK,
	OP_HUGE,
	OPERATIONS,
};

/* One thing that was done to a region. */
struct deed {
	const char *what;
	char *at;
	uint32_t first; /* pages of the region */
	uint32_t count;
	uint64_t step;
};

struct page_state {
	uint32_t generation; /* how often written since it was zero; 0: zeros */
	bool freed; /* MADV_FREE: zeros at any time, until it is written */
};

struct region {
	char *at; /* NULL: nothing mapped */
	uint32_t pages;
	/* Where the region began when it was made: trimming its head must not
	 * change what the pages behind it hold. */
	uint32_t base;
	uint64_t id;
	bool patched; /* was mapped over in part: maybe more than one VMA */
	struct page_state state[REGION_PAGES_MAX];
	struct deed history[HISTORY];
	uint32_t deeds;
};

/*
 * What the watchdog looks at. In shared memory, which never goes far, so that it
 * can be read when no far page comes back any more.
 */
struct progress {
	uint64_t steps;
	uint64_t alive; /* grows with all that is done */
	const char *doing;
	char *at;
	uint32_t pages;
	pid_t tid;
};

struct worker {
	uint32_t number;
	uint64_t random;
	struct progress *progress;
	pid_t child; /* forked and not yet reaped; 0: none */
	bool is_child;
	uint32_t child_seed;
	int pipe[2];
	struct region regions[REGIONS];
	uint64_t done[OPERATIONS];
	uint64_t checks;
	uint64_t refused; /* mremap over more than one VMA, or no memory */
	uint64_t abandoned_pages; /* see give_up_target */
};

struct options {
	uint32_t threads;
	uint32_t seconds;
	uint64_t seed;
	uint32_t operations; /* bit mask of enum operation */
	bool alone; /* one thread in all */
	bool hold; /* stop (SIGSTOP) on a wrong byte instead of ending */
};

extern struct options options;
extern const char *const operation_names[OPERATIONS];

/* random.c */
uint64_t next_random(struct worker *worker);
/* A number from 0 to below - 1. */
uint32_t pick(struct worker *worker, uint32_t below);

/* region.c */
void remember(struct worker *worker, struct region *region, const char *what,
	      uint32_t first, uint32_t count);
void map_region(struct worker *worker, struct region *region);
void unmap_region(struct worker *worker, struct region *region);
char *region_page(const struct region *region, uint32_t page);
void zeroed(struct region *region, uint32_t first, uint32_t count);
void write_page(struct region *region, uint32_t page);
void check_page(struct worker *worker, struct region *region, uint32_t page,
		const char *when);
void check_copy(struct worker *worker, struct region *region, uint32_t page,
		const uint64_t *words, const char *when);
void check_region(struct worker *worker, struct region *region,
		  const char *when);
void check_all(struct worker *worker, const char *when);

/* operations.c, fork.c */
void step(struct worker *worker);
void fork_and_check(struct worker *worker);
/* Returns at once without `wait` if the child still runs. */
void reap(struct worker *worker, bool wait);

/* watchdog.c */
/* What takes a moment only begins, or goes on. */
void be_alive(struct worker *worker);
void start_watchdog(const struct worker *workers);

#endif
