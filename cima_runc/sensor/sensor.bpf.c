// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The sensor: reports every file that a watched container executes or maps executable, with the
 * digest that IMA has of that very file, its path as the container sees it, and whose it is. Where a
 * container has a list of what may run in it, all else is refused, and that is reported.
 *
 * A container is known by its mount namespace. Namespaces that its processes create are added here,
 * the moment they come to be, and removed the moment their numbers can be used again.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;
/* What bpf_helpers.h and bpf_tracing.h want of linux/types.h, which the bpf target does not have. */
typedef u8 __u8;
typedef u16 __u16, __be16;
typedef u32 __u32, __be32, __wsum;
typedef u64 __u64;
typedef s32 __s32;
typedef s64 __s64;

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_HASH_OF_MAPS = 13,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_EXIST = 2, BPF_F_MMAPABLE = 1 << 10 };
enum { EPERM = 1, ETXTBSY = 26, MAX_ERRNO = 4095 };
enum { PROT_EXEC = 4, FMODE_READ = 1, FMODE_WRITE = 2, FMODE_EXEC = 0x20 };
enum { S_IFMT = 0170000, S_IFREG = 0100000 };
enum { HASH_ALGO_SHA256 = 4 };

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "sensor.h"

/* The fields of the kernel's structures that are read here; offsets come from the running kernel. */
#define KERNEL __attribute__((preserve_access_index))
typedef struct {
	int counter;
} KERNEL atomic_t;
struct ns_common {
	u32 inum;
} KERNEL;
struct mnt_namespace {
	struct ns_common ns;
	u64 seq;
} KERNEL;
struct ns_common___6_18 {
	u64 ns_id;
} KERNEL;
struct mnt_namespace___6_18 {
	struct ns_common___6_18 ns;
} KERNEL;
struct nsproxy {
	struct mnt_namespace *mnt_ns;
} KERNEL;
struct task_struct {
	struct nsproxy *nsproxy;
} KERNEL;
struct qstr {
	u32 len;
	const unsigned char *name;
} KERNEL;
struct dentry {
	struct qstr d_name;
} KERNEL;
struct path {
	void *mnt;
	struct dentry *dentry;
} KERNEL;
struct super_block {
	u32 s_dev;
} KERNEL;
struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
	atomic_t i_writecount;
} KERNEL;
struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	struct path f_path;
	struct inode *f_inode;
} KERNEL;
struct linux_binprm {
	struct file *file;
} KERNEL;
struct linux_binprm___6_14 {
	unsigned int is_check : 1;
} KERNEL;

/*
 * What has been reported. Whether a file was executed or mapped is not part of it: the first use is
 * the one recorded. That it was only read is: it may be executed yet.
 */
struct seen_key {
	u64 registration;
	u64 path_hash;
	u64 ino;
	u32 dev;
	s32 hash;
	u64 only_read;
	u8 digest[DIGEST_SIZE];
};

/* Room to build an event in: too large for the stack. */
struct scratch {
	struct seen_key key;
	struct event event;
	u8 path[PATH_SIZE + 8]; /* 8 more: zeros to the end of the last word, for the hash */
	u64 busy;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WATCHED_MAX);
	__type(key, u32);
	__type(value, struct watched);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REGISTRATIONS_MAX);
	__type(key, u64);
	__type(value, struct registration);
} registrations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SEEN_MAX);
	__type(key, struct seen_key);
	__type(value, u8);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCH_SLOTS);
	__type(key, u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct totals);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20); /* bytes; the loader sets it */
} events SEC(".maps");

/* The oldest give way, and begin anew when they send again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, REGISTRATIONS_MAX);
	__type(key, u64);
	__type(value, struct budget);
} budgets SEC(".maps");

struct allowlist {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* the loader makes each as large as it must be */
	__uint(key_size, SHA256_SIZE);
	__uint(value_size, sizeof(u8));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, REGISTRATIONS_MAX);
	__type(key, u64);
	__array(values, struct allowlist);
} allowed SEC(".maps");

const volatile struct settings settings = {};

/* The number of a mount namespace that the kernel never gives twice; 0 where it has none. */
static __always_inline u64 namespace_id(struct mnt_namespace *ns)
{
	struct mnt_namespace___6_18 *newer = (void *)ns;

	if (bpf_core_field_exists(newer->ns.ns_id))
		return newer->ns.ns_id;
	if (bpf_core_field_exists(ns->seq))
		return ns->seq;
	return 0;
}

/*
 * Whose `ns` is: the registration, or 0 for nobody's.
 *
 * Deleted map entries are reused at once, even under a reader. So the entry is looked up again
 * after it was read: if it still is this namespace's, what was read was too.
 */
static __always_inline u64 owner_of(struct mnt_namespace *ns)
{
	u32 inum = ns->ns.inum;
	struct watched *entry = bpf_map_lookup_elem(&watched, &inum), found = {};

	if (!entry)
		return 0;
	found.registration = *(volatile u64 *)&entry->registration;
	found.namespace_id = *(volatile u64 *)&entry->namespace_id;
	if (bpf_map_lookup_elem(&watched, &inum) != entry)
		return 0;
	/* An entry that outlived its namespace says nothing about the next one of that number. */
	if (found.namespace_id)
		return found.namespace_id == namespace_id(ns) ? found.registration : 0;
	/* The first that a container does, while the agent holds its namespace: from here on the
	   entry means no other one, also while no agent runs. */
	found.namespace_id = namespace_id(ns);
	if (found.namespace_id)
		bpf_map_update_elem(&watched, &inum, &found, BPF_EXIST);
	return found.registration;
}

static __always_inline void count_dropped(u64 registration)
{
	u32 zero = 0;
	struct registration *owner = bpf_map_lookup_elem(&registrations, &registration);
	struct totals *total = bpf_map_lookup_elem(&totals, &zero);

	if (owner)
		__sync_fetch_and_add(&owner->dropped, 1);
	if (total)
		__sync_fetch_and_add(&total->dropped, 1);
}

/*
 * A sleepable program may be preempted, and another task then run it on the same CPU: a per-CPU
 * buffer alone is not safe. Each CPU has several, and a buffer is claimed. Nothing that sleeps is
 * called while one is held, so more than one is in use only after a preemption.
 */
static __always_inline struct scratch *claim_scratch(void)
{
	for (u32 i = 0; i < SCRATCH_SLOTS; i++) {
		u32 slot = i;
		struct scratch *s = bpf_map_lookup_elem(&scratch, &slot);

		if (s && __sync_val_compare_and_swap(&s->busy, 0, 1) == 0)
			return s;
	}
	return 0;
}

static __always_inline void release_scratch(struct scratch *s)
{
	__sync_lock_test_and_set(&s->busy, 0);
}

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIPROUND                                                                                  \
	do {                                                                                      \
		v0 += v1; v1 = ROTL(v1, 13); v1 ^= v0; v0 = ROTL(v0, 32);                         \
		v2 += v3; v3 = ROTL(v3, 16); v3 ^= v2;                                            \
		v0 += v3; v3 = ROTL(v3, 21); v3 ^= v0;                                            \
		v2 += v1; v1 = ROTL(v1, 17); v1 ^= v2; v2 = ROTL(v2, 32);                         \
	} while (0)

/*
 * SipHash-1-3 of the path, in words (Aumasson and Bernstein, 2012); zeros fill the last word.
 *
 * A global function, which the kernel verifies by itself: inlined, its loop is gone through once for
 * each of the ways that lead to it, and loading the sensor takes up to thirty times as long.
 */
__noinline u64 hash_path(const struct scratch *s, u32 len)
{
	u64 v0 = settings.path_key[0] ^ 0x736f6d6570736575ULL, v1 = settings.path_key[1] ^ 0x646f72616e646f6dULL;
	u64 v2 = settings.path_key[0] ^ 0x6c7967656e657261ULL, v3 = settings.path_key[1] ^ 0x7465646279746573ULL;
	u64 last = (u64)len << 48;

	if (!s)
		return 0;
	for (u32 at = 0; at < PATH_SIZE; at += 8) {
		u64 word;

		if (at >= len)
			break;
		word = *(const u64 *)(s->path + at);
		v3 ^= word;
		SIPROUND;
		v0 ^= word;
	}
	v3 ^= last;
	SIPROUND;
	v0 ^= last;
	v2 ^= 0xff;
	SIPROUND;
	SIPROUND;
	SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/*
 * Whether a container may send as many bytes more in this second. The ring is everybody's: without a
 * limit, one that does nothing but run new files could have others' events dropped.
 */
static __always_inline int may_send(u64 registration, u64 now, u32 bytes)
{
	struct budget *budget = bpf_map_lookup_elem(&budgets, &registration);
	struct budget begun = {.second = now / 1000000000, .bytes = bytes};

	if (!budget) {
		bpf_map_update_elem(&budgets, &registration, &begun, BPF_ANY);
		return 1;
	}
	if (budget->second != begun.second) {
		budget->second = begun.second;
		budget->bytes = 0;
	}
	return __sync_fetch_and_add(&budget->bytes, bytes) + bytes <= settings.bytes_per_second;
}

/* Build the event in `s` and send it, unless the same was sent before. */
static __always_inline void send(struct scratch *s, struct file *file, struct mnt_namespace *ns,
				 u64 registration, s32 hash, const u8 *digest, u32 func, u32 denied)
{
	struct event *e = &s->event;
	struct inode *inode = file->f_inode;
	s32 path_len = bpf_d_path(&file->f_path, (char *)s->path, PATH_SIZE);
	u32 bytes = path_len;
	u8 one = 1;

	if (bytes > PATH_SIZE) /* an errno */
		bytes = 0;
	__builtin_memset(s->path + bytes, 0, 8);

	s->key.registration = registration;
	s->key.path_hash = hash_path(s, bytes);
	s->key.ino = inode->i_ino;
	s->key.dev = inode->i_sb->s_dev;
	s->key.hash = hash;
	__builtin_memcpy(s->key.digest, digest, DIGEST_SIZE);
	s->key.only_read = 0;
	if (bpf_map_lookup_elem(&seen, &s->key))
		return;
	if (func == FILE_CHECK) {
		s->key.only_read = 1;
		if (bpf_map_lookup_elem(&seen, &s->key))
			return;
	}

	e->registration = registration;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->cgroup_id = bpf_get_current_cgroup_id();
	e->ino = s->key.ino;
	e->mntns = ns->ns.inum;
	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->uid = bpf_get_current_uid_gid();
	e->dev = s->key.dev;
	e->hash = hash;
	e->path_len = path_len;
	e->func = func;
	e->denied = denied;
	__builtin_memcpy(e->digest, digest, DIGEST_SIZE);

	if (!may_send(registration, e->time_ns, sizeof(*e) + bytes) ||
	    bpf_ringbuf_output(&events, e, sizeof(*e) + bytes, 0))
		count_dropped(registration);
	else
		bpf_map_update_elem(&seen, &s->key, &one, BPF_ANY);
}

/* Whether the container's list, if it has one, lets a file with this digest run. */
static __always_inline int is_allowed(u64 registration, s32 hash, const u8 *digest)
{
	void *allowlist = bpf_map_lookup_elem(&allowed, &registration);
	u8 wanted[SHA256_SIZE];

	if (!allowlist)
		return 1;
	if (hash != HASH_ALGO_SHA256)
		return 0;
	__builtin_memcpy(wanted, digest, SHA256_SIZE);
	return bpf_map_lookup_elem(allowlist, wanted) != 0;
}

/* Returns what the kernel is to do: 0, or -EPERM where the file may not run in the container. */
static __always_inline int report(struct file *file, u32 func)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mnt_namespace *ns = task->nsproxy->mnt_ns;
	u64 registration = owner_of(ns);
	u8 digest[DIGEST_SIZE] = {};
	struct scratch *s;
	s32 hash;
	int denied;

	if (!registration)
		return 0;
	hash = bpf_ima_file_hash(file, digest, DIGEST_SIZE);
	/*
	 * IMA keeps a digest until the last writer has closed the file. While there is one, the
	 * digest says nothing about what is there now.
	 */
	if (hash >= 0 && file->f_inode->i_writecount.counter > 0) {
		hash = -ETXTBSY;
		__builtin_memset(digest, 0, DIGEST_SIZE);
	}
	denied = !is_allowed(registration, hash, digest);
	s = claim_scratch();
	if (s) {
		send(s, file, ns, registration, hash, digest, func, denied);
		release_scratch(s);
	} else {
		count_dropped(registration);
	}
	return denied ? -EPERM : 0;
}

/* Programs, scripts and interpreters, each as the kernel comes to it. */
SEC("lsm.s/bprm_check_security")
int BPF_PROG(cima_bprm_check, struct linux_binprm *bprm)
{
	return report(bprm->file, BPRM_CHECK);
}

/* Libraries, and whatever else is mapped executable. */
SEC("lsm.s/mmap_file")
int BPF_PROG(cima_mmap_file, struct file *file, unsigned long reqprot, unsigned long prot)
{
	if (!file || !((reqprot | prot) & PROT_EXEC))
		return 0;
	return report(file, MMAP_CHECK);
}

static __always_inline int matches(const volatile struct name_pattern *pattern, const u8 *name,
				   u32 len)
{
	u32 size = pattern->size, rest;
	u8 text[NAME_PATTERN_SIZE + 3] = {};

	if (size > NAME_PATTERN_SIZE || size > len)
		return 0;
	rest = len - size;
	if (pattern->at_start && pattern->at_end && rest)
		return 0;
	if (bpf_probe_read_kernel(text, size, name + (pattern->at_start ? 0 : rest)))
		return 0;
	for (u32 i = 0; i < NAME_PATTERN_SIZE; i++)
		if (i < size && text[i] != pattern->text[i])
			return 0;
	return 1;
}

/*
 * What an interpreter reads, where it has the name of a script. Loaded only where the settings name
 * any. When a file is opened to be executed that is not reading, and one that is opened for writing
 * as well has no digest.
 */
SEC("?lsm.s/file_post_open")
int BPF_PROG(cima_file_post_open, struct file *file, int mask)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const u8 *name;
	u32 len;

	if ((file->f_mode & (FMODE_READ | FMODE_WRITE)) != FMODE_READ ||
	    (file->f_flags & FMODE_EXEC) || (file->f_inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	if (!owner_of(task->nsproxy->mnt_ns))
		return 0;
	name = file->f_path.dentry->d_name.name;
	len = file->f_path.dentry->d_name.len;
	for (u32 i = 0; i < NAME_PATTERNS_MAX; i++) {
		if (i >= settings.patterns)
			break;
		if (matches(&settings.pattern[i], name, len))
			return report(file, FILE_CHECK);
	}
	return 0;
}

/*
 * An interpreter asks whether it may run a file that it will read: execveat(2) with AT_EXECVE_CHECK,
 * from Linux 6.14 on. The kernel then ends before bprm_check_security.
 */
SEC("lsm.s/bprm_creds_for_exec")
int BPF_PROG(cima_execve_check, struct linux_binprm *bprm)
{
	struct linux_binprm___6_14 *newer = (void *)bprm;

	if (!bpf_core_field_exists(newer->is_check) || !BPF_CORE_READ_BITFIELD(newer, is_check))
		return 0;
	return report(bprm->file, BPRM_CHECK);
}

/* A container makes a mount namespace: it is the container's, before anything can run in it. */
SEC("fexit/copy_mnt_ns")
int BPF_PROG(cima_copy_mnt_ns, u64 flags, struct mnt_namespace *old, void *user_ns, void *new_fs,
	     struct mnt_namespace *new)
{
	struct watched entry = {};
	struct registration *owner;
	u32 inum;

	if (new == old || (u64)new >= (u64)-MAX_ERRNO)
		return 0;
	entry.registration = owner_of(old);
	if (!entry.registration)
		return 0;
	owner = bpf_map_lookup_elem(&registrations, &entry.registration);
	if (!owner)
		return 0;
	entry.namespace_id = namespace_id(new);
	entry.nested = 1;
	inum = new->ns.inum;
	if (!entry.namespace_id) {
		count_dropped(entry.registration);
		return 0;
	}
	if (__sync_fetch_and_add(&owner->nested, 1) >= NESTED_MAX ||
	    bpf_map_update_elem(&watched, &inum, &entry, BPF_ANY)) {
		__sync_fetch_and_add(&owner->nested, -1);
		count_dropped(entry.registration);
		return 0;
	}
	/* Unwatched in the meantime: the loader may have looked for nested ones before this one. */
	if (!bpf_map_lookup_elem(&registrations, &entry.registration))
		bpf_map_delete_elem(&watched, &inum);
	return 0;
}

/* A namespace of any kind is gone, and its number is about to be free. */
SEC("fentry/proc_free_inum")
int BPF_PROG(cima_free_inum, u32 inum)
{
	struct watched *entry = bpf_map_lookup_elem(&watched, &inum);
	struct registration *owner;
	u64 registration;

	if (!entry)
		return 0;
	registration = entry->registration;
	owner = entry->nested ? bpf_map_lookup_elem(&registrations, &registration) : 0;
	if (owner)
		__sync_fetch_and_add(&owner->nested, -1);
	bpf_map_delete_elem(&watched, &inum);
	return 0;
}

char _license[] SEC("license") = "GPL";
