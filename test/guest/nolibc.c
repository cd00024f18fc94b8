/*
 * nolibc [MIB [HOLD]]: loaded by the dynamic loader, and no libc in it: a start of
 * its own, and raw system calls only. It maps memory, writes it and reads it back,
 * and ends by exit(2) with status 7.
 *
 * With HOLD, a fifo, a child made by a raw clone(2) reads all of it first, writes it
 * in its own way, says so, and waits until somebody has written to the fifo.
 */
#include <linux/mman.h>
#include <linux/signal.h>
#include <sys/syscall.h>

#include "pattern.h"

#define STATUS 7
#define CHILD_STATUS 9
#define PARENT 1
#define CHILD 2

void begin(long *stack);

/* argc, argv and the environment are on the stack (System V ABI). */
__asm__(".globl _start\n"
	"_start:\n\t"
	"xorl %ebp, %ebp\n\t"
	"movq %rsp, %rdi\n\t"
	"andq $-16, %rsp\n\t"
	"call begin\n\t"
	"hlt\n");

static long call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10),
			   "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static long call(long number, long a, long b, long c)
{
	return call6(number, a, b, c, 0, 0, 0);
}

static __attribute__((noreturn)) void leave(int status)
{
	for (;;)
		call(SYS_exit, status, 0, 0);
}

static void say(int fd, const char *text)
{
	long length = 0;

	while (text[length])
		length++;
	call(SYS_write, fd, (long)text, length);
}

static __attribute__((noreturn)) void fail(const char *why)
{
	say(2, "FAIL: ");
	say(2, why);
	say(2, "\n");
	leave(1);
}

static unsigned long number(const char *text)
{
	unsigned long value = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		value = value * 10 + (unsigned long)(*text - '0');
	return value;
}

static void write_all(char *region, unsigned long pages, uint64_t owner)
{
	for (unsigned long i = 0; i < pages; i++)
		pattern_fill(region + i * PAGE_BYTES, owner, i, 1);
}

static void expect_all(char *region, unsigned long pages, uint64_t owner,
		       const char *when)
{
	for (unsigned long i = 0; i < pages; i++)
		if (pattern_check(region + i * PAGE_BYTES, owner, i, 1) >= 0)
			fail(when);
}

static __attribute__((noreturn)) void be_the_child(char *region,
						   unsigned long pages,
						   const char *hold)
{
	char byte;
	long fd;

	expect_all(region, pages, PARENT, "the child has other bytes");
	write_all(region, pages, CHILD);
	expect_all(region, pages, CHILD, "the child's own bytes are gone");
	say(1, "nolibc: the child's pages are right\n");
	fd = call(SYS_open, (long)hold, 0 /* O_RDONLY */, 0);
	if (fd < 0 || call(SYS_read, fd, (long)&byte, 1) != 1)
		fail("the fifo cannot be read");
	leave(CHILD_STATUS);
}

static void have_a_child(char *region, unsigned long pages, const char *hold)
{
	long pid = call(SYS_clone, SIGCHLD, 0, 0);
	int status = 0;

	if (pid < 0)
		fail("clone");
	if (!pid)
		be_the_child(region, pages, hold);
	expect_all(region, pages, PARENT, "beside the child");
	if (call6(SYS_wait4, pid, (long)&status, 0, 0, 0, 0) != pid ||
	    status != CHILD_STATUS << 8)
		fail("the child's status");
}

__attribute__((used)) void begin(long *stack)
{
	char **argv = (char **)(stack + 1);
	unsigned long mib = stack[0] > 1 ? number(argv[1]) : 64;
	unsigned long pages = (mib << 20) / PAGE_BYTES;
	long at = call6(SYS_mmap, 0, (long)(pages * PAGE_BYTES),
			PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			0);
	char *region = (char *)at;

	if (at < 0 && at > -4096)
		fail("mmap");
	write_all(region, pages, PARENT);
	expect_all(region, pages, PARENT, "after writing");
	if (stack[0] > 2)
		have_a_child(region, pages, argv[2]);
	expect_all(region, pages, PARENT, "at the end");
	say(1, "nolibc: all pages right\n");
	leave(STATUS);
}
