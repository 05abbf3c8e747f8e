/*
 * A user and a mount namespace of its own, and a file system that is mounted there alone.
 * Must be seen: the foreign program's digest.
 */
#include "attack.h"

ATTACK(own_user_namespace)
{
	must(unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare");
	write_text("/proc/self/setgroups", "deny");
	write_text("/proc/self/uid_map", "0 0 1");
	write_text("/proc/self/gid_map", "0 0 1");
	must(mount("none", "/mnt", "tmpfs", 0, 0), "mount tmpfs");
	write_file("/mnt/evil", evil_program, evil_program_end - evil_program, 0755);
	truth("/mnt/evil");
	execute("/mnt/evil");
	return 0;
}
