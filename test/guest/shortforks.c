/*
 * shortforks [MIB] [FORKS] [PAGES]: many forks of which every other child exits
 * at once; the rest verify PAGES pages and write some. The parent writes on
 * meanwhile.
 */
#include "guest.h"

#define AT_A_TIME 4
#define OWNER 1

static char *region;
static unsigned long pages;
static unsigned long pages_each;
/* How often each page was written. */
static uint32_t *generation;

static unsigned long nth_page(unsigned long child, unsigned long n)
{
	return mix(child * 7919 + n) % pages;
}

static __attribute__((noreturn)) void child(unsigned long number)
{
	if (number % 2)
		_exit(0);
	for (unsigned long n = 0; n < pages_each; n++) {
		unsigned long page = nth_page(number, n);

		verify("child", region, page, OWNER, generation[page]);
		generation[page] += 1000;
		fill(region, page, OWNER, generation[page]);
	}
	for (unsigned long n = 0; n < pages_each; n++) {
		unsigned long page = nth_page(number, n);

		verify("child again", region, page, OWNER, generation[page]);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	unsigned long forks = argument(argc, argv, 2, 400);
	pid_t children[AT_A_TIME];

	pages = pages_of_mib(argument(argc, argv, 1, 64));
	pages_each = argument(argc, argv, 3, 64);
	region = map_pages(pages);
	generation = calloc(pages, sizeof(*generation));
	if (!generation)
		fail("calloc");
	for (unsigned long p = 0; p < pages; p++)
		fill(region, p, OWNER, ++generation[p]);
	for (unsigned long forked = 0; forked < forks;) {
		int batch = 0;

		for (; batch < AT_A_TIME && forked < forks; batch++, forked++) {
			children[batch] = fork();
			if (children[batch] < 0)
				fail_errno("fork");
			if (!children[batch])
				child(forked);
		}
		for (unsigned long n = 0; n < 4 * pages_each; n++) {
			unsigned long page = mix(forked ^ (n << 32)) % pages;

			verify("parent", region, page, OWNER, generation[page]);
			fill(region, page, OWNER, ++generation[page]);
		}
		while (batch)
			must_wait(children[--batch]);
	}
	for (unsigned long p = 0; p < pages; p++)
		verify("end", region, p, OWNER, generation[p]);
	printf("shortforks: %lu forks over %lu pages right\n", forks, pages);
	return 0;
}
