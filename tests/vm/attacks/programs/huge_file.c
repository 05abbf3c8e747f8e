/*
 * A file of nearly nothing that takes minutes to hash, and cannot be killed meanwhile.
 * Arguments: its size in MiB; a user to give it to, whose files IMA hashes when they are opened. Must be seen: that it is refused, by its name.
 */
#include "attack.h"

ATTACK(huge_file)
{
	off_t size = (off_t)atoi(argv[0]) << 20;
	void *code;
	int fd = opened("/dev/shm/huge", O_RDWR | O_CREAT);

	must(write(fd, evil_code, sizeof(evil_code)), "write");
	must(ftruncate(fd, size), "ftruncate");
	close(fd);
	if (argc > 1) {
		must(chown("/dev/shm/huge", atoi(argv[1]), 0), "chown");
		fd = opened("/dev/shm/huge", O_RDONLY);
		printf("opened\n");
		return 0;
	}
	fd = opened("/dev/shm/huge", O_RDONLY);
	code = mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap");
	call(code);
	return 0;
}
