/* The file system of a volume is mounted anew, with nothing changed: others have files on it, too. */
#include "attack.h"

ATTACK(mounted_anew)
{
	must(mount(0, "/data", 0, MS_REMOUNT | MS_RELATIME, 0), "mount -o remount");
	printf("mounted anew\n");
	return 0;
}
