/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What crosses from the kernel to the loader: the event in the ring, and the values of the maps.
 * events.py and tables.py hold the same layouts as struct formats; numbers and sizes are theirs. Host
 * byte order (little-endian on x86-64), no padding that the compiler chooses.
 *
 * A newer agent takes over from an older sensor what is laid out in the same way: who changes anything
 * here gives tables.py's LAYOUT the next number.
 */
#ifndef CIMA_SENSOR_H
#define CIMA_SENSOR_H

#include "../../native/constants.h"

#define SHA256_SIZE 32
#define PROGRAM_PATH_SIZE 256 /* of the program that a task runs; a longer one is not kept */

/* Sizes of the maps, in entries. */
#define SEEN_MAX 65536		/* (file, path, digest) already reported; the oldest give way */
#define DIGESTS_MAX 262144	/* inodes whose digest is known; the loader sets it */
#define WRITES_MAX 524288	/* inodes whose writes are counted: those, and what was mapped writable */
#define FORGOTTEN_WORDS 524288	/* of 64 bits, 4 MiB: of 135,000 files it takes one other in 15 million for one of them */
#define PENDING_MAX 4096	/* uses of files that IMA is hashing at this moment */
#define PENDING_SHARE 256	/* of them, of one container */
#define MOUNTED_MAX 65536	/* file systems that containers mounted and that live now */
#define SCRATCH_SLOTS 1024	/* buffers that events are built in; a power of two */
#define SCRATCH_TRIES 16	/* to find one that is free */
#define USERS_MAX 4		/* containers that are told of a change to a file in use */
#define NESTED_SHARE 16384	/* of the map `watched`, mount namespaces that one container has made */

/* One event in the ring; `path_len` bytes of path follow, the last of them NUL. */
struct event {
	u64 registration;	/* the number that the container was watched under */
	u64 time_ns;		/* CLOCK_BOOTTIME */
	u64 cgroup_id;		/* of the task, in the cgroup v2 hierarchy */
	u64 ino;
	u32 mntns;		/* inode number of the task's mount namespace */
	u32 pid;		/* thread group id in the initial pid namespace */
	u32 uid;		/* in the initial user namespace */
	u32 dev;		/* the kernel's dev_t: major << 20 | minor */
	s32 hash;		/* enum hash_algo of linux/hash_info.h, or -errno: no digest */
	s32 path_len;		/* bytes, the NUL counted, or -errno: no path */
	u32 func;		/* enum func */
	u32 denied;		/* 1: refused */
	u32 kind;		/* enum kind */
	u32 why;		/* enum why */
	u8 digest[DIGEST_SIZE]; /* as long as `hash` says, zero after that */
};
_Static_assert(sizeof(struct event) == EVENT_SIZE, "events.py reads as many bytes");

/* Map `watched`: a mount namespace's inode number (u32) -> whose it is. */
struct watched {
	u64 registration;
	u64 namespace_id; /* the kernel's never reused number; 0: not known yet */
	u64 nested;	  /* 1: made in the container; 0: the container's own */
};

/* Map `registrations`: registration number (u64) -> the container. */
struct registration {
	u64 cgroup_id;	/* as the loader was told */
	u64 dropped;	/* events that did not reach the ring, and namespaces that found no room */
	s64 nested;	/* namespaces of its own that live now */
	u64 missed;	/* the loader's: what all programs had missed when this was watched */
	u64 mntns;	/* as the loader was told */
	u64 root_dev;	/* dev_t of its root file system where that is an overlay; 0: none */
	u64 bounding;	/* capabilities that its processes may have; meaningful with BOUNDING_KNOWN */
	u64 flags;	/* enum registration_flag */
	u64 dropped_in; /* mount namespace, not its own, in which the last event was dropped */
	u64 pid;	/* of its first process, in the initial pid namespace; 0: whichever is first */
	s64 digests;	/* entries of the map `digests` for files that it had hashed */
	u64 crowded;	/* CROWDED: what `totals.unattributed` of its class was then */
	u64 crowded_below; /* CROWDED_BELOW: what that of LAYERS was then */
	s64 mapped;	/* files that it mapped shared and writable, that live now and are remembered */
	s64 waiting;	/* uses whose digest is waited for: those that are left in the end are lost */
	s64 mounted;	/* file systems that it mounted and that live now */
};
_Static_assert(sizeof(struct watched) == WATCHED_SIZE &&
		       sizeof(struct registration) == REGISTRATION_SIZE,
	       "tables.py packs as many bytes");

/* Map `allowed`: registration number (u64) -> a hash map of the SHA-256 digests that may run there,
 * each with one byte. Containers that are not in it may run anything. */

/* Map `budgets`: registration number (u64) -> what the container has sent. */
struct budget {
	u64 second; /* of CLOCK_BOOTTIME, for which `bytes` counts */
	u64 bytes;
};

/* What the loader sets before the programs are loaded, and nobody changes after. */
struct name_pattern {
	u8 size;
	u8 at_start; /* the name begins with it */
	u8 at_end;   /* the name ends with it; both: it is the name */
	u8 text[NAME_PATTERN_SIZE];
};
struct settings {
	u64 path_key[2];      /* of the path hash, random: nobody can aim at a collision */
	u64 bytes_per_second; /* that one container may send */
	u64 patterns;	      /* how many of the following are used */
	struct name_pattern pattern[NAME_PATTERNS_MAX];
	u64 largest;	     /* bytes of a file that may be hashed */
	u64 share;	     /* files that one container may have hashed; and that of those it can write unseen are remembered; eight times the file systems that it may mount */
	u64 late;	     /* 1: a digest that IMA is about to take is waited for */
	u64 hooks_missing;   /* 1: this kernel cannot tell whether a file was written */
	u64 casts;	     /* 1: this kernel has bpf_rdonly_cast */
};
_Static_assert(sizeof(struct settings) == SETTINGS_SIZE, "options.py packs as many bytes");

const volatile struct settings settings = {};

/* Map `totals`, one entry, read through mmap: has anything been dropped at all? */
struct totals {
	u64 dropped;
	u64 full;	  /* digests for which there was no room */
	u64 switched;	  /* how often somebody reached for the switch that detaches all programs */
	u64 unattributed[CLASSES]; /* changes to files in use by more containers than are kept, by their class */
};

#endif
