/*
 * loop PAGES: the least that can answer the same faults from another process. It
 * is given the target's userfaultfd over descriptor 3, and polls it, reads a fault
 * and answers it: pages of the far region with their bytes from a buffer, those of
 * the zero region with zeros. It looks nothing up, checks nothing, keeps no books.
 *
 * It runs SCHED_FIFO where it may, as the agent's threads do. It is killed when it
 * is not needed any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "content.h"

static void fail(const char *what)
{
	dprintf(2, "loop: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int receive_descriptor(int socket)
{
	char byte, control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *header;
	int fd;

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
		fail("receive the userfaultfd");
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS)
		fail("no userfaultfd came");
	memcpy(&fd, CMSG_DATA(header), sizeof fd);
	return fd;
}

static void answer(int uffd, uint64_t address, const char *contents)
{
	if (address >= ZERO_AT) {
		struct uffdio_zeropage zero = {.range = {address, PAGE_BYTES}};

		if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
			fail("UFFDIO_ZEROPAGE");
	} else {
		struct uffdio_copy copy = {.dst = address, .src = (uint64_t)contents + (address - FAR_AT), .len = PAGE_BYTES};

		if (ioctl(uffd, UFFDIO_COPY, &copy))
			fail("UFFDIO_COPY");
	}
}

int main(int argc, char **argv)
{
	unsigned long pages = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	char *contents = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct sched_param priority = {.sched_priority = 1};
	int uffd;

	if (contents == MAP_FAILED)
		fail("mmap");
	for (unsigned long p = 0; p < pages; p++)
		content_fill(contents + p * PAGE_BYTES, p);
	uffd = receive_descriptor(3);
	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		perror("loop: SCHED_FIFO");
	for (;;) {
		struct pollfd ready = {.fd = uffd, .events = POLLIN};
		struct uffd_msg message;
		ssize_t n;

		if (poll(&ready, 1, -1) < 0)
			fail("poll");
		n = read(uffd, &message, sizeof message);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n != sizeof message)
			fail("read");
		if (message.event == UFFD_EVENT_PAGEFAULT)
			answer(uffd, message.arg.pagefault.address & ~(PAGE_BYTES - 1), contents);
	}
}
