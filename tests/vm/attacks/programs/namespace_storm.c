/*
 * Mount namespaces by the thousand, each held open; tasks enter them by descriptor and are made there with every
 * flag of clone3(2), in combinations at random, and each executes a foreign program.
 * Arguments: how many namespaces, one of how many has a task made, seed. Where it is enforced none may run.
 */
#include <linux/sched.h>
#include <sys/resource.h>

#include "attack.h"

#define EVIL "/tmp/evil"
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static const uint64_t flags[] = {
	CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_VFORK, CLONE_PARENT, CLONE_THREAD, CLONE_NEWNS, CLONE_SYSVSEM,
	CLONE_UNTRACED, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_IO,
	CLONE_NEWTIME, CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, CLONE_PIDFD, CLONE_SETTLS, CLONE_PARENT_SETTID,
	CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID};
enum { FLAGS = sizeof(flags) / sizeof(*flags) };

static char *const argv_of[] = {EVIL, 0}, *const none[] = {0};
static char stack[65536] __attribute__((aligned(16)));
static char tls[4096] __attribute__((aligned(64)));

/*
 * In the new task: system calls alone, since it may have memory, stack and thread's own in common with its maker.
 * It must not return into that one's frames either: so clone3 and all that follows is one piece.
 */
static long make(struct clone_args *args)
{
	long result;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "mov %[execve], %%eax\n\t"
			 "mov %[path], %%rdi\n\t"
			 "mov %[argv], %%rsi\n\t"
			 "mov %[envp], %%rdx\n\t"
			 "syscall\n\t"
			 "mov %[exit], %%eax\n\t"
			 "mov $4, %%edi\n\t"
			 "syscall\n\t"
			 "1:"
			 : "=a"(result)
			 : "a"(SYS_clone3), "D"(args), "S"(sizeof(*args)), [execve] "i"(SYS_execve), [exit] "i"(SYS_exit),
			   [path] "r"(EVIL), [argv] "r"(argv_of), [envp] "r"(none)
			 : "rcx", "r11", "rdx", "memory");
	return result;
}

static int try_in(int cgroup)
{
	struct clone_args args = {.exit_signal = SIGCHLD, .cgroup = cgroup};
	int pidfd = -1, tid, status = 0, few = rand() % 5;
	long child;

	for (int i = 0; i <= few; i++)
		args.flags |= flags[rand() % FLAGS];
	/* What belongs together, three times of four: each alone is refused, which is tried too. */
	if (rand() % 4) {
		if (args.flags & CLONE_THREAD)
			args.flags |= CLONE_SIGHAND;
		if (args.flags & CLONE_SIGHAND)
			args.flags |= CLONE_VM, args.flags &= ~CLONE_CLEAR_SIGHAND;
		if (args.flags & (CLONE_NEWNS | CLONE_NEWUSER))
			args.flags &= ~CLONE_FS;
		if (args.flags & (CLONE_THREAD | CLONE_PARENT))
			args.exit_signal = 0;
	}
	if (args.flags & CLONE_VM)
		args.stack = (uintptr_t)stack, args.stack_size = sizeof(stack);
	args.pidfd = (uintptr_t)&pidfd;
	args.tls = (uintptr_t)(tls + sizeof(tls) / 2);
	args.child_tid = args.parent_tid = (uintptr_t)&tid;
	child = make(&args);
	if (child < 0)
		return 0;
	if (args.flags & (CLONE_THREAD | CLONE_PARENT))
		usleep(20000); /* the stack is in use as long as it is there */
	else
		waitpid(child, &status, __WALL);
	if (pidfd >= 0)
		close(pidfd);
	return 1;
}

/* Refused while another task still has this one's root and directory in common (CLONE_FS): it is about to end. */
static void enter(int namespace)
{
	for (int tries = 0; setns(namespace, CLONE_NEWNS) < 0; tries++) {
		if (errno != EINVAL || tries > 1000)
			must(-1, "setns");
		usleep(10000);
	}
}

ATTACK(namespace_storm)
{
	int count = atoi(argv[0]), each = atoi(argv[1]), made = 0, *held = calloc(count, sizeof(int)), status, cgroup;
	struct rlimit limit = {count + 100, count + 100};

	/* Process 1 can be no sibling's maker. */
	pid_t child = must(fork(), "fork");
	if (child) {
		while (waitpid(-1, &status, 0) != child)
			;
		return WIFEXITED(status) ? WEXITSTATUS(status) : 5;
	}
	srand(atoi(argv[2]));
	must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
	cgroup = opened("/sys/fs/cgroup", O_RDONLY | O_DIRECTORY);
	write_file(EVIL, evil_program, evil_program_end - evil_program, 0755);
	for (int i = 0; i < count; i++) {
		must(unshare(CLONE_NEWNS), "unshare");
		held[i] = opened("/proc/self/ns/mnt", O_RDONLY);
		if (!i) {
			must(mount("none", "/", 0, MS_REC | MS_PRIVATE, 0), "mount --make-rprivate");
			umount2("/sys/fs/cgroup", MNT_DETACH);
			umount2("/sys", MNT_DETACH);
			umount2("/dev", MNT_DETACH);
		}
		if (i % each)
			continue;
		enter(held[rand() % (i + 1)]);
		made += try_in(cgroup);
		enter(held[i]);
	}
	printf("made: %d of %d\ndone\n", made, count / each);
	fflush(stdout);
	_exit(0);
}
