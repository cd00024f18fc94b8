/*
 * bareexit [MIB]: its only thread ends by exit(2), not by exit_group(2), as code
 * without a libc does. The process must end with that, and with status 7.
 */
#include <sys/syscall.h>

#include "guest.h"

int main(int argc, char **argv)
{
	unsigned long pages = pages_of_mib(argument(argc, argv, 1, 48));
	char *region = map_pages(pages);

	for (unsigned long i = 0; i < pages; i++)
		fill(region, i, 1, 0);
	for (unsigned long i = 0; i < pages; i++)
		verify("before the end", region, i, 1, 0);
	syscall(SYS_exit, 7);
	return 1;
}
