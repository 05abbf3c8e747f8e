/*
 * A disk that is mounted already, with others' files on it, is mounted anew, with nothing changed, and then once
 * more: its device, in /data/again.
 */
#include <sys/sysmacros.h>
#include "attack.h"

ATTACK(mounted_again)
{
	struct stat at;

	must(mount(0, "/data", 0, MS_REMOUNT | MS_RELATIME, 0), "mount -o remount");
	must(stat("/data", &at), "stat");
	must(mknod("/data/disk", S_IFBLK | 0600, at.st_dev), "mknod");
	must(mkdir("/data/again", 0755), "mkdir");
	must(mount("/data/disk", "/data/again", "ext4", 0, 0), "mount");
	printf("mounted again\n");
	return 0;
}
