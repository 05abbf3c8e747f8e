/*
 * A uprobe keeps the instruction that is at its place when it is first put into a mapping that need not be
 * executable, and has that one executed from then on, whatever the file holds later. perf_event_open(2) makes one
 * with CAP_PERFMON, or CAP_SYS_ADMIN, without tracefs. Must be seen: that it reaches for the kernel's tracing.
 */
#include <linux/perf_event.h>
#include "attack.h"

ATTACK(probed)
{
	char text[32] = {0};
	int fd = opened("/sys/bus/event_source/devices/uprobe/type", O_RDONLY);
	struct perf_event_attr attr = {.size = sizeof(attr), .config1 = (uintptr_t)CODE, .config2 = 0};
	void *read_only, *code;

	must(read(fd, text, sizeof(text) - 1), "read");
	attr.type = atoi(text);
	overwrite(CODE, evil_code, sizeof(evil_code));
	read_only = map_code(PROT_READ, MAP_PRIVATE);
	must(syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC), "perf_event_open");
	munmap(read_only, PAGE);
	overwrite(CODE, good_code, sizeof(good_code));
	truth(CODE);
	code = map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	call(code);
	return 0;
}
