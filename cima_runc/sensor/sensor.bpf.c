// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The sensor: reports every file that a watched container executes or maps executable, with the
 * digest that IMA has of that very file, its path as the container sees it, and whose it is.
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
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_EXIST = 2, BPF_F_MMAPABLE = 1 << 10 };
enum { ETXTBSY = 26, MAX_ERRNO = 4095, PROT_EXEC = 4 };

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
struct path {
	void *mnt;
} KERNEL;
struct super_block {
	u32 s_dev;
} KERNEL;
struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
	atomic_t i_writecount;
} KERNEL;
struct file {
	struct path f_path;
	struct inode *f_inode;
} KERNEL;
struct linux_binprm {
	struct file *file;
} KERNEL;

/* What has been reported. `func` is not part of it: the first use of a file is the one recorded. */
struct seen_key {
	u64 registration;
	u64 path_hash;
	u64 ino;
	u32 dev;
	s32 hash;
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

/* Key of the path hash, random at every load: nobody can aim at a collision. */
const volatile u64 path_key[2] = {};

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

/* SipHash-1-3 of the path, in words (Aumasson and Bernstein, 2012); zeros fill the last word. */
static __always_inline u64 hash_path(const u8 *path, u32 len)
{
	u64 v0 = path_key[0] ^ 0x736f6d6570736575ULL, v1 = path_key[1] ^ 0x646f72616e646f6dULL;
	u64 v2 = path_key[0] ^ 0x6c7967656e657261ULL, v3 = path_key[1] ^ 0x7465646279746573ULL;
	u64 last = (u64)len << 48;

	for (u32 at = 0; at < PATH_SIZE; at += 8) {
		u64 word;

		if (at >= len)
			break;
		word = *(const u64 *)(path + at);
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

/* Build the event in `s` and send it, unless the same was sent before. */
static __always_inline void send(struct scratch *s, struct file *file, struct mnt_namespace *ns,
				 u64 registration, s32 hash, const u8 *digest, u32 func)
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
	s->key.path_hash = hash_path(s->path, bytes);
	s->key.ino = inode->i_ino;
	s->key.dev = inode->i_sb->s_dev;
	s->key.hash = hash;
	__builtin_memcpy(s->key.digest, digest, DIGEST_SIZE);
	if (bpf_map_lookup_elem(&seen, &s->key))
		return;

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
	e->reserved = 0;
	__builtin_memcpy(e->digest, digest, DIGEST_SIZE);

	if (bpf_ringbuf_output(&events, e, sizeof(*e) + bytes, 0))
		count_dropped(registration);
	else
		bpf_map_update_elem(&seen, &s->key, &one, BPF_ANY);
}

static __always_inline int report(struct file *file, u32 func)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mnt_namespace *ns = task->nsproxy->mnt_ns;
	u64 registration = owner_of(ns);
	u8 digest[DIGEST_SIZE] = {};
	struct scratch *s;
	s32 hash;

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
	s = claim_scratch();
	if (!s) {
		count_dropped(registration);
		return 0;
	}
	send(s, file, ns, registration, hash, digest, func);
	release_scratch(s);
	return 0;
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
