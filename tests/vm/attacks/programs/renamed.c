/*
 * What a name means changes after its file has been seen: another file under the name.
 * Argument: rename, exchange, hard_link, symlink, reuse. Must be seen: the foreign program's digest.
 */
#include "attack.h"

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

ATTACK(renamed)
{
	size_t size = evil_program_end - evil_program;

	execute(PROGRAM);
	if (is_mode(argv, "reuse")) {
		/* The inode's number is free, and is given again. */
		struct stat before, after;
		must(stat(PROGRAM, &before), "stat");
		must(unlink(PROGRAM), "unlink");
		write_file(PROGRAM, evil_program, size, 0755);
		must(stat(PROGRAM, &after), "stat");
		printf("inode %lu %lu\n", before.st_ino, after.st_ino);
	} else {
		write_file("/data/evil", evil_program, size, 0755);
		if (is_mode(argv, "exchange")) {
			must(syscall(SYS_renameat2, AT_FDCWD, "/data/evil", AT_FDCWD, PROGRAM, RENAME_EXCHANGE), "renameat2");
		} else if (is_mode(argv, "rename")) {
			must(rename("/data/evil", PROGRAM), "rename");
		} else {
			must(unlink(PROGRAM), "unlink");
			must(is_mode(argv, "symlink") ? symlink("/data/evil", PROGRAM) : link("/data/evil", PROGRAM), "link");
		}
	}
	truth(PROGRAM);
	execute(PROGRAM);
	return 0;
}
