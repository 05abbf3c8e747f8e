/*
 * Where what is cached of a file is lost before it was written back (here: memory that is said to be broken),
 * the next to look at it reads the disk, which holds something else.
 * Must be seen: that the file changed after it was mapped.
 */
#include "attack.h"

static int lose_pages(void)
{
	int fd = opened(CODE, O_RDWR), was_lost;
	char *code, *other;

	must(pwrite(fd, evil_code, sizeof(evil_code), 0), "pwrite");
	must(fsync(fd), "fsync");
	must(pwrite(fd, good_code, sizeof(good_code), 0), "pwrite");
	close(fd);
	code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	call(code);
	must(madvise(code, PAGE, MADV_DONTNEED), "MADV_DONTNEED");
	fd = opened(CODE, O_RDONLY);
	other = mapped(mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, 0), "mmap");
	close(fd);
	if (*(volatile char *)other != (char)good_code[0])
		absent("a cached page");
	if (madvise(other, PAGE, MADV_HWPOISON) < 0)
		absent("MADV_HWPOISON");
	call(code);
	was_lost = !memcmp(code, evil_code, sizeof(evil_code));
	munmap(code, PAGE);
	munmap(other, PAGE);
	return was_lost;
}

static void ended(int signal)
{
	(void)signal;
	refused("who has the page mapped goes on");
}

ATTACK(lost_pages)
{
	/* What xfs keeps in one piece with others the kernel takes from whoever has it mapped. */
	signal(SIGBUS, ended);
	/* Where the kernel was faster, it was written back already. */
	for (int i = 0; i < 8 && !lose_pages(); i++)
		;
	return 0;
}
