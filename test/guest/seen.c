/*
 * seen write FILE: what a program can see of itself, in FILE: its descriptors, its
 * threads, and its mappings, without what is another one each time (addresses,
 * numbers of pipes, the size of the stack).
 *
 * seen same FILE: ends with status 0 if it sees just what is in FILE.
 */
#include <dirent.h>
#include <fcntl.h>

#include "guest.h"

#define MOST_BYTES 65536

static char text[MOST_BYTES], before[MOST_BYTES], maps[MOST_BYTES];
static size_t length;

#define say(...)                                                              \
	do {                                                                  \
		length += (size_t)snprintf(text + length, MOST_BYTES - length, \
					   __VA_ARGS__);                      \
		if (length >= MOST_BYTES)                                     \
			fail("too much to say");                              \
	} while (0)

static size_t read_file(const char *path, char *to, size_t most)
{
	int fd = open(path, O_RDONLY);
	size_t all = 0;
	ssize_t n;

	if (fd < 0)
		fail_errno(path);
	while ((n = read(fd, to + all, most - 1 - all)) > 0)
		all += (size_t)n;
	if (n < 0 || all == most - 1)
		fail("%s cannot be read whole", path);
	to[all] = 0;
	close(fd);
	return all;
}

static void look_at_descriptors(void)
{
	DIR *fds = opendir("/proc/self/fd");
	struct dirent *fd;

	if (!fds)
		fail_errno("/proc/self/fd");
	while ((fd = readdir(fds))) {
		char file[256];
		ssize_t n = readlinkat(dirfd(fds), fd->d_name, file,
				       sizeof(file) - 1);

		if (n < 0 || atoi(fd->d_name) == dirfd(fds))
			continue; /* "." and "..", and the folder's own */
		file[n] = 0;
		if (strchr(file, '[')) /* pipe:[number] */
			*strchr(file, '[') = 0;
		say("descriptor %s %s\n", fd->d_name, file);
	}
	closedir(fds);
}

static void look_at_threads(void)
{
	char path[64], name[64];
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *task;

	if (!tasks)
		fail_errno("/proc/self/task");
	while ((task = readdir(tasks))) {
		if (task->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%.16s/comm",
			 task->d_name);
		read_file(path, name, sizeof(name));
		say("thread %s", name);
	}
	closedir(tasks);
}

static void look_at_mapping(char *line)
{
	unsigned long start, end;
	char access[8], name[512] = "";

	if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %511s", &start, &end, access,
		   name) < 3)
		fail("not a mapping: %s", line);
	if (!strcmp(name, "[stack]"))
		end = start;
	say("mapping %s %lu %s\n", access, end - start, name);
}

int main(int argc, char **argv)
{
	char *line, *rest = maps;

	if (argc != 3)
		fail("usage: seen write|same FILE");
	/* First of all: what else is done here maps more. */
	read_file("/proc/self/maps", maps, MOST_BYTES);
	look_at_descriptors();
	while ((line = strsep(&rest, "\n")) && *line)
		look_at_mapping(line);
	look_at_threads();
	if (!strcmp(argv[1], "write")) {
		int fd = open(argv[2], O_CREAT | O_TRUNC | O_WRONLY, 0644);

		if (fd < 0)
			fail_errno(argv[2]);
		must_write(fd, text, length);
		return 0;
	}
	read_file(argv[2], before, MOST_BYTES);
	if (strcmp(text, before))
		fail("what is seen:\n%s\nand was before:\n%s", text, before);
	return 0;
}
