/*
 * holes [MIB]: mappings of which half is unmapped at once, before anybody outside
 * can have looked, and whose hole is mapped again later. What is mapped there is
 * the program's memory like any other.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>

#include "guest.h"

#define MAPPINGS 8
#define OWNER 1

/* Nothing else is mapped from here on. */
#define APART (char *)0x100000000000

/* Longer than it takes to hear of a mapping. */
#define A_WHILE_US 100000

/* As an allocator inside libc maps: not through the function mmap. */
static void map_at(char *where, unsigned long bytes)
{
	long at = syscall(SYS_mmap, where, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			  -1, 0L);

	if (at != (long)where)
		fail_errno("mmap");
}

int main(int argc, char **argv)
{
	unsigned long pages = pages_of_mib(argument(argc, argv, 1, 128)) / MAPPINGS;
	unsigned long bytes = pages * PAGE_BYTES;
	char *holes[MAPPINGS];

	usleep(A_WHILE_US);
	for (int m = 0; m < MAPPINGS; m++) {
		holes[m] = APART + 4 * m * bytes;
		map_at(holes[m], 2 * bytes);
		if (munmap(holes[m], bytes))
			fail_errno("munmap");
		usleep(A_WHILE_US);
		map_at(holes[m], bytes);
	}
	usleep(A_WHILE_US);
	for (int m = 0; m < MAPPINGS; m++)
		for (unsigned long p = 0; p < pages; p++)
			fill(holes[m], p, OWNER, 1);
	for (int m = 0; m < MAPPINGS; m++)
		for (unsigned long p = 0; p < pages; p++)
			verify("hole", holes[m], p, OWNER, 1);
	printf("holes: %lu pages in %d holes right\n", pages * MAPPINGS,
	       MAPPINGS);
	return 0;
}
