/*
 * A good file is mapped executable, and changed afterwards: pages of a private mapping that nobody
 * wrote to are the file's own. Argument: how the file is changed.
 * Must be seen: that a file which is in use was opened for writing.
 */
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/loop.h>
#include <sys/sendfile.h>

#include "attack.h"

#define OTHER "/data/other"
static char *evil;

static void by_pwrite(int fd) { must(pwrite(fd, evil_code, sizeof(evil_code), 0), "pwrite"); }

static void by_mapping(int fd)
{
	void *bytes = mapped(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "mmap");
	memcpy(bytes, evil_code, sizeof(evil_code));
}

static void by_direct_io(int fd)
{
	void *page = mapped(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
	int direct = open(CODE, O_WRONLY | O_DIRECT);

	if (direct < 0 && errno == EINVAL)
		absent("O_DIRECT");
	memcpy(page, evil, PAGE);
	if (pwrite(direct, page, PAGE, 0) < 0 && errno == EINVAL)
		absent("O_DIRECT");
	close(direct);
	(void)fd;
}

static void by_aio(int fd)
{
	aio_context_t context = 0;
	struct iocb io = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = fd, .aio_buf = (uintptr_t)evil, .aio_nbytes = PAGE};
	struct iocb *ios[] = {&io};
	struct io_event event;

	must(syscall(SYS_io_setup, 1, &context), "io_setup");
	must(syscall(SYS_io_submit, context, 1, ios), "io_submit");
	must(syscall(SYS_io_getevents, context, 1, 1, &event, 0), "io_getevents");
}

static void by_io_uring(int fd)
{
	struct io_uring_params p = {0};
	int ring = must(syscall(SYS_io_uring_setup, 1, &p), "io_uring_setup");
	char *sq = mapped(mmap(0, p.sq_off.array + 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING), "mmap");
	struct io_uring_sqe *sqe = mapped(mmap(0, sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES), "mmap");

	*sqe = (struct io_uring_sqe){.opcode = IORING_OP_WRITE, .fd = fd, .addr = (uintptr_t)evil, .len = PAGE};
	*(unsigned *)(sq + p.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	must(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0), "io_uring_enter");
}

static void by_splice(int fd)
{
	int ends[2];
	loff_t at = 0;

	must(pipe(ends), "pipe");
	must(write(ends[1], evil, PAGE), "write");
	must(splice(ends[0], 0, fd, &at, PAGE, 0), "splice");
}

static void by_sendfile(int fd) { off_t at = 0; must(sendfile(fd, opened(OTHER, O_RDONLY), &at, PAGE), "sendfile"); }

static void by_copy_file_range(int fd)
{
	loff_t from = 0, to = 0;
	must(copy_file_range(opened(OTHER, O_RDONLY), &from, fd, &to, PAGE, 0), "copy_file_range");
}

static void by_clone(int fd)
{
	int other = opened(OTHER, O_RDWR);
	must(fsync(other), "fsync");
	if (ioctl(fd, FICLONE, other) < 0)
		absent("FICLONE");
}

static void by_collapse(int fd)
{
	must(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE), "fallocate");
}

static void by_loop_device(int fd)
{
	int control = opened("/dev/loop-control", O_RDWR), number = must(ioctl(control, LOOP_CTL_GET_FREE), "loop"), loop;
	char path[32];

	snprintf(path, sizeof(path), "/dev/attack-loop");
	must(mknod(path, S_IFBLK | 0600, 7 << 8 | number), "mknod");
	loop = opened(path, O_RDWR);
	must(ioctl(loop, LOOP_SET_FD, fd), "LOOP_SET_FD");
	must(pwrite(loop, evil, PAGE, 0), "pwrite");
	must(fsync(loop), "fsync");
	ioctl(loop, LOOP_CLR_FD, 0);
}

static const struct {
	const char *name;
	void (*change)(int fd);
} ways[] = {
	{"pwrite", by_pwrite}, {"mapping", by_mapping}, {"direct_io", by_direct_io}, {"aio", by_aio},
	{"io_uring", by_io_uring}, {"splice", by_splice}, {"sendfile", by_sendfile},
	{"copy_file_range", by_copy_file_range}, {"clone", by_clone}, {"collapse", by_collapse},
	{"loop_device", by_loop_device},
};

ATTACK(changed_after_use)
{
	void *code;
	int fd;

	evil = aligned_alloc(PAGE, 2 * PAGE);
	memset(evil, 0xcc, 2 * PAGE);
	memcpy(evil, evil_code, sizeof(evil_code));
	/* On overlayfs the mapping would be of the lower file, which no writer reaches. */
	fd = opened(CODE, O_RDWR);
	if (is_mode(argv, "collapse"))
		must(pwrite(fd, evil_code, sizeof(evil_code), PAGE), "pwrite");
	must(fsync(fd), "fsync");
	close(fd);
	write_file(OTHER, evil, 2 * PAGE, 0644);
	code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	call(code);
	fd = opened(CODE, O_RDWR);
	for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++)
		if (is_mode(argv, ways[i].name))
			ways[i].change(fd);
	call(code);
	if (!is_mode(argv, "collapse"))
		must(pwrite(fd, good_code, sizeof(good_code), 0), "pwrite");
	close(fd);
	return 0;
}
