/*
 * More mount namespaces than any table for them holds; the foreign program runs in the last.
 * Argument: how many. Must be seen: the foreign program's digest.
 */
#include "attack.h"

ATTACK(many_namespaces)
{
	int count = atoi(argv[0]);
	int *held = calloc(count, sizeof(int));

	for (int i = 0; i < count; i++) {
		must(unshare(CLONE_NEWNS), "unshare");
		/* Held, so that none of them goes; each is small: nothing is mounted in it but its root. */
		held[i] = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
		if (!i) {
			must(mount("none", "/", 0, MS_REC | MS_PRIVATE, 0), "mount --make-rprivate");
			umount2("/sys", MNT_DETACH);
			umount2("/dev", MNT_DETACH);
		}
	}
	write_file("/tmp/evil", evil_program, evil_program_end - evil_program, 0755);
	truth("/tmp/evil");
	execute("/tmp/evil");
	return 0;
}
