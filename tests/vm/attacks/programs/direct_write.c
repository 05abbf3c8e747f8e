/*
 * A direct write that fails in its midst (the second part of what is to be written cannot be read) has written its
 * first part to the disk, and the kernel does not throw the file's cached pages away once more. Who read the page while
 * the write was under way has it as it was before: cache and disk differ, and stay so. Nothing was mapped. What IMA
 * hashes is the cache; when that is given up (POSIX_FADV_DONTNEED, which takes no writer), the disk is read. Argument:
 * the descriptor is opened for that, or set to it later (fcntl). Must be seen: that the file is not stable.
 */
#include <pthread.h>
#include <sys/uio.h>
#include "attack.h"

static volatile int stop;

static void *reader(void *fd)
{
	char byte;

	while (!stop)
		if (pread((long)fd, &byte, 1, 0) != 1)
			break;
	return 0;
}

static char at(int fd)
{
	static char *page;

	if (!page)
		page = aligned_alloc(PAGE, PAGE);
	must(pread(fd, page, PAGE, 0), "pread");
	return page[1];
}

ATTACK(direct_write)
{
	static char good[2 * PAGE], evil[2 * PAGE];
	int plain = opened(CODE, O_RDONLY), direct, raw, source, tries, writer;
	char *hole = mapped(mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
	pthread_t thread;
	void *code;

	must(pread(plain, good, sizeof(good), 0), "pread");
	close(plain);
	memcpy(evil, good, sizeof(evil));
	memcpy(evil, evil_code, sizeof(evil_code));
	write_file("/data/source", evil, sizeof(evil), 0644);
	source = opened("/data/source", O_RDONLY);
	writer = opened(CODE, O_WRONLY);
	plain = opened(CODE, O_RDONLY);
	direct = open(CODE, O_WRONLY | (is_mode(argv, "fcntl") ? 0 : O_DIRECT));
	raw = open(CODE, O_RDONLY | O_DIRECT);
	if (direct < 0 || raw < 0 || (is_mode(argv, "fcntl") && fcntl(direct, F_SETFL, O_DIRECT)))
		absent("O_DIRECT");
	must(-pthread_create(&thread, 0, reader, (void *)(long)plain), "pthread_create");
	for (tries = 1; tries <= 300; tries++) {
		char *cold;
		struct iovec parts[2];

		must(pwrite(writer, good, sizeof(good), 0), "pwrite");
		must(fsync(writer), "fsync");
		fsync(source);
		posix_fadvise(source, 0, 0, POSIX_FADV_DONTNEED);
		cold = mapped(mmap(0, 2 * PAGE, PROT_READ, MAP_PRIVATE, source, 0), "mmap");
		madvise(cold, 2 * PAGE, MADV_RANDOM);
		parts[0] = (struct iovec){cold, PAGE};
		parts[1] = (struct iovec){hole, PAGE};
		if (pwritev(direct, parts, 2, 0) > 0)
			printf("nothing failed\n");
		munmap(cold, 2 * PAGE);
		if (at(raw) == 'e' && at(plain) == 'g')
			break;
	}
	stop = 1;
	pthread_join(thread, 0);
	printf("after %d tries: cache %c, disk %c\n", tries, at(plain), at(raw));
	close(writer);
	close(direct);
	close(raw);
	code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	call(code);
	munmap(code, PAGE);
	posix_fadvise(plain, 0, 0, POSIX_FADV_DONTNEED);
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	truth(CODE);
	return 0;
}
