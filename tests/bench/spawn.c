/*
 * spawn COUNT FILE...: executes the files in turn, COUNT times in all, one after the other, and prints
 * the nanoseconds that it took.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long count = argc > 2 ? atol(argv[1]) : 0;
	struct timespec begun, ended;
	char *none[] = {NULL};

	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (long i = 0; i < count; i++) {
		char *file = argv[2 + i % (argc - 2)], *arguments[] = {file, NULL};
		int status;
		pid_t child = vfork();

		if (child == 0) {
			execve(file, arguments, none);
			_exit(127);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
			return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%lld\n", (ended.tv_sec - begun.tv_sec) * 1000000000LL + ended.tv_nsec - begun.tv_nsec);
	return 0;
}
