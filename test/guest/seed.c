/*
 * seed [heap|over|anew]: memory of which only what is mapped inside two ranges of addresses,
 * SPACE and SECOND, is to be managed. It goes through what such memory can meet: mapped,
 * touched for the first time, written, far and read back, forked, protected, unmapped,
 * moved out of the ranges and into them, and evicted by the program's own
 * mremap(MREMAP_DONTUNMAP), called by one thread while another is stopped.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

#include "steps.h"

#define MIB (1UL << 20)

/* The ranges, as the container's annotation names them. */
#define SPACE 0x600000000000UL
#define SPACE_END (SPACE + 1024 * MIB)
#define SECOND 0x610000000000UL
#define SECOND_END (SECOND + 16 * MIB)

/* Places that are in neither. */
#define APART 0x500000000000UL
#define ELSEWHERE 0x510000000000UL

#define HALF_MIB_PAGES 128UL

/* Memory whose pages hold what `owner` and `generation` say, wherever it is. */
struct part {
	const char *name;
	char *at;
	unsigned long pages;
};

enum { OUTSIDE, BEFORE, FIRST, LAST, BEHIND, HEAP, ARENA, INSIDE, PARTS };

static struct part parts[PARTS];
static uint64_t generation; /* 0: nobody has written, all is zeros */
static uint64_t owner = 1;

static void tell(const struct part *part)
{
	tell_part(part->name, part->at, part->pages);
}

static uint64_t owner_of(const struct part *part)
{
	return owner << 32 | (uint64_t)(part - parts);
}

static void write_part(const struct part *part)
{
	for (unsigned long p = 0; p < part->pages; p++)
		fill(part->at, p, owner_of(part), generation);
}

static void check_part(const char *when, const struct part *part)
{
	for (unsigned long p = 0; p < part->pages; p++)
		verify(when, part->at, p, owner_of(part), generation);
}

static void write_all(void)
{
	for (int p = 0; p < PARTS; p++)
		write_part(&parts[p]);
}

static void check_all(const char *when)
{
	for (int p = 0; p < PARTS; p++)
		check_part(when, &parts[p]);
}

static char *map_at(unsigned long where, unsigned long pages)
{
	char *at = mmap((void *)where, pages * PAGE_BYTES,
			PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (at != (char *)where)
		fail_errno("mmap");
	return at;
}

static void move(struct part *part, unsigned long to)
{
	unsigned long bytes = part->pages * PAGE_BYTES;

	if (mremap(part->at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
		   (void *)to) != (void *)to)
		fail_errno("mremap");
	part->at = (char *)to;
}

static void protect(char *at, unsigned long pages, int protection)
{
	if (mprotect(at, pages * PAGE_BYTES, protection))
		fail_errno("mprotect");
}

/* One mapping of which half is on each side of a border: two parts. */
static void map_over(unsigned long border, int low, int high)
{
	char *at = map_at(border - HALF_MIB_PAGES * PAGE_BYTES,
			  2 * HALF_MIB_PAGES);

	parts[low].at = at;
	parts[high].at = page_at(at, HALF_MIB_PAGES);
	parts[low].pages = parts[high].pages = HALF_MIB_PAGES;
}

/* By brk, which begins at a page after this. */
static struct part grow_heap(const char *name, unsigned long pages)
{
	unsigned long past = (unsigned long)sbrk(0) % PAGE_BYTES;
	struct part heap = { .name = name, .pages = pages };

	if (past && sbrk((long)(PAGE_BYTES - past)) == (void *)-1)
		fail_errno("sbrk");
	heap.at = sbrk((long)(pages * PAGE_BYTES));
	if (heap.at == (void *)-1)
		fail_errno("sbrk");
	return heap;
}

/* A thread that is not the first gets an arena, which libc maps by itself. */
static void *allocate(void *unused)
{
	(void)unused;
	parts[ARENA].pages = 16;
	parts[ARENA].at = aligned_alloc(PAGE_BYTES, 16 * PAGE_BYTES);
	return NULL;
}

static void map_all(void)
{
	static const char *const names[PARTS] = {
		"outside", "before", "first", "last",
		"behind",  "heap",   "arena", "inside",
	};
	pthread_t thread;

	parts[OUTSIDE].pages = pages_of_mib(4);
	parts[OUTSIDE].at = map_at(APART, parts[OUTSIDE].pages);
	map_over(SECOND, BEFORE, FIRST);
	map_over(SECOND_END, LAST, BEHIND);
	parts[HEAP] = grow_heap("heap", HALF_MIB_PAGES);
	if (pthread_create(&thread, NULL, allocate, NULL) ||
	    pthread_join(thread, NULL) || !parts[ARENA].at)
		fail("no arena");
	parts[INSIDE].pages = pages_of_mib(8);
	parts[INSIDE].at = map_at(SPACE, parts[INSIDE].pages);
	for (int p = 0; p < PARTS; p++) {
		parts[p].name = names[p];
		tell(&parts[p]);
	}
}

/* More than the budget, inside. */
static void press(void)
{
	struct part large = { .name = "large", .pages = pages_of_mib(48) };
	char *end = (char *)SPACE + 256 * MIB + large.pages * PAGE_BYTES;

	large.at = map_at(SPACE + 256 * MIB, large.pages);
	for (unsigned long p = 0; p < large.pages; p++)
		fill(large.at, p, 99, 1);
	for (unsigned long p = 0; p < large.pages; p++) {
		verify("pressed", large.at, p, 99, 1);
		fill(large.at, p, 99, 2);
	}
	for (unsigned long p = 0; p < large.pages; p++)
		verify("pressed again", large.at, p, 99, 2);
	tell(&large);
	step("pressed");
	if (munmap(large.at, (size_t)(end - large.at)))
		fail_errno("munmap");
}

static void as_grandchild(void)
{
	check_all("the grandchild inherited");
	owner++;
	write_all();
	check_all("the grandchild wrote");
	_exit(0);
}

static void as_child(void)
{
	pid_t pid;

	step("child");
	check_all("the child inherited");
	owner++;
	write_all();
	step("child has written");
	pid = fork();
	if (pid == 0)
		as_grandchild();
	if (pid < 0)
		fail_errno("fork");
	check_all("the child, beside its own");
	must_wait(pid);
	check_all("the child wrote");
	_exit(0);
}

static void fork_all(void)
{
	pid_t pid = fork();

	if (pid == 0)
		as_child();
	if (pid < 0)
		fail_errno("fork");
	must_wait(pid);
	step("childless");
	check_all("the parent, after its child");
}

static void change_protection(void)
{
	struct part *inside = &parts[INSIDE], *last = &parts[LAST];

	protect(inside->at, inside->pages / 2, PROT_READ);
	protect(last->at, 2 * HALF_MIB_PAGES, PROT_READ);
	check_all("read only");
	step("protected");
	protect(inside->at, inside->pages / 2, PROT_NONE);
	protect(last->at, 2 * HALF_MIB_PAGES, PROT_NONE);
	protect(inside->at, inside->pages / 2, PROT_READ | PROT_WRITE);
	protect(last->at, 2 * HALF_MIB_PAGES, PROT_READ | PROT_WRITE);
	check_all("writable again");
	generation++;
	write_all();
}

/* What was on both sides of a border goes by one call, and is mapped again by one. */
static void renew(void)
{
	uint64_t written = generation;

	if (munmap(parts[LAST].at, 2 * HALF_MIB_PAGES * PAGE_BYTES))
		fail_errno("munmap");
	map_over(SECOND_END, LAST, BEHIND);
	step("renewed");
	generation = 0;
	check_part("renewed", &parts[LAST]);
	check_part("renewed", &parts[BEHIND]);
	generation = written;
	write_part(&parts[LAST]);
	write_part(&parts[BEHIND]);
}

static void move_out_and_back(void)
{
	struct part *inside = &parts[INSIDE];

	move(inside, ELSEWHERE);
	tell(inside);
	step("moved out");
	check_part("moved out", inside);
	generation++;
	write_all();
	step("written out there");
	move(inside, SPACE);
	tell(inside);
	step("moved back");
	check_part("moved back", inside);
}

static void move_in_and_out(void)
{
	struct part visitor = { .name = "visitor", .pages = pages_of_mib(2) };

	visitor.at = map_at(ELSEWHERE, visitor.pages);
	for (unsigned long p = 0; p < visitor.pages; p++)
		fill(visitor.at, p, 98, 1);
	tell(&visitor);
	step("visitor");
	move(&visitor, SPACE + 512 * MIB);
	tell(&visitor);
	step("moved in");
	for (unsigned long p = 0; p < visitor.pages; p++)
		verify("moved in", visitor.at, p, 98, 1);
	step("visited");
	move(&visitor, ELSEWHERE);
	for (unsigned long p = 0; p < visitor.pages; p++)
		verify("moved out again", visitor.at, p, 98, 1);
	if (munmap(visitor.at, visitor.pages * PAGE_BYTES))
		fail_errno("munmap");
}

/* In place, over the end of a range. */
static void grow(void)
{
	struct part grown = { .name = "grown", .pages = 2 * HALF_MIB_PAGES };
	unsigned long bytes = HALF_MIB_PAGES * PAGE_BYTES;

	grown.at = map_at(SPACE_END - bytes, HALF_MIB_PAGES);
	tell(&(struct part){ "small", grown.at, HALF_MIB_PAGES });
	step("small");
	for (unsigned long p = 0; p < HALF_MIB_PAGES; p++)
		fill(grown.at, p, 97, 1);
	step("small is written");
	if (mremap(grown.at, bytes, 2 * bytes, 0) != grown.at)
		fail_errno("mremap");
	for (unsigned long p = 0; p < grown.pages; p++)
		verify("grown", grown.at, p, 97, p < HALF_MIB_PAGES);
	for (unsigned long p = HALF_MIB_PAGES; p < grown.pages; p++)
		fill(grown.at, p, 97, 1);
	tell(&grown);
	step("grown");
	for (unsigned long p = 0; p < grown.pages; p++)
		verify("grown and evicted", grown.at, p, 97, 1);
	if (munmap(grown.at, grown.pages * PAGE_BYTES))
		fail_errno("munmap");
}

/* How it is with the first thread, a futex. */
static uint32_t first_thread;
enum { RUNS, STOPPED, MAY_RUN };

static void set_first_thread(uint32_t state)
{
	__atomic_store_n(&first_thread, state, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &first_thread, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void await_first_thread(uint32_t wanted)
{
	uint32_t now;

	while ((now = __atomic_load_n(&first_thread, __ATOMIC_SEQ_CST)) != wanted)
		syscall(SYS_futex, &first_thread, FUTEX_WAIT, now, NULL, NULL, 0);
}

/* Wherever the first thread is, it stays there until it may run again. */
static void stop_here(int number)
{
	(void)number;
	set_first_thread(STOPPED);
	await_first_thread(MAY_RUN);
}

static pthread_t first;
static uint32_t evicted;
static struct part buffer;

/* Evicts the part inside the way that needs all other threads to be stopped: by
 * moving its pages away from under it, the mapping stays. */
static void *evict_by_moving(void *unused)
{
	struct part *inside = &parts[INSIDE];
	unsigned long bytes = inside->pages * PAGE_BYTES;

	(void)unused;
	if (pthread_kill(first, SIGUSR1))
		fail("pthread_kill");
	await_first_thread(STOPPED);
	step("stopped");
	buffer = (struct part){ .name = "buffer", .pages = inside->pages };
	buffer.at = mremap(inside->at, bytes, bytes,
			   MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	if (buffer.at == MAP_FAILED)
		fail_errno("mremap(MREMAP_DONTUNMAP)");
	tell(&buffer);
	step("moved away");
	for (unsigned long p = 0; p < buffer.pages; p++)
		verify("the buffer", buffer.at, p, owner_of(inside), generation);
	step("read in the buffer");
	__atomic_store_n(&evicted, 1, __ATOMIC_SEQ_CST);
	set_first_thread(MAY_RUN);
	return NULL;
}

static void evict_itself(void)
{
	struct sigaction stop = { .sa_handler = stop_here };
	struct part *inside = &parts[INSIDE];
	pthread_t evictor;

	first = pthread_self();
	if (sigaction(SIGUSR1, &stop, NULL) ||
	    pthread_create(&evictor, NULL, evict_by_moving, NULL))
		fail("no evictor");
	while (!__atomic_load_n(&evicted, __ATOMIC_SEQ_CST))
		check_part("beside the evictor", &parts[FIRST]);
	if (pthread_join(evictor, NULL))
		fail("pthread_join");
	/* What is missing is the old mapping's like any fresh page of it. */
	for (unsigned long p = 0; p < inside->pages; p++)
		verify("under the evicted", inside->at, p, 0, 0);
	for (unsigned long p = 0; p < inside->pages; p++)
		fill(inside->at, p, 96, 1);
	step("both are there");
	for (unsigned long p = 0; p < inside->pages; p++)
		verify("where it was evicted", inside->at, p, 96, 1);
	for (unsigned long p = 0; p < inside->pages; p++)
		verify("the buffer, later", buffer.at, p, owner_of(inside),
		       generation);
	step("both are right");
	move(&buffer, (unsigned long)inside->at);
	step("given back");
	check_part("given back", inside);
}

/* All of it, in the order in which memory lives. */
static void live(void)
{
	map_all();
	step("mapped");
	check_all("fresh");
	step("touched");
	generation = 1;
	write_all();
	step("written");
	check_all("evicted");
	step("read back");
	press();
	step("let go");
	fork_all();
	step("unforked");
	change_protection();
	renew();
	step("renewed and written");
	move_out_and_back();
	move_in_and_out();
	grow();
	step("all is far");
	evict_itself();
	check_all("at last");
}

/* A heap that is inside a range, and grows and shrinks. */
static void live_by_brk(void)
{
	struct part heap = grow_heap("heap", 256), more;

	tell(&heap);
	step("mapped");
	for (unsigned long p = 0; p < heap.pages; p++)
		fill(heap.at, p, 1, 1);
	step("written");
	for (unsigned long p = 0; p < heap.pages; p++)
		verify("evicted", heap.at, p, 1, 1);
	for (uint64_t round = 1; round <= 3; round++) {
		more = grow_heap("more", 256);
		tell(&more);
		step("grown");
		for (unsigned long p = 0; p < more.pages; p++) {
			verify("grown", more.at, p, 0, 0);
			fill(more.at, p, 2, round);
		}
		step("written");
		for (unsigned long p = 0; p < more.pages; p++)
			verify("evicted", more.at, p, 2, round);
		step("read back");
		if (sbrk(-(long)(more.pages * PAGE_BYTES)) == (void *)-1)
			fail_errno("sbrk");
	}
	for (unsigned long p = 0; p < heap.pages; p++)
		verify("at last", heap.at, p, 1, 1);
}

/* More than the budget outside, beside a little inside. */
static void live_over_the_budget(void)
{
	struct part inside = { .name = "inside", .pages = pages_of_mib(4) };
	struct part outside = { .name = "outside", .pages = pages_of_mib(48) };

	inside.at = map_at(SPACE, inside.pages);
	outside.at = map_at(APART, outside.pages);
	tell(&inside);
	tell(&outside);
	step("mapped");
	for (unsigned long p = 0; p < inside.pages; p++)
		fill(inside.at, p, 1, 1);
	for (unsigned long p = 0; p < outside.pages; p++)
		fill(outside.at, p, 2, 1);
	step("written");
	for (unsigned long p = 0; p < inside.pages; p++) {
		verify("inside", inside.at, p, 1, 1);
		fill(inside.at, p, 1, 2);
	}
	for (unsigned long p = 0; p < inside.pages; p++)
		verify("inside, again", inside.at, p, 1, 2);
	step("read back");
	for (unsigned long p = 0; p < outside.pages; p++)
		verify("outside", outside.at, p, 2, 1);
}

/* A mapping takes the place of one of the same size that has just gone, and is filled at
 * once: more than the budget, before anybody has had the time to look. */
static void live_anew(void)
{
	struct part large = { .name = "large", .pages = pages_of_mib(96) };

	step("begun");
	for (uint64_t round = 1; round <= 4; round++) {
		large.at = map_at(SPACE, large.pages);
		usleep(5000);
		if (munmap(large.at, large.pages * PAGE_BYTES))
			fail_errno("munmap");
		large.at = map_at(SPACE, large.pages);
		for (unsigned long p = 0; p < large.pages; p++)
			fill(large.at, p, 1, round);
		for (unsigned long p = 0; p < large.pages; p++)
			verify("anew", large.at, p, 1, round);
		if (munmap(large.at, large.pages * PAGE_BYTES))
			fail_errno("munmap");
	}
	step("done");
}

int main(int argc, char **argv)
{
	open_fifos();
	if (argc == 1)
		live();
	else if (!strcmp(argv[1], "heap"))
		live_by_brk();
	else if (!strcmp(argv[1], "over"))
		live_over_the_budget();
	else if (!strcmp(argv[1], "anew"))
		live_anew();
	else
		fail("usage: seed [heap|over|anew]");
	puts("seed: all is right");
	return 0;
}
