/*
 * Pipes are set to direct writes: with names, on the file system that holds /data, and without. Nothing of them is
 * to be remembered: they hold nothing that can run.
 */
#include "attack.h"

enum { PIPES = 200 };

ATTACK(direct_pipes)
{
	char name[32];
	int ends[2];

	for (int i = 0; i < PIPES; i++) {
		snprintf(name, sizeof(name), "/data/pipe%d", i);
		must(mkfifo(name, 0600), "mkfifo");
		/* The kernel's own answer comes after the sensor was asked. */
		fcntl(opened(name, O_RDWR), F_SETFL, O_DIRECT);
		must(unlink(name), "unlink");
		must(pipe(ends), "pipe");
		fcntl(ends[1], F_SETFL, O_DIRECT);
		close(ends[0]);
	}
	printf("%d pipes\n", PIPES);
	return 0;
}
