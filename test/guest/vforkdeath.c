/*
 * vforkdeath [MIB] [ROUNDS]: a process fills memory and vforks; it is killed,
 * and the vfork child, which lives on in the same memory, verifies all of it,
 * rewrites it and verifies again. The first process hears of it by a pipe.
 */
#include <signal.h>

#include "guest.h"

static char *region;
static unsigned long pages;

struct pipes {
	int ready[2]; /* the vfork child runs */
	int dead[2]; /* its parent was reaped */
	int right[2]; /* all bytes were right */
};

static void must_pipe(int ends[2])
{
	if (pipe(ends))
		fail_errno("pipe");
}

/*
 * Runs on its parent's stack, which nobody else uses any more: the parent
 * sleeps in vfork until it is killed.
 */
static __attribute__((noinline, noreturn)) void
outlive(const struct pipes *pipes, uint64_t round)
{
	char byte = 1;

	must_write(pipes->ready[1], &byte, 1);
	must_read(pipes->dead[0], &byte, 1);
	for (unsigned long p = 0; p < pages; p++)
		verify("parent's", region, p, round, 1);
	for (unsigned long p = pages; p-- > 0;)
		fill(region, p, round, 2);
	for (unsigned long p = 0; p < pages; p++)
		verify("own", region, p, round, 2);
	must_write(pipes->right[1], &byte, 1);
	_exit(0);
}

static __attribute__((noreturn)) void
fill_and_vfork(const struct pipes *pipes, uint64_t round)
{
	region = map_pages(pages);
	for (unsigned long p = 0; p < pages; p++)
		fill(region, p, round, 1);
	switch (vfork()) {
	case 0:
		outlive(pipes, round);
	case -1:
		fail_errno("vfork");
	default:
		fail("vfork returned in a parent that should be dead");
	}
}

static void one_round(uint64_t round)
{
	struct pipes pipes;
	char byte;
	pid_t parent;
	int status;

	must_pipe(pipes.ready);
	must_pipe(pipes.dead);
	must_pipe(pipes.right);
	parent = fork();
	if (parent < 0)
		fail_errno("fork");
	if (!parent)
		fill_and_vfork(&pipes, round);

	/* Without our own ends a child that failed shows as end of file. */
	close(pipes.ready[1]);
	close(pipes.right[1]);
	must_read(pipes.ready[0], &byte, 1);
	kill(parent, SIGKILL);
	if (waitpid(parent, &status, 0) != parent || !WIFSIGNALED(status))
		fail("the vfork parent was not killed: status %#x", status);
	must_write(pipes.dead[1], &byte, 1);
	must_read(pipes.right[0], &byte, 1);
	close(pipes.ready[0]);
	close(pipes.dead[0]);
	close(pipes.dead[1]);
	close(pipes.right[0]);
}

int main(int argc, char **argv)
{
	unsigned long rounds = argument(argc, argv, 2, 4);

	pages = pages_of_mib(argument(argc, argv, 1, 64));
	for (unsigned long round = 1; round <= rounds; round++)
		one_round(round);
	printf("vforkdeath: %lu rounds over %lu pages right\n", rounds, pages);
	return 0;
}
