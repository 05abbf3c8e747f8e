/*
 * A digest that IMA keeps from before is not better for what the file system is now. A file is stale as
 * in stale.c, and then nobody can write it any more. Argument: read_only (the volume is mounted anew), or
 * verity. Must be seen: the changed file's digest, or that it is not stable.
 */
#include <linux/fs.h>
#include <linux/fsverity.h>

#include "attack.h"

ATTACK(remounted)
{
	char *bytes = dirty_mapping(CODE);
	void *code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	struct fsverity_enable_arg enable = {.version = 1, .hash_algorithm = FS_VERITY_HASH_ALG_SHA256, .block_size = PAGE};

	call(code);
	munmap(code, PAGE);
	memcpy(bytes, evil_code, sizeof(evil_code));
	munmap(bytes, size_of(CODE));
	if (is_mode(argv, "read_only"))
		must(mount(0, "/data", 0, MS_REMOUNT | MS_RDONLY, 0), "mount -o remount,ro");
	else
		must(ioctl(opened(CODE, O_RDONLY), FS_IOC_ENABLE_VERITY, &enable), "FS_IOC_ENABLE_VERITY");
	truth(CODE);
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	if (is_mode(argv, "read_only"))
		must(mount(0, "/data", 0, MS_REMOUNT, 0), "mount -o remount,rw");
	return 0;
}
