/*
 * forktree [MIB]: three generations, two children each. Every process first
 * verifies what it inherited; then it and its children write the same pages
 * differently, at the same time and from opposite ends, and each must go on
 * seeing its own.
 */
#include "guest.h"

#define CHILDREN 2
#define GENERATIONS 3

static char *region;
static unsigned long pages;
/* Who wrote each page last, as this process sees it; inherited like the pages. */
static uint16_t *writer;

static void verify_all(const char *when)
{
	for (unsigned long p = 0; p < pages; p++)
		verify(when, region, p, writer[p], 1);
}

static void take(unsigned long page, uint16_t self)
{
	verify("before writing", region, page, writer[page], 1);
	writer[page] = self;
	fill(region, page, self, 1);
}

/* Two pages in three; children from the end, so that they meet their parent. */
static void write_own(uint16_t self, int backwards)
{
	for (unsigned long n = 0; n < pages; n++) {
		unsigned long page = backwards ? pages - 1 - n : n;

		if (page % 3 != self % 3UL)
			take(page, self);
	}
}

/* Processes are numbered as in a heap: children of n are 2n and 2n+1. */
static void live(uint16_t self, int generation)
{
	pid_t children[CHILDREN];
	int forks = generation < GENERATIONS ? CHILDREN : 0;

	verify_all("inherited");
	for (int c = 0; c < forks; c++) {
		children[c] = fork();
		if (children[c] < 0)
			fail_errno("fork");
		if (!children[c]) {
			live((uint16_t)(self * 2 + c), generation + 1);
			_exit(0);
		}
	}
	write_own(self, generation > 1);
	verify_all("own");
	for (int c = 0; c < forks; c++)
		must_wait(children[c]);
	verify_all("after the children");
}

int main(int argc, char **argv)
{
	pages = pages_of_mib(argument(argc, argv, 1, 64));
	region = map_pages(pages);
	writer = calloc(pages, sizeof(*writer));
	if (!writer)
		fail("calloc");
	for (unsigned long p = 0; p < pages; p++)
		fill(region, p, 0, 1);
	live(1, 1);
	printf("forktree: %d generations over %lu pages right\n", GENERATIONS,
	       pages);
	return 0;
}
