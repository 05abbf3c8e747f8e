/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Lineage: whose a task is. A task that does anything that is looked at in a container's mount
 * namespace is marked, and what it forks is marked with it. The mark stays wherever the task goes.
 *
 * Mount namespaces say whose a process is that enters from outside: the container's own, and those
 * that its tasks made (namespaces.h).
 */
#ifndef CIMA_LINEAGE_H
#define CIMA_LINEAGE_H

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, WATCHED_MAX);
	__type(key, u32);
	__type(value, struct watched);
} watched SEC(".maps");

/*
 * Whether a mount namespace with this number, by its last bits, ever was in `watched`: who puts one there
 * says so here first, and nobody takes it back. A lookup in this is three instructions and no call, and most
 * tasks are in no container.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, EVER_WATCHED_MAX);
	__type(key, u32);
	__type(value, u8);
} ever_watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REGISTRATIONS_MAX);
	__type(key, u64);
	__type(value, struct registration);
} registrations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct totals);
} totals SEC(".maps");

/* An inode, and when its entry in `writes` was made: another one may have the same address later. */
struct counted {
	u64 inode; /* 0: none */
	u64 born;  /* 0: there was no room for an entry */
};

/* A script that is in use (scripts.h), by the inodes of which that is counted. */
struct script {
	struct counted seen; /* of an overlay's lower layer the overlay's own, else what holds the data */
	struct counted data; /* of a lower layer what holds the data, else none */
	u64 opened;	     /* 1: somebody who may be its interpreter has opened it */
};

/* A task of a container, and the program that it runs. */
struct mark {
	u64 registration;
	u64 path_hash; /* of `path`, for the map `seen` */
	u32 entered;   /* 1: it came from outside, and has not executed anything yet */
	s32 hash;      /* enum hash_algo of the program's digest, or negative: none that is believed */
	s32 path_len;  /* bytes, the NUL counted; 0: none */
	u64 is_new;    /* 1: the program has not mapped anything executable yet */
	u32 waits;     /* 1: a use of a file by this task waits for its digest */
	struct script looked_at; /* the file that execve(2) looked at, until a program has taken over */
	struct script script; /* that its program is an interpreter of, or an earlier program was */
	struct script next;   /* the same, from when the kernel has looked at it until the interpreter takes over */
	u8 digest[DIGEST_SIZE];
	u8 path[PROGRAM_PATH_SIZE];
};
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/*
 * What a program tells the kernel: `code` or 0. From 6.12 on the kernel's verifier wants to see that
 * it is no other number, so the compiler must not calculate it.
 */
static __always_inline int refuse(int denied, int code)
{
	if (!denied)
		return 0;
	asm volatile("" ::: "memory");
	return code;
}

/* The number of a mount namespace that the kernel never gives twice; 0 where it has none. */
static __always_inline u64 namespace_id(struct mnt_namespace *ns)
{
	struct mnt_namespace___6_18 *newer = (void *)ns;

	if (bpf_core_field_exists(newer->ns.ns_id))
		return BPF_CORE_READ(newer, ns.ns_id);
	if (bpf_core_field_exists(ns->seq))
		return READ(ns, seq);
	return 0;
}

static __always_inline struct mnt_namespace *namespace_of_current(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return task->nsproxy->mnt_ns; /* none in a task that exits */
}

static __always_inline u32 current_mntns(void)
{
	return namespace_of_current()->ns.inum;
}

static __always_inline u8 *ever_watched_slot(u32 inum)
{
	u32 slot = inum % EVER_WATCHED_MAX;

	return bpf_map_lookup_elem(&ever_watched, &slot);
}

/* Whether this task may have a mark: it has any storage of programs at all. */
static __always_inline int may_be_marked(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return !bpf_core_field_exists(task->bpf_storage) || task->bpf_storage;
}

/* Whether this task has no mark, and is in no namespace that would give it one. Most are, so this is asked
   first, and calls nothing. */
static __always_inline int is_nobodys(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u8 *ever;

	if (may_be_marked())
		return 0;
	ever = ever_watched_slot(task->nsproxy->mnt_ns->ns.inum); /* none in a task that exits: 0 */
	return ever && !*(volatile u8 *)ever;
}

/*
 * Whose `ns` is: the registration, or 0 for nobody's.
 *
 * Deleted map entries are reused at once, even under a reader. So the entry is looked up again
 * after it was read: if it still is this namespace's, what was read was too.
 *
 * A global function, as are others here: the kernel verifies each by itself, and not once for each of
 * the ways that lead to it.
 */
__noinline u64 owner_of(u64 namespace)
{
	struct mnt_namespace *ns = (struct mnt_namespace *)namespace;
	u32 inum = READ(ns, ns.inum);
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

static __always_inline struct registration *registered(u64 registration)
{
	return bpf_map_lookup_elem(&registrations, &registration);
}

static __always_inline void count_dropped(u64 registration)
{
	u32 zero = 0, mntns = current_mntns();
	struct registration *owner = registered(registration);
	struct totals *total = bpf_map_lookup_elem(&totals, &zero);

	if (owner) {
		if (owner->mntns != mntns)
			owner->dropped_in = mntns;
		__sync_fetch_and_add(&owner->dropped, 1);
	}
	if (total)
		__sync_fetch_and_add(&total->dropped, 1);
}

/* The mark of this task where it has one, or its namespace gives it one; 0: it is nobody's. */
static __always_inline struct mark *mark_of_current(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mark *mark;
	u64 owner;

	if (is_nobodys())
		return 0;
	mark = bpf_task_storage_get(&marks, task, 0, 0);
	/* The mark of a container that is watched no more says nothing. */
	if (mark && registered(mark->registration))
		return mark;
	owner = owner_of(address(namespace_of_current()));
	if (!owner)
		return 0;
	mark = bpf_task_storage_get(&marks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mark) {
		count_dropped(owner);
		return 0;
	}
	mark->registration = owner;
	mark->entered = 1;
	mark->hash = -1;
	mark->path_len = 0;
	return mark;
}

/* A child is whose its parent is, before it can do anything; without a mark it is not made. */
SEC("lsm/task_alloc")
int BPF_PROG(cima_task_alloc, struct task_struct *child, unsigned long flags)
{
	struct mark *mark = mark_of_current();

	if (!mark)
		return 0;
	mark = bpf_task_storage_get(&marks, child, mark, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mark)
		return -ENOMEM;
	/* It is the parent that opens it. */
	mark->waits = 0;
	__builtin_memset(&mark->looked_at, 0, sizeof(mark->looked_at));
	__builtin_memset(&mark->script, 0, sizeof(mark->script));
	__builtin_memset(&mark->next, 0, sizeof(mark->next));
	return 0;
}

/* The tasks that are there when the sensor is loaded: the loader reads this once. */
SEC("?iter/task")
int cima_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct mnt_namespace *ns;
	struct mark *mark;
	u64 owner;

	if (!task)
		return 0;
	ns = BPF_CORE_READ(task, nsproxy, mnt_ns);
	owner = ns ? owner_of((u64)ns) : 0;
	if (!owner || bpf_task_storage_get(&marks, task, 0, 0))
		return 0;
	mark = bpf_task_storage_get(&marks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mark)
		return 0;
	mark->registration = owner;
	mark->hash = -1;
	return 0;
}

#endif
