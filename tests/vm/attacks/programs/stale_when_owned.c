/*
 * IMA's policy has it keep digests of files of one user, where a file is only read: a file of the
 * container's own is given to that user, made dirty, read, changed, and executed.
 * Argument: the user's number. Must be seen: the foreign program's digest, or that it is not stable.
 */
#include "attack.h"

ATTACK(stale_when_owned)
{
	size_t size = evil_program_end - evil_program;
	char *bytes, one;
	int fd;

	must(chown(PROGRAM, atoi(argv[0]), 0), "chown");
	bytes = dirty_mapping(PROGRAM);
	fd = opened(PROGRAM, O_RDONLY);
	must(read(fd, &one, 1), "read");
	close(fd);
	memcpy(bytes, evil_program, size);
	munmap(bytes, size);
	truth(PROGRAM);
	execute(PROGRAM);
	return 0;
}
