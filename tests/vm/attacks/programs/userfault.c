/*
 * userfaultfd fills pages of a private executable mapping of a good file that has none yet; of the
 * files that are no memory only those on tmpfs let it.
 * Must be seen: that a userfaultfd was set over executable memory.
 */
#include <linux/userfaultfd.h>

#include "attack.h"

ATTACK(userfault)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = {.api = UFFD_API};
	void *code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	struct uffdio_register region = {.range = {(uintptr_t)code, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_copy copy = {.dst = (uintptr_t)code, .len = PAGE};
	static char page[PAGE] __attribute__((aligned(PAGE)));

	must(fd, "userfaultfd");
	must(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	if (ioctl(fd, UFFDIO_REGISTER, &region) < 0)
		absent("UFFDIO_REGISTER");
	memcpy(page, evil_code, sizeof(evil_code));
	copy.src = (uintptr_t)page;
	must(ioctl(fd, UFFDIO_COPY, &copy), "UFFDIO_COPY");
	call(code);
	return 0;
}
