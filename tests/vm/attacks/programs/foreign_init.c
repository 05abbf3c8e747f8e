/*
 * Under a root of its own the foreign program's path is that of the engine's init program, which no
 * image holds. Argument: its path. Must be seen: the foreign program's digest, as what it is: drift.
 */
#include "attack.h"

ATTACK(foreign_init)
{
	char path[256], *slash;

	for (char *at = argv[0] + 1; (slash = strchr(at, '/')); at = slash + 1) {
		snprintf(path, sizeof(path), "/tmp/root%.*s", (int)(slash - argv[0]), argv[0]);
		mkdir("/tmp/root", 0755);
		mkdir(path, 0755);
	}
	snprintf(path, sizeof(path), "/tmp/root%s", argv[0]);
	write_file(path, evil_program, evil_program_end - evil_program, 0755);
	truth(path);
	must(chroot("/tmp/root"), "chroot");
	execute(argv[0]);
	return 0;
}
