/*
 * An overlay that the container mounts itself: its lower directory is the container's own to write, and
 * overlayfs never sees that. Must be seen: the changed digest, or that the file is not stable.
 */
#include "attack.h"

static char *const all[] = {"lower", "upper", "work", "merged"};

ATTACK(own_overlay)
{
	char path[64], *bytes;
	int fd;

	must(mount("none", "/mnt", "tmpfs", 0, 0), "mount tmpfs");
	for (int i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "/mnt/%s", all[i]);
		must(mkdir(path, 0755), path);
	}
	bytes = calloc(1, size_of(CODE));
	fd = opened(CODE, O_RDONLY);
	must(read(fd, bytes, size_of(CODE)), "read");
	close(fd);
	write_file("/mnt/lower/code", bytes, size_of(CODE), 0755);
	must(mount("overlay", "/mnt/merged", "overlay", 0,
		   "lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work"), "mount overlay");
	must(mount("/mnt/merged", "/data", 0, MS_BIND, 0), "mount --bind");
	bytes = dirty_mapping("/mnt/lower/code");
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	memcpy(bytes, evil_code, sizeof(evil_code));
	truth(CODE);
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	return 0;
}
