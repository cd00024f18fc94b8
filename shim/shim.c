/*
 * libfarpage.so: preloaded into every program of a container. While the bell is
 * silent its constructor maps one page and is done. When it rings, the
 * constructor starts the helper thread (helper.c), forked children start theirs
 * from an atfork handler, and mmap waits until a new mapping is registered, so
 * that none of it can be touched unseen.
 *
 * It needs no libc: every undefined symbol is weak, with a way to go on without.
 */
#include "state.h"
#include "sys.h"

#define EXPORT __attribute__((visibility("default")))

const volatile char fp_dir[120] = FP_DIR_MARK "/dev/farpage";
unsigned char *fp_area __attribute__((section(".data"))) = 0;
static const volatile uint32_t *bell __attribute__((section(".data"))) = 0;

extern int *__errno_location(void) __attribute__((weak));
extern int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *) __attribute__((weak));
extern int pthread_atfork(void (*)(void), void (*)(void), void (*)(void)) __attribute__((weak));

/* gcc may call this for structure copies even in freestanding code. */
__attribute__((visibility("hidden"))) void *memset(void *to, int byte, unsigned long n)
{
	void *d = to;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
	return to;
}

__attribute__((visibility("hidden"))) void *memcpy(void *to, const void *from, unsigned long n)
{
	void *d = to;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
	return to;
}

int fp_path(char *out, const char *name)
{
	unsigned long n = 0, at = sizeof FP_DIR_MARK - 1;

	while (n < 100 && at < sizeof fp_dir && fp_dir[at])
		out[n++] = fp_dir[at++];
	if (n == 0)
		return 0;
	out[n++] = '/';
	while (*name && n < 107)
		out[n++] = *name++;
	out[n] = 0;
	return *name ? 0 : (int)n;
}

static uint32_t ring(void)
{
	return bell ? *bell : FP_BELL_SILENT;
}

static void map_bell(void)
{
	char path[108];
	long fd, r;

	if (!fp_path(path, "bell"))
		return;
	fd = sys4(SYS_openat, -100 /* AT_FDCWD */, path, 02000000 /* O_CLOEXEC */, 0);
	if (fd < 0)
		return;
	r = sys6(SYS_mmap, 0, FP_PAGE, PROT_READ_, MAP_SHARED_, fd, 0);
	sys1(SYS_close, fd);
	if (!failed(r))
		bell = (const volatile uint32_t *)r;
}

static int map_area(void)
{
	long r = sys6(SYS_mmap, 0, FP_AREA_BYTES, PROT_READ_ | PROT_WRITE_,
		      MAP_PRIVATE_ | MAP_ANONYMOUS_ | MAP_NORESERVE_, -1, 0);

	if (failed(r))
		return -1;
	/* Before anything else: a neighbour could merge with it. */
	if (sys3(SYS_madvise, r, FP_AREA_BYTES, MADV_WIPEONFORK_))
		return -1;
	if (sys3(SYS_mprotect, r + (long)FP_AREA_ANCHOR, FP_PAGE, PROT_READ_))
		return -1;
	fp_area = (unsigned char *)r;
	return 0;
}

/*
 * clone(2) of the helper: a thread with a copy of the descriptor table (which it
 * empties) and a folder of its own, so that the program's own chdir, chroot,
 * unshare and close are its own. Returns the tid or -errno.
 */
static long clone_helper(void)
{
	unsigned long all = ~0UL, old;
	/* CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM */
	unsigned long flags = 0x100 | 0x800 | 0x10000 | 0x40000;
	unsigned char *stack = fp_area + FP_AREA_STACK + FP_STACK_PAGES * FP_PAGE;
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	long r;

	sys4(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, &old, 8);
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call fp_helper\n\t"
			 "ud2\n"
			 "1:"
			 : "=a"(r)
			 : "a"(56L /* clone */), "D"(flags), "S"(stack), "d"(0), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	sys4(SYS_rt_sigprocmask, 2, &old, 0, 8);
	return r;
}

static void start_helper(void)
{
	struct timespec_ limit = {0, 100000000};
	uint32_t tone = ring();

	if (tone == FP_BELL_SILENT || !fp_area || clone_helper() < 0)
		return;
	while (__atomic_load_n(&fp_state()->ready, __ATOMIC_ACQUIRE) == FP_NOT_READY) {
		long r = sys4(SYS_futex, &fp_state()->ready, FUTEX_WAIT_, FP_NOT_READY,
			      tone == FP_BELL_RUNG_WAIT ? 0 : &limit);

		if (r == -110 /* ETIMEDOUT */)
			break;
	}
}

static void in_child(void)
{
	start_helper();
}

__attribute__((constructor)) static void start(void)
{
	map_bell();
	if (ring() == FP_BELL_SILENT || map_area())
		return;
	if (__register_atfork)
		__register_atfork(0, 0, in_child, 0);
	else if (pthread_atfork)
		pthread_atfork(0, 0, in_child);
	start_helper();
}

/* Small mappings are not worth the round trip: the agent finds them itself. */
#define MMAP_WAIT_BYTES (32 * 1024UL)
#define MMAP_WAIT_NS 200000000L

static int wants_waiting(unsigned long bytes, int flags)
{
	return fp_area && bytes >= MMAP_WAIT_BYTES && (flags & MAP_TYPE_) == MAP_PRIVATE_ &&
	       (flags & MAP_ANONYMOUS_) && !(flags & (MAP_HUGETLB_ | MAP_GROWSDOWN_)) &&
	       __atomic_load_n(&fp_state()->ready, __ATOMIC_ACQUIRE) == FP_IS_READY && fp_state()->mode;
}

/* Asks the helper to register [addr, addr+bytes) and waits for it. No lock is
 * held: a signal handler may interrupt this and call mmap itself. */
static void register_mapping(uint64_t addr, uint64_t bytes)
{
	struct fp_state *st = fp_state();
	struct fp_channel *c = (struct fp_channel *)(fp_area + FP_AREA_CHANNEL);
	struct timespec_ limit = {0, MMAP_WAIT_NS};

	for (int i = 0; i < FP_MAILBOXES; i++) {
		struct fp_mailbox *b = &st->mail[i];
		uint32_t expect = FP_MAIL_FREE;

		if (!__atomic_compare_exchange_n(&b->state, &expect, FP_MAIL_CLAIMED, 0, __ATOMIC_ACQ_REL,
						 __ATOMIC_RELAXED))
			continue;
		b->addr = addr;
		b->bytes = bytes;
		__atomic_store_n(&b->state, FP_MAIL_POSTED, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&c->wake, 1, __ATOMIC_SEQ_CST);
		sys3(SYS_futex, &c->wake, FUTEX_WAKE_, 1);
		while (__atomic_load_n(&b->state, __ATOMIC_ACQUIRE) == FP_MAIL_POSTED) {
			if (sys4(SYS_futex, &b->state, FUTEX_WAIT_, FP_MAIL_POSTED, &limit) != -110)
				continue;
			expect = FP_MAIL_POSTED;
			if (__atomic_compare_exchange_n(&b->state, &expect, FP_MAIL_ABANDONED, 0, __ATOMIC_ACQ_REL,
							__ATOMIC_ACQUIRE))
				return;
		}
		__atomic_store_n(&b->state, FP_MAIL_FREE, __ATOMIC_RELEASE);
		return;
	}
}

static void *map(void *addr, unsigned long bytes, int prot, int flags, int fd, long offset)
{
	int wait = wants_waiting(bytes, flags);
	int populate = wait && (flags & MAP_POPULATE_);
	long r = sys6(SYS_mmap, (long)addr, (long)bytes, prot, populate ? flags & ~MAP_POPULATE_ : flags, fd, offset);

	if (failed(r)) {
		if (__errno_location)
			*__errno_location() = (int)-r;
		return (void *)-1;
	}
	if (wait)
		register_mapping((uint64_t)r, (bytes + FP_PAGE - 1) & ~(FP_PAGE - 1));
	/* As MAP_POPULATE: what cannot be populated is no error. */
	if (populate)
		sys3(SYS_madvise, r, (bytes + FP_PAGE - 1) & ~(FP_PAGE - 1),
		     prot & PROT_WRITE_ ? MADV_POPULATE_WRITE_ : MADV_POPULATE_READ_);
	return (void *)r;
}

EXPORT void *mmap(void *addr, unsigned long bytes, int prot, int flags, int fd, long offset)
{
	return map(addr, bytes, prot, flags, fd, offset);
}

EXPORT void *mmap64(void *addr, unsigned long bytes, int prot, int flags, int fd, long offset)
{
	return map(addr, bytes, prot, flags, fd, offset);
}
