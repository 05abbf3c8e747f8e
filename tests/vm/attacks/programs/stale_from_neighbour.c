/*
 * A volume that two containers share: the first has IMA keep the good digest of a file that is dirty,
 * and changes it; the second executes it. Argument: prime, or use.
 * Must be seen in the second's log: the foreign program's digest, or that it is not stable.
 */
#include "attack.h"

ATTACK(stale_from_neighbour)
{
	size_t size = evil_program_end - evil_program;
	char *bytes;
	int fd;

	if (is_mode(argv, "use")) {
		truth(PROGRAM);
		execute(PROGRAM);
		return 0;
	}
	bytes = dirty_mapping(PROGRAM);
	fd = opened(PROGRAM, O_RDONLY);
	mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap");
	memcpy(bytes, evil_program, size);
	return 0;
}
