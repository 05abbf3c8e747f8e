/*
 * A file of nearly nothing that takes minutes to hash, and cannot be killed meanwhile.
 * Argument: its size in MiB. Must be seen: that it is refused, by its name.
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
	fd = opened("/dev/shm/huge", O_RDONLY);
	code = mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap");
	call(code);
	return 0;
}
