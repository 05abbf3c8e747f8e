/*
 * As many threads as asked for have IMA hash a large file each, all at once, as long as there is time.
 * Arguments: threads, MiB of a file, seconds. Must be seen: nothing, in the log of any other container.
 */
#include <pthread.h>
#include <time.h>

#include "attack.h"

static off_t size;
static time_t end;

static void *hash_files(void *number)
{
	char path[64];

	for (int round = 0; time(0) < end; round++) {
		snprintf(path, sizeof(path), "/data/%ld.%d", (long)number, round);
		int fd = opened(path, O_RDWR | O_CREAT);

		must(ftruncate(fd, size), "ftruncate");
		close(fd);
		fd = opened(path, O_RDONLY);
		mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap");
		unlink(path);
		close(fd);
	}
	return 0;
}

ATTACK(crowd)
{
	int threads = atoi(argv[0]);
	pthread_t *all = calloc(threads, sizeof(*all));

	size = (off_t)atoi(argv[1]) << 20;
	end = time(0) + atoi(argv[2]);
	for (long i = 0; i < threads; i++)
		pthread_create(&all[i], 0, hash_files, (void *)i);
	printf("crowded\n");
	fflush(stdout);
	for (int i = 0; i < threads; i++)
		pthread_join(all[i], 0);
	return 0;
}
