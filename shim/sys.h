/*
 * The seam to the kernel: raw system calls and the structures they take, so
 * that the shim needs no libc. x86-64 Linux 6.8 and newer.
 */
#ifndef FARPAGE_SYS_H
#define FARPAGE_SYS_H

#include <stdint.h>

#ifndef __x86_64__
#error "farpage's shim knows x86-64 only"
#endif

enum {
	SYS_close = 3,
	SYS_mmap = 9,
	SYS_mprotect = 10,
	SYS_rt_sigprocmask = 14,
	SYS_ioctl = 16,
	SYS_mincore = 27,
	SYS_madvise = 28,
	SYS_nanosleep = 35,
	SYS_socket = 41,
	SYS_connect = 42,
	SYS_sendmsg = 46,
	SYS_recvmsg = 47,
	SYS_exit = 60,
	SYS_chdir = 80,
	SYS_capset = 126,
	SYS_prctl = 157,
	SYS_gettid = 186,
	SYS_futex = 202,
	SYS_openat = 257,
	SYS_close_range = 436,
};

enum {
	EAGAIN_ = 11,
	EBUSY_ = 16,
	EINTR_ = 4,
};

static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}

#define sys1(n, a) sys6(n, (long)(a), 0, 0, 0, 0, 0)
#define sys2(n, a, b) sys6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define sys3(n, a, b, c) sys6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define sys4(n, a, b, c, d) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

/* An error return of a system call that gives an address or a count. */
static inline int failed(long r)
{
	return (unsigned long)r > -4096UL;
}

/* mmap(2), madvise(2) */
#define PROT_NONE_ 0
#define PROT_READ_ 1
#define PROT_WRITE_ 2
#define MAP_SHARED_ 0x01
#define MAP_PRIVATE_ 0x02
#define MAP_TYPE_ 0x0f
#define MAP_FIXED_ 0x10
#define MAP_ANONYMOUS_ 0x20
#define MAP_GROWSDOWN_ 0x100
#define MAP_LOCKED_ 0x2000
#define MAP_NORESERVE_ 0x4000
#define MAP_POPULATE_ 0x8000
#define MAP_HUGETLB_ 0x40000
#define MADV_DONTNEED_ 4
#define MADV_WIPEONFORK_ 18
#define MADV_POPULATE_READ_ 22
#define MADV_POPULATE_WRITE_ 23

/* futex(2); the channel is shared between processes, the state page is not. */
#define FUTEX_WAIT_ 0
#define FUTEX_WAKE_ 1

/* userfaultfd: include/uapi/linux/userfaultfd.h; MOVE since Linux 6.8. */
#define UFFD_API_ 0xAAUL
#define UFFD_IOWR(nr, size) (0xC0000000u | ((unsigned)(size) << 16) | (0xAAu << 8) | (nr))
#define USERFAULTFD_IOC_NEW_ 0xAA00u
#define UFFD_CLOEXEC_NONBLOCK (02000000 | 04000)

struct uffdio_api_ {
	uint64_t api, features, ioctls;
};
struct uffdio_register_ {
	uint64_t start, len, mode, ioctls;
};
struct uffdio_zeropage_ {
	uint64_t start, len, mode;
	int64_t zeropage;
};
struct uffdio_move_ {
	uint64_t dst, src, len, mode;
	int64_t move;
};
#define UFFDIO_API_ UFFD_IOWR(0x3F, sizeof(struct uffdio_api_))
#define UFFDIO_REGISTER_ UFFD_IOWR(0x00, sizeof(struct uffdio_register_))
#define UFFDIO_ZEROPAGE_ UFFD_IOWR(0x04, sizeof(struct uffdio_zeropage_))
#define UFFDIO_MOVE_ UFFD_IOWR(0x05, sizeof(struct uffdio_move_))
#define UFFDIO_REGISTER_MODE_MISSING_ 1UL
#define UFFDIO_ZEROPAGE_MODE_DONTWAKE_ 1UL
#define UFFDIO_MOVE_MODE_DONTWAKE_ 1UL

struct timespec_ {
	long sec, nsec;
};

/* socket(7) */
struct sockaddr_un_ {
	uint16_t family;
	char path[108];
};
struct iovec_ {
	void *base;
	unsigned long len;
};
struct msghdr_ {
	void *name;
	uint32_t namelen;
	struct iovec_ *iov;
	unsigned long iovlen;
	void *control;
	unsigned long controllen;
	int flags;
};
#define AF_UNIX_ 1
#define SOCK_SEQPACKET_ 5
#define SOCK_CLOEXEC_ 02000000
#define MSG_DONTWAIT_ 0x40
#define MSG_NOSIGNAL_ 0x4000
#define MSG_CMSG_CLOEXEC_ 0x40000000

#endif
