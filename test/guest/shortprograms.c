/*
 * shortprograms COUNT STAGES GO PROGRAM [ARGUMENT...]: starts COUNT programs one after
 * the other in each of some stages, every other one by a fork and an exec, the rest
 * by posix_spawn, which makes no copy of its memory. Each must end with status 0.
 * After each stage it makes the file "stage.N" and waits until somebody has written
 * to the fifo GO.
 */
#include <fcntl.h>
#include <spawn.h>

#include "guest.h"

extern char **environ;

static pid_t start(unsigned long n, char **program)
{
	pid_t pid;

	if (n % 2 == 0) {
		errno = posix_spawn(&pid, program[0], NULL, NULL, program, environ);
		if (errno)
			fail_errno("posix_spawn");
		return pid;
	}
	pid = fork();
	if (pid < 0)
		fail_errno("fork");
	if (!pid) {
		execv(program[0], program);
		fail_errno(program[0]);
	}
	return pid;
}

static void wait_at(unsigned long stage, const char *go)
{
	char name[32], byte;
	int fd;

	snprintf(name, sizeof(name), "stage.%lu", stage);
	fd = open(name, O_CREAT | O_WRONLY, 0644);
	if (fd < 0)
		fail_errno(name);
	close(fd);
	fd = open(go, O_RDONLY);
	if (fd < 0)
		fail_errno(go);
	must_read(fd, &byte, 1);
	close(fd);
}

int main(int argc, char **argv)
{
	unsigned long count = argument(argc, argv, 1, 1);
	unsigned long stages = argument(argc, argv, 2, 1);

	if (argc < 5)
		fail("usage: shortprograms COUNT STAGES GO PROGRAM [ARGUMENT...]");
	for (unsigned long stage = 1; stage <= stages; stage++) {
		for (unsigned long n = 0; n < count; n++)
			must_wait(start(n, argv + 4));
		wait_at(stage, argv[3]);
	}
	printf("shortprograms: %lu programs right\n", stages * count);
	return 0;
}
