/*
 * spawn KIND COUNT FILE...: does one thing COUNT times, one after the other, with the files in turn, and
 * prints the nanoseconds that it took. KIND: execute, map (executable), open (to read), write (open to
 * write), fork.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int ended_well(pid_t child)
{
	int status;

	return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

static int execute(char *file)
{
	char *arguments[] = {file, NULL}, *none[] = {NULL};
	pid_t child = vfork();

	if (child == 0) {
		execve(file, arguments, none);
		_exit(127);
	}
	return ended_well(child);
}

static int fork_only(char *file)
{
	pid_t child = fork();

	(void)file;
	if (child == 0)
		_exit(0);
	return ended_well(child);
}

static int map(char *file)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	void *code = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);

	close(fd);
	return code != MAP_FAILED && munmap(code, 4096) == 0;
}

static int opened(char *file, int flags)
{
	int fd = open(file, flags | O_CLOEXEC);

	return fd >= 0 && close(fd) == 0;
}

static int open_to_read(char *file) { return opened(file, O_RDONLY); }

static int open_to_write(char *file) { return opened(file, O_WRONLY); }

static const struct {
	const char *name;
	int (*done)(char *file);
} kinds[] = {
	{"execute", execute}, {"map", map}, {"open", open_to_read}, {"write", open_to_write}, {"fork", fork_only},
};

int main(int argc, char **argv)
{
	struct timespec begun, ended;
	int (*done)(char *file) = NULL;
	long count;

	if (argc < 4)
		return 2;
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!strcmp(kinds[i].name, argv[1]))
			done = kinds[i].done;
	count = atol(argv[2]);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (long i = 0; i < count; i++)
		if (!done || !done(argv[3 + i % (argc - 3)]))
			return 1;
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%lld\n", (ended.tv_sec - begun.tv_sec) * 1000000000LL + ended.tv_nsec - begun.tv_nsec);
	return 0;
}
