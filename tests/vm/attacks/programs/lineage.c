/*
 * A foreign program executed by a task that was made in an unusual way, in a mount namespace of its own.
 * Argument: vfork, vm, newns, thread, orphan, user, cgroup, parent, all.
 * Must be seen: the foreign program's digest.
 */
#include <linux/sched.h>
#include <pthread.h>

#include "attack.h"

#define EVIL "/tmp/evil"

static char *const argv_of[] = {EVIL, 0}, *const none[] = {0};
static char stack[65536] __attribute__((aligned(16)));

static int begin(void *unused __attribute__((unused)))
{
	execve(EVIL, argv_of, none);
	_exit(4);
}

static void *begin_thread(void *unused) { begin(unused); return 0; }

static pid_t cloned(uint64_t flags, int cgroup)
{
	struct clone_args args = {.flags = flags, .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD, .cgroup = cgroup};
	pid_t child = must(syscall(SYS_clone3, &args, sizeof(args)), "clone3");

	if (!child)
		begin(0);
	return child;
}

ATTACK(lineage)
{
	pid_t child = -1;
	pthread_t thread;
	int status;

	write_file(EVIL, evil_program, evil_program_end - evil_program, 0755);
	truth(EVIL);
	if (is_mode(argv, "vfork")) {
		child = vfork();
		if (!child)
			begin(0);
	} else if (is_mode(argv, "vm")) {
		child = must(clone(begin, stack + sizeof(stack), CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD, 0), "clone");
	} else if (is_mode(argv, "newns")) {
		child = must(clone(begin, stack + sizeof(stack), CLONE_VM | CLONE_NEWNS | SIGCHLD, 0), "clone");
	} else if (is_mode(argv, "thread")) {
		pthread_create(&thread, 0, begin_thread, 0);
		pause();
	} else if (is_mode(argv, "orphan")) {
		child = must(fork(), "fork");
		if (!child) {
			if (!fork()) {
				usleep(200000);
				begin(0);
			}
			_exit(0);
		}
		sleep(2);
	} else if (is_mode(argv, "user")) {
		child = cloned(CLONE_NEWUSER | CLONE_NEWNS, 0);
	} else if (is_mode(argv, "cgroup")) {
		child = cloned(CLONE_INTO_CGROUP | CLONE_NEWNS, opened("/sys/fs/cgroup", O_RDONLY | O_DIRECTORY));
	} else if (is_mode(argv, "parent")) {
		child = must(fork(), "fork");
		if (!child) {
			cloned(CLONE_PARENT, 0);
			_exit(0);
		}
		waitpid(child, &status, 0);
		child = -1;
	} else {
		child = cloned(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP, 0);
	}
	waitpid(child, &status, 0);
	return 0;
}
