/*
 * hostile SOCKET STOP: what a container might do to the agent over its hand-off
 * socket, again and again until the file STOP is there: nothing at all, rubbish,
 * messages out of order, another's nonce, descriptors that are no userfaultfd, a
 * userfaultfd with addresses that are not there, 2,000 connections at once. Each
 * attempt but silence must end with the agent hanging up on it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/userfaultfd.h>

#include "../../shim/protocol.h"
#include "guest.h"

#define CONNECTIONS 2000
#define PATIENCE_MS 20000
/* An address that a helper's area could have, and that nothing is mapped at. */
#define NOWHERE 0x10000000000UL

static struct sockaddr_un address = { .sun_family = AF_UNIX };
static unsigned long refused;

static int open_connection(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail_errno("socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		fail_errno("connect");
	return fd;
}

/* The agent may have hung up already: that is as good. */
static void say(int fd, const void *message, size_t bytes, const int *fds,
		unsigned int count)
{
	char control[CMSG_SPACE(64 * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)message, bytes };
	struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (count) {
		struct cmsghdr *rights = (struct cmsghdr *)(void *)control;

		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(rights), fds, count * sizeof(int));
		header.msg_control = control;
		header.msg_controllen = CMSG_SPACE(count * sizeof(int));
	}
	if (sendmsg(fd, &header, MSG_NOSIGNAL) < 0 && errno != EPIPE &&
	    errno != ECONNRESET)
		fail_errno("sendmsg");
}

/* The descriptor that comes with the agent's next message; -1 when it hangs up. */
static int hear(int fd)
{
	char control[CMSG_SPACE(4 * sizeof(int))];
	struct fp_message message;
	struct iovec iov = { &message, sizeof(message) };
	struct msghdr header = { .msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control) };
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	struct cmsghdr *rights;
	int got = -1;

	if (poll(&ready, 1, PATIENCE_MS) != 1)
		fail("the agent neither answers nor hangs up");
	if (recvmsg(fd, &header, MSG_CMSG_CLOEXEC) <= 0)
		return -1;
	rights = CMSG_FIRSTHDR(&header);
	if (rights && rights->cmsg_type == SCM_RIGHTS)
		memcpy(&got, CMSG_DATA(rights), sizeof(got));
	return got;
}

static void expect_refusal(const char *what, int fd)
{
	for (int messages = 0; messages < 4; messages++) {
		int got = hear(fd);

		if (got < 0) {
			close(fd);
			refused++;
			return;
		}
		close(got);
	}
	fail("%s: the agent goes on talking", what);
}

static struct fp_message message(uint16_t type)
{
	return (struct fp_message){ .magic = FP_MAGIC,
				    .version = FP_VERSION,
				    .type = type,
				    .area = type == FP_HELLO ? NOWHERE : 0,
				    .tid = (uint32_t)getpid() };
}

static void rubbish(void)
{
	static const size_t sizes[] = { 1, 39, 40, 41, 4096, 65536 };
	static char bytes[65536];

	for (size_t b = 0; b < sizeof(bytes); b++)
		bytes[b] = (char)mix(b);
	for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
		int fd = open_connection();

		say(fd, bytes, sizes[s], NULL, 0);
		expect_refusal("rubbish", fd);
	}
}

static void wrong_messages(void)
{
	struct fp_message wrong = message(FP_HELLO);
	int fd;

	for (uint16_t type = FP_DEVICE; type <= FP_NOTICE + 1; type++) {
		wrong = message(type);
		fd = open_connection();
		say(fd, &wrong, sizeof(wrong), NULL, 0);
		expect_refusal("out of order", fd);
	}
	wrong = message(FP_HELLO);
	wrong.version++;
	fd = open_connection();
	say(fd, &wrong, sizeof(wrong), NULL, 0);
	expect_refusal("version", fd);
	for (uint64_t area = 0; area < 3; area++) {
		wrong = message(FP_HELLO);
		wrong.area = area * 0x7ffffffff001UL; /* 0, not aligned, the kernel's */
		fd = open_connection();
		say(fd, &wrong, sizeof(wrong), NULL, 0);
		expect_refusal("area", fd);
	}
	wrong = message(FP_HELLO);
	wrong.nonce = mix((uint64_t)getpid());
	fd = open_connection();
	say(fd, &wrong, sizeof(wrong), NULL, 0);
	expect_refusal("nonce", fd);
}

/* A connection that has said hello and got the device. */
static int begin(int *device)
{
	struct fp_message hello = message(FP_HELLO);
	int fd = open_connection();

	say(fd, &hello, sizeof(hello), NULL, 0);
	*device = hear(fd);
	return fd;
}

static void wrong_descriptors(void)
{
	struct fp_message uffd = message(FP_UFFD);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int many[32], ends[2], device, fd;

	if (null < 0 || pipe(ends))
		fail_errno("pipe");
	for (size_t m = 0; m < sizeof(many) / sizeof(*many); m++)
		many[m] = null;
	for (unsigned int count = 0; count <= 32; count += 16) {
		fd = begin(&device);
		say(fd, &uffd, sizeof(uffd), many, count);
		expect_refusal("no userfaultfd", fd);
		close(device);
	}
	fd = begin(&device);
	say(fd, &uffd, sizeof(uffd), ends, 1);
	expect_refusal("a pipe", fd);
	/* The device itself, and a userfaultfd whose area is nowhere. */
	if (device >= 0) {
		int real = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		int again;

		fd = begin(&again);
		say(fd, &uffd, sizeof(uffd), &device, 1);
		expect_refusal("the device", fd);
		close(again);
		if (real >= 0) {
			fd = begin(&again);
			say(fd, &uffd, sizeof(uffd), &real, 1);
			expect_refusal("a userfaultfd without an area", fd);
			close(again);
			close(real);
		}
		close(device);
	}
	close(null);
	close(ends[0]);
	close(ends[1]);
}

static void flood(void)
{
	static int fds[CONNECTIONS];
	struct fp_message hello = message(FP_HELLO);

	for (int f = 0; f < CONNECTIONS; f++)
		fds[f] = open_connection();
	for (int f = 0; f < CONNECTIONS; f += 2)
		say(fds[f], &hello, sizeof(hello), NULL, 0);
	for (int f = 0; f < CONNECTIONS; f++)
		close(fds[f]);
}

int main(int argc, char **argv)
{
	struct rlimit files;
	int silent;

	if (argc != 3 || strlen(argv[1]) >= sizeof(address.sun_path))
		fail("usage: hostile SOCKET STOP");
	strcpy(address.sun_path, argv[1]);
	if (getrlimit(RLIMIT_NOFILE, &files))
		fail_errno("getrlimit");
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files))
		fail_errno("setrlimit");
	silent = open_connection();
	do {
		rubbish();
		wrong_messages();
		wrong_descriptors();
		flood();
	} while (access(argv[2], F_OK));
	close(silent);
	fprintf(stderr, "hostile: %lu attempts refused\n", refused);
	printf("hostile: all attempts refused\n");
	return 0;
}
