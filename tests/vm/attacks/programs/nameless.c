/*
 * A foreign program that has no name: in memory, deleted, or never linked.
 * Argument: memfd, memfd_exec, deleted, tmpfile, script. Must be seen: its digest.
 */
#include "attack.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10
#endif

ATTACK(nameless)
{
	char *argv_of[] = {"nameless", 0}, *none[] = {0};
	size_t size = evil_program_end - evil_program;
	int writer, fd;
	char path[64];

	if (is_mode(argv, "deleted"))
		writer = opened("/tmp/deleted", O_RDWR | O_CREAT);
	else if (is_mode(argv, "tmpfile"))
		writer = must(open("/dev/shm", O_TMPFILE | O_RDWR, 0755), "O_TMPFILE");
	else if ((writer = memfd_create("evil", is_mode(argv, "memfd_exec") ? MFD_EXEC : 0)) < 0 && errno == EINVAL)
		absent("MFD_EXEC");
	must(write(writer, evil_program, size), "write");
	must(fchmod(writer, 0755), "fchmod");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", writer);
	truth(path);
	fd = opened(path, O_RDONLY);
	close(writer);
	if (is_mode(argv, "deleted"))
		unlink("/tmp/deleted");
	must(syscall(SYS_execveat, fd, "", argv_of, none, AT_EMPTY_PATH), "execveat");
	return 0;
}
