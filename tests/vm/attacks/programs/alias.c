/*
 * One file by two names: it is changed by one and used by the other.
 * Argument: hard_link or bind_mount. Must be seen: the changed file's digest, or that it is not stable.
 */
#include "attack.h"

ATTACK(alias)
{
	char *bytes;
	void *code;

	if (is_mode(argv, "hard_link")) {
		must(link(CODE, "/data/alias"), "link");
	} else {
		close(opened("/data/alias", O_WRONLY | O_CREAT));
		must(mount(CODE, "/data/alias", 0, MS_BIND, 0), "mount --bind");
	}
	bytes = dirty_mapping("/data/alias");
	code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	call(code);
	munmap(code, PAGE);
	memcpy(bytes, evil_code, sizeof(evil_code));
	munmap(bytes, size_of(CODE));
	truth(CODE);
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	return 0;
}
