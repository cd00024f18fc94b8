/*
 * limits [MIB [SPARE_MIB]]: what a program has whose limits are low. It says what its
 * limits are, opens as many files as it can and which numbers they get, and that
 * SPARE_MIB of address space cannot be had; then it and a child of its own write
 * memory and read it back.
 */
#include <fcntl.h>
#include <sys/resource.h>

#include "guest.h"

#define PARENT 1
#define CHILD 2

static void tell_limit(const char *name, __rlimit_resource_t which)
{
	struct rlimit limit;

	if (getrlimit(which, &limit))
		fail_errno("getrlimit");
	printf("%s %ld %ld\n", name, (long)limit.rlim_cur, (long)limit.rlim_max);
}

/* Every number that is free, from the lowest on. */
static void tell_descriptors(void)
{
	int fds[4096];
	int n = 0;

	while (n < 4096 && (fds[n] = open("/dev/null", O_RDONLY)) >= 0)
		n++;
	printf("descriptors: %s after", n < 4096 ? strerror(errno) : "enough");
	for (int i = 0; i < n && i < 32; i++)
		printf(" %d", fds[i]);
	printf("\n");
	while (n)
		close(fds[--n]);
}

static void tell_space(unsigned long bytes)
{
	void *at = mmap(NULL, bytes, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	printf("mmap: %s\n", at == MAP_FAILED ? strerror(errno) : "success");
	if (at != MAP_FAILED && munmap(at, bytes))
		fail_errno("munmap");
}

static void write_and_read(char *region, unsigned long pages, uint64_t was,
			   uint64_t owner)
{
	for (unsigned long p = 0; p < pages; p++) {
		verify("before", region, p, was, was ? 1 : 0);
		fill(region, p, owner, 1);
	}
	for (unsigned long p = 0; p < pages; p++)
		verify("after", region, p, owner, 1);
}

int main(int argc, char **argv)
{
	unsigned long pages = pages_of_mib(argument(argc, argv, 1, 64));
	char *region = map_pages(pages);
	pid_t child;

	tell_limit("RLIMIT_NOFILE", RLIMIT_NOFILE);
	tell_limit("RLIMIT_AS", RLIMIT_AS);
	tell_descriptors();
	tell_space(argument(argc, argv, 2, 64) << 20);
	fflush(stdout);
	write_and_read(region, pages, 0, PARENT);
	child = fork();
	if (child < 0)
		fail_errno("fork");
	if (!child) {
		write_and_read(region, pages, PARENT, CHILD);
		_exit(0);
	}
	must_wait(child);
	for (unsigned long p = 0; p < pages; p++)
		verify("after the child", region, p, PARENT, 1);
	printf("limits: %lu pages right\n", pages);
	return 0;
}
