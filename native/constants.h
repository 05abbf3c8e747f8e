/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Written by native/constants.py: change the Python that a value comes from. */
#ifndef CIMA_CONSTANTS_H
#define CIMA_CONSTANTS_H

#define SETTINGS_FILE "/etc/cima/config.toml"
#define COMPANION_FILE "/run/cima/launcher"
#define COMPANION_MAGIC "cima-runc-launcher-1"
#define BUNDLES_SUFFIX ".bundles"
#define HELD_SUFFIX ".held"
#define RESTORE_COMMAND "restore"

#define SAID_WHY 3
#define HOOK_STATE 2097152
#define PATH_SIZE 4096
#define NAME_PATTERNS_MAX 16
#define NAME_PATTERN_SIZE 29
#define DIGEST_SIZE 64
#define WATCHED_MAX 262144
#define EVER_WATCHED_MAX 65536
#define REGISTRATIONS_MAX 16384
#define CLASSES 64
#define LAYERS 63
#define EVENT_SIZE 136
#define WATCHED_SIZE 24
#define REGISTRATION_SIZE 128
#define SETTINGS_SIZE 584

#define STARTING_COMMANDS \
	"create", "restore", "run"

#define ENDING_OPTIONS \
	"--help", "--version", "-h", "-v"

#define GLOBAL_VALUE_OPTIONS \
	"--cgroup-manager", "--criu", "--log", "--log-format", "--log-level", "--root", \
	"--rootless"

#define GLOBAL_FLAG_OPTIONS \
	"--debug", "--systemd-cgroup"

#define COMMAND_VALUE_OPTIONS \
	"--bundle", "--config", "--console-socket", "--empty-ns", "--image-path", \
	"--lsm-mount-context", "--lsm-profile", "--manage-cgroups-mode", "--page-server", \
	"--parent-path", "--pid-file", "--pidfd-socket", "--preserve-fds", "--status-fd", \
	"--work-path", "-b", "-f"

#define COMMAND_FLAG_OPTIONS \
	"--auto-dedup", "--detach", "--ext-unix-sk", "--file-locks", "--keep", "--lazy-pages", \
	"--link-remap", "--no-new-keyring", "--no-pivot", "--no-subreaper", "--shell-job", \
	"--tcp-established", "-d"

enum func {
	NONE = 0, BPRM_CHECK = 1, MMAP_CHECK = 2, FILE_CHECK = 3
};

enum kind {
	USE = 0, CHANGED = 1, GUARD = 2, ENTRY = 3, HELPER = 4, MEMORY = 5
};

enum why {
	STABLE = 0, WRITER = 1, SHARED_MAPPING = 2, WRITTEN_WHILE_HASHED = 3, WRITTEN_SINCE = 4,
	MOVED = 5, OLDER_THAN_SENSOR = 6, MAP_FULL = 7, SERVER_CAN_ANSWER_TWICE = 8,
	CONTAINER_MOUNTED_OVERLAY = 9, CONTAINER_MOUNTED = 10, MEMORY_FILE = 11, MPROTECT = 12,
	TOO_LARGE = 13, NO_DIGEST_KEPT = 14, HOOK_MISSING = 15, OPENED_WHILE_MAPPED = 16,
	TRUNCATED_WHILE_MAPPED = 17, PROCESS_MEMORY = 18, PTRACE = 19, USERFAULTFD = 20,
	BPF_CALL = 21, TRACING = 22, HELPER_SET = 23, HELPER_RAN = 24, CAPABILITIES = 25,
	NO_SECCOMP = 26, EXECMEM = 27, EXECMOD = 28, EXECSTACK = 29, EXECHEAP = 30,
	PINNED_MEMORY = 31, RAW_DEVICE = 32, WAS_MAPPED = 33, KERNEL_CODE = 34
};

enum registration_flag {
	BOUNDING_KNOWN = 1, SECCOMP_SEEN = 2, FIRST_SEEN = 4, DENY_MEMORY = 8, CROWDED = 16,
	CROWDED_BELOW = 32
};

#endif
