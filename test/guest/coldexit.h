/* A thread's end that touches no memory of its own before the kernel does. */
#ifndef COLDEXIT_H
#define COLDEXIT_H

#include <sys/syscall.h>
#include <unistd.h>

/*
 * Waits for end of file and ends the thread with registers only, so that nothing of its
 * stack or thread block is touched. The byte that read could bring to `nowhere` never comes.
 */
static inline __attribute__((noreturn)) void wait_and_exit_cold(int end,
								 char *nowhere)
{
#ifdef __x86_64__
	register long number __asm__("rax") = SYS_read;

	__asm__ volatile("syscall\n\t"
			 "movl %[exit], %%eax\n\t"
			 "xorl %%edi, %%edi\n\t"
			 "syscall"
			 : "+r"(number)
			 : "D"((long)end), "S"(nowhere), "d"(1L),
			   [exit] "i"(SYS_exit)
			 : "rcx", "r11", "memory");
#else
	syscall(SYS_read, end, nowhere, 1);
	syscall(SYS_exit, 0);
#endif
	__builtin_unreachable();
}

#endif
