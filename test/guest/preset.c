/*
 * preset.so: a library that somebody preloads beside farpage's. It stands in front of
 * mmap, counts the calls, and hands each on to whoever comes next. At the end it says
 * who that is, on standard error.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef void *mapper(void *, size_t, int, int, int, off_t);

static mapper *next;
static unsigned long calls;

void *mmap(void *at, size_t bytes, int protection, int flags, int fd,
	   off_t offset)
{
	if (!next)
		next = (mapper *)dlsym(RTLD_NEXT, "mmap");
	__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	return next(at, bytes, protection, flags, fd, offset);
}

static const char *file_of(const void *symbol)
{
	Dl_info about;
	const char *slash;

	if (!dladdr(symbol, &about))
		return "nobody";
	slash = strrchr(about.dli_fname, '/');
	return slash ? slash + 1 : about.dli_fname;
}

static __attribute__((destructor)) void tell(void)
{
	void *program_has = dlsym(RTLD_DEFAULT, "mmap");

	dprintf(2, "preset: the program's mmap is of %s, the next one of %s, %s\n",
		file_of(program_has), file_of(dlsym(RTLD_NEXT, "mmap")),
		calls ? "called" : "never called");
}
