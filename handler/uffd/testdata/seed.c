/*
 * seed: a process that pages by a handler outside of it. It maps PAGES pages, makes a
 * userfaultfd, sends it over the socket that is descriptor 3, with the address of the
 * pages, and then obeys lines on standard input. Each is answered with a line:
 *
 *   read ADDRESS          the first thread reads the page: "read WORD", all its words
 *                         being that, or "read mixed"
 *   fork ADDRESS          a child reads the page: "read WORD" is its answer
 *   evict ADDRESS PAGES   the second thread moves the pages to where the kernel likes
 *                         and leaves the mapping: "at ADDRESS"
 *   unmap ADDRESS PAGES   the second thread does: "unmapped"
 *
 * Between its reads the first thread is stopped: it waits in read(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 16UL
#define SOCKET 3

#define fail(what) (dprintf(2, "seed: %s: %s\n", what, strerror(errno)), _exit(1))

static int orders[2];

static void send_descriptor(int fd, uint64_t address)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof fd)];
	} control = {0};
	struct iovec iov = {&address, sizeof address};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
	if (sendmsg(SOCKET, &message, 0) != (ssize_t)sizeof address)
		fail("sendmsg");
}

static void read_page(uint64_t address)
{
	const volatile uint64_t *words = (const volatile uint64_t *)address;
	uint64_t first = words[0];

	for (unsigned long w = 1; w < PAGE / 8; w++)
		if (words[w] != first) {
			dprintf(1, "read mixed\n");
			return;
		}
	dprintf(1, "read %#lx\n", first);
}

static void *obey_orders(void *unused)
{
	uint64_t address;

	(void)unused;
	while (read(orders[0], &address, sizeof address) == (ssize_t)sizeof address)
		read_page(address);
	fail("read an order");
}

static void fork_reader(uint64_t address)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		read_page(address);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		fail("fork");
}

static void obey(const char *line)
{
	char name[16] = "";
	unsigned long address = 0, pages = 0;
	void *at;

	sscanf(line, "%15s %lx %lu", name, &address, &pages);
	if (!strcmp(name, "read")) {
		if (write(orders[1], &address, sizeof address) != (ssize_t)sizeof address)
			fail("write an order");
	} else if (!strcmp(name, "fork")) {
		fork_reader(address);
	} else if (!strcmp(name, "evict")) {
		at = mremap((void *)address, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
		if (at == MAP_FAILED)
			fail("mremap");
		dprintf(1, "at %#lx\n", (unsigned long)at);
	} else if (!strcmp(name, "unmap")) {
		if (munmap((void *)address, pages * PAGE))
			fail("munmap");
		dprintf(1, "unmapped\n");
	} else {
		fail(line);
	}
}

int main(void)
{
	static char line[256];
	pthread_t first;
	void *pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (pages == MAP_FAILED || uffd < 0)
		fail("userfaultfd");
	if (pipe(orders) || pthread_create(&first, NULL, obey_orders, NULL))
		fail("the first thread");
	send_descriptor(uffd, (uint64_t)pages);
	close(uffd);
	while (fgets(line, sizeof line, stdin))
		obey(line);
	return 0;
}
