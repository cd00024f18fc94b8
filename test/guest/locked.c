/*
 * locked [LOCKED_MIB [MIB]]: memory that is locked, and so is never far, beside some
 * that is not. With more locked than the budget has room for, nothing that could go
 * is ever enough, and the program must go on all the same.
 */
#include "guest.h"

#define ROUNDS 3

int main(int argc, char **argv)
{
	unsigned long locked_pages = pages_of_mib(argument(argc, argv, 1, 40));
	unsigned long pages = pages_of_mib(argument(argc, argv, 2, 8));
	char *locked = map_pages(locked_pages);
	char *region = map_pages(pages);

	for (unsigned long i = 0; i < pages; i++)
		fill(region, i, 1, 0);
	if (mlock(locked, locked_pages * PAGE_BYTES))
		fail_errno("mlock");
	for (unsigned long i = 0; i < locked_pages; i++)
		fill(locked, i, 2, 0);
	for (uint64_t round = 1; round <= ROUNDS; round++)
		for (unsigned long i = 0; i < pages; i++) {
			verify("the region", region, i, 1, round - 1);
			fill(region, i, 1, round);
		}
	for (unsigned long i = 0; i < locked_pages; i++)
		verify("locked memory", locked, i, 2, 0);
	puts("right");
	return 0;
}
