/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which digest is believed. Each time IMA hashes a file, its digest is kept here with what must not
 * change: the inode that holds the data, and how often that was opened for writing or truncated. It is
 * believed for as long as nothing could have changed the file since, and nothing can at this moment.
 *
 * Only files that were hashed have an entry, so that nobody else's writes can fill the maps: a writer
 * looks up, and counts. Keys are addresses of inodes; entries end with their inode.
 */
#ifndef CIMA_DIGESTS_H
#define CIMA_DIGESTS_H

/* Of the inode that IMA sees. */
struct known {
	u64 real;   /* the inode that holds the data */
	u64 writes; /* of that inode, when hashing began */
	u64 taken;  /* nanoseconds since boot: no two entries that are read in one go have the same */
	u64 owner;  /* the container that had it hashed; 0: nobody's task */
	u32 clean;  /* 1: no writer and no writable shared mapping when it began and when it ended */
	s32 hash;   /* enum hash_algo */
	u8 digest[DIGEST_SIZE];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, DIGESTS_MAX);
	__type(key, u64);
	__type(value, struct known);
} digests SEC(".maps");

enum { FORGOTTEN = -1 };

/* Of an inode that holds data which was hashed. */
struct writes {
	u64 count;
	u64 born;    /* nanoseconds since boot: another inode at this address has another */
	u64 lent;    /* 1: pages of it were lent to the kernel, which may write to them at any time */
	u64 mapped;  /* the container that mapped it shared and writable first (mapped.h); 0: none; FORGOTTEN */
	s64 awaited; /* interpreters that were started for it (scripts.h) */
	u64 user[USERS_MAX];
	u64 more_users; /* a bit for each class of those that found no room (class_of) */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, WRITES_MAX);
	__type(key, u64);
	__type(value, struct writes);
} writes SEC(".maps");

enum { NOT_COUNTED = -1 }; /* writes of an inode that has no entry; as unsigned, more than any count */

/* The file that the task has IMA hash now; `real` is 0 where there is none. */
struct begun {
	struct known known;
	u64 without_room; /* the inode whose digest this was, and found no room in `digests`; 0: none */
};
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct begun);
} begun SEC(".maps");

/* Superblocks that containers mounted, or mounted anew; 0: that somebody else mounted anew. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MOUNTED_MAX);
	__type(key, u64);
	__type(value, u64);
} mounted SEC(".maps");

/* The inode that holds the data, and whether a container whose root this is could write it. */
struct real {
	struct inode *inode;
	u32 is_lower; /* it is in a lower layer */
	u32 unknown;  /* the kernel does not say which it is */
};

/* The next inode below one of overlayfs. */
static __always_inline struct inode *below(struct inode *inode, struct real *real)
{
	struct ovl_inode *oi = (void *)((u64)inode - bpf_core_field_offset(struct ovl_inode, vfs_inode));
	struct ovl_inode___6_1 *older = (void *)oi;
	struct dentry *upper = BPF_CORE_READ(oi, __upperdentry);
	u64 has_data = 1ULL << bpf_core_enum_value(enum ovl_inode_flag, OVL_UPPERDATA);
	int metadata_only = 0;

	if (upper) {
		if ((READ(inode, i_mode) & S_IFMT) != S_IFREG ||
		    BPF_CORE_READ(oi, flags) & has_data) {
			real->is_lower = 0;
			return READ_POINTER(upper, d_inode);
		}
		metadata_only = 1;
	}
	real->is_lower = 1;
	if (bpf_core_field_exists(oi->oe)) {
		struct ovl_entry *oe = BPF_CORE_READ(oi, oe);
		struct ovl_path *path = (void *)((u64)oe + bpf_core_field_offset(struct ovl_entry, __lowerstack));
		u32 last = BPF_CORE_READ(oe, __numlower) - 1;

		/* The data is in the last layer that has the file: the only one, but for metacopy. */
		if (last > 500)
			return 0;
		path = (void *)((u64)path + last * bpf_core_type_size(struct ovl_path));
		return BPF_CORE_READ(path, dentry, d_inode);
	}
	if (!bpf_core_field_exists(older->lowerpath))
		return 0;
	if (bpf_core_field_exists(older->lowerdata)) {
		struct inode *data = BPF_CORE_READ(older, lowerdata);

		if (data && (READ(inode, i_mode) & S_IFMT) == S_IFREG)
			return data;
	}
	return metadata_only ? 0 : BPF_CORE_READ(older, lowerpath.dentry, d_inode);
}

/* Overlays can be stacked twice (FILESYSTEM_MAX_STACK_DEPTH). */
static __always_inline void find_real(struct inode *inode, struct real *real)
{
	real->is_lower = 0;
	for (int i = 0; i < 3; i++) {
		struct inode *next;

		if (READ(inode, i_sb, s_magic) != OVERLAYFS || !bpf_core_type_exists(struct ovl_inode))
			break;
		next = below(inode, real);
		if (!next)
			break;
		inode = next;
	}
	real->inode = inode;
	real->unknown = READ(inode, i_sb, s_magic) == OVERLAYFS;
}

/*
 * Files in memory that have no name in any file system that is mounted (memfd_create, shared
 * memory): the kernel does not count who has them open for writing. Sealed ones cannot be written.
 */
static __always_inline int is_memory_file(struct inode *real)
{
	struct shmem_inode_info *info;

	if (!(READ(real, i_sb, s_flags) & SB_KERNMOUNT))
		return 0;
	if (READ(real, i_sb, s_magic) != TMPFS)
		return 1;
	info = (void *)((u64)real - bpf_core_field_offset(struct shmem_inode_info, vfs_inode));
	return !(BPF_CORE_READ(info, seals) & F_SEAL_WRITE);
}

/* Who can write it at this moment. */
static __always_inline u32 writer_of(struct inode *real)
{
	if (is_memory_file(real))
		return MEMORY_FILE;
	if (READ(real, i_writecount.counter) > 0)
		return WRITER;
	if (READ(real, i_mapping, i_mmap_writable.counter) > 0)
		return SHARED_MAPPING;
	/* What is cached could not be written back: the disk holds something else. */
	return READ(real, i_mapping, wb_err) ? WAS_MAPPED : STABLE;
}

/* The address of the inode that holds the data of this one. */
__noinline u64 real_of(u64 seen)
{
	struct real real;

	find_real((struct inode *)seen, &real);
	return (u64)real.inode;
}

/*
 * Whether an open file of an overlay maps another inode than the one that is read, and hashed: it was opened before
 * the file was copied to the upper layer.
 */
__noinline u64 maps_another(u64 address_of_file)
{
	struct file *file = (void *)address_of_file, *below;
	struct inode *inode = READ_POINTER(file, f_inode);

	if (READ(inode, i_sb, s_magic) != OVERLAYFS || !bpf_core_type_exists(struct ovl_inode))
		return 0;
	below = BPF_CORE_READ(file, private_data);
	if (bpf_core_type_exists(struct ovl_file))
		below = BPF_CORE_READ((struct ovl_file *)below, realfile);
	return real_of((u64)BPF_CORE_READ(below, f_inode)) != real_of((u64)inode);
}

/* What is known of a file's digest, and of the file. */
struct judged {
	struct known known;
	u64 real; /* address of the inode that holds the data */
	u32 is_lower;
	u32 unknown;
	u32 writable; /* enum why: how it could be written at this moment; STABLE: in no way that is known */
	u32 is_user;  /* the container that is asked for was one of its users before all of this was looked at */
	u64 count;    /* how often it was written to, as far as that was counted */
};

/* How pages of it can be written to that nobody has open for writing, or mapped. */
static __always_inline u32 writable_pages(u64 real, const struct writes *written)
{
	if (!written)
		return was_forgotten(real) ? WAS_MAPPED : STABLE;
	if (written->lent)
		return PINNED_MEMORY;
	return written->mapped ? WAS_MAPPED : STABLE;
}

static __always_inline int is_user(const struct writes *written, u64 registration)
{
	for (u32 i = 0; i < USERS_MAX; i++)
		if (*(volatile u64 *)&written->user[i] == registration)
			return 1;
	return 0;
}

/*
 * Whether what is known of the digest of the inode `seen` can be believed, and what it is. In this
 * order: who writes is a writer first, counted second, and tells the users third.
 */
__noinline u32 judge(u64 seen, u64 user, struct judged *judged)
{
	struct known *known;
	struct writes *written;
	struct real real;
	u64 taken, real_key;
	u32 why;

	if (!judged)
		return HOOK_MISSING;
	find_real((struct inode *)seen, &real);
	real_key = (u64)real.inode;
	judged->real = real_key;
	judged->is_lower = real.is_lower;
	judged->unknown = real.unknown;
	written = bpf_map_lookup_elem(&writes, &real_key);
	judged->is_user = written && is_user(written, user);
	judged->count = written ? *(volatile u64 *)&written->count : 0;
	why = writer_of(real.inode);
	if (!why)
		why = writable_pages(real_key, written);
	judged->writable = why;
	known = bpf_map_lookup_elem(&digests, &seen);
	if (!known)
		return NO_DIGEST_KEPT;
	__builtin_memcpy(&judged->known, known, sizeof(*known));
	taken = judged->known.taken;
	/* Deleted entries are reused at once: is it the one that was read? */
	known = bpf_map_lookup_elem(&digests, &seen);
	if (!known || *(volatile u64 *)&known->taken != taken)
		return WRITTEN_SINCE;
	if (why)
		return why;
	if (real.unknown || settings.hooks_missing)
		return HOOK_MISSING;
	if (judged->known.real != real_key)
		return MOVED;
	if (!judged->known.clean)
		return WRITTEN_WHILE_HASHED;
	if (!written)
		return MAP_FULL;
	return *(volatile u64 *)&written->count == judged->known.writes ? STABLE : WRITTEN_SINCE;
}

static __always_inline int is_containers(const u64 *sb)
{
	u64 *owner = bpf_map_lookup_elem(&mounted, sb);

	return owner && *owner;
}

/* What is read comes neither from a device of this host's nor from its memory, or others write to the
   device too. A file system that is not known here is taken for one of those. */
static __always_inline int is_somewhere_else(struct inode *inode)
{
	switch (READ(inode, i_sb, s_magic)) {
	case FUSE: /* also on a device */
	case OCFS2:
	case GFS2:
		return 1;
	case TMPFS:
	case RAMFS:
	case HUGETLBFS:
	case ZFS:
	case OVERLAYFS: /* what holds the data is not known: judge() says so */
		return 0;
	}
	return !(READ(inode, i_sb, s_type, fs_flags) & FS_REQUIRES_DEV) &&
	       !(READ(inode, i_sb, s_flags) & SB_KERNMOUNT);
}

/* File systems of which no digest can be believed, whatever is counted. */
__noinline u32 unreliable(u64 seen_inode, u64 real_inode)
{
	struct inode *seen = (struct inode *)seen_inode, *real = (struct inode *)real_inode;
	u64 sb = (u64)READ_POINTER(seen, i_sb), real_sb = (u64)READ_POINTER(real, i_sb);

	if (READ(real, i_sb, s_iflags) & SB_I_IMA_UNVERIFIABLE_SIGNATURE)
		return SERVER_CAN_ANSWER_TWICE;
	if (is_somewhere_else(real))
		return SERVER_CAN_ANSWER_TWICE;
	if (is_containers(&sb))
		return READ(seen, i_sb, s_magic) == OVERLAYFS ? CONTAINER_MOUNTED_OVERLAY : CONTAINER_MOUNTED;
	return is_containers(&real_sb) ? CONTAINER_MOUNTED : STABLE;
}

/*
 * Files that the container cannot have written, so that IMA's digest is believed also where nothing is
 * known of it, whenever it was taken. What is known to have been written is not:
 * lower layers of its own root, and a file system that is read-only for as long as the sensor knows it.
 * What may be made read-only later, by a remount or by fs-verity, may have been written before.
 */
__noinline int is_beyond_reach(u64 seen, u64 real, u64 is_lower, u64 root_dev)
{
	struct inode *inode = (struct inode *)seen;
	u64 sb;

	if (is_lower && root_dev && READ(inode, i_sb, s_dev) == root_dev)
		return 1;
	inode = (struct inode *)real;
	sb = (u64)READ_POINTER(inode, i_sb);
	return READ(inode, i_sb, s_flags) & SB_RDONLY && !bpf_map_lookup_elem(&mounted, &sb) &&
	       !was_forgotten(sb);
}

static __always_inline void count_full(void)
{
	u32 zero = 0;
	struct totals *total = bpf_map_lookup_elem(&totals, &zero);

	if (total)
		__sync_fetch_and_add(&total->full, 1);
}

/* Then a digest that is not kept need not be older than the sensor. */
static __always_inline int some_found_no_room(void)
{
	u32 zero = 0;
	struct totals *total = bpf_map_lookup_elem(&totals, &zero);

	return total && *(volatile u64 *)&total->full;
}

/*
 * The writes of an inode that holds data, counted from now on; 0: there is no room. One that may have been
 * forgotten is so from its first moment; and who forgets it just now looks for it after that.
 */
static __always_inline struct writes *writes_of(u64 key)
{
	struct writes none = {}, *written = bpf_map_lookup_elem(&writes, &key);

	if (written)
		return written;
	none.born = bpf_ktime_get_ns();
	none.mapped = was_forgotten(key) ? FORGOTTEN : 0;
	bpf_map_update_elem(&writes, &key, &none, BPF_NOEXIST);
	written = bpf_map_lookup_elem(&writes, &key);
	if (!written)
		count_full();
	else if (was_forgotten(key))
		__sync_val_compare_and_swap(&written->mapped, 0, FORGOTTEN);
	return written;
}

/*
 * Digests that were taken for containers beyond their share, of files that they can only read: others who share those
 * would not believe them. As many as one container's.
 */
s64 beyond_share = 0;
enum { OF_ALL = -1 }; /* their owner */

/* An entry of `digests` begins or ends. No container has room for more than its share. */
static __always_inline void count_digest(u64 owner, s64 one)
{
	struct registration *who = owner ? registered(owner) : 0;

	if (owner == (u64)OF_ALL)
		__sync_fetch_and_add(&beyond_share, one);
	if (who)
		__sync_fetch_and_add(&who->digests, one);
}

static __always_inline void forget_digest(u64 key)
{
	struct known *known = bpf_map_lookup_elem(&digests, &key);

	if (!known)
		return;
	count_digest(known->owner, -1);
	bpf_map_delete_elem(&digests, &key);
}

static __always_inline int has_its_share(u64 owner)
{
	struct registration *who = owner ? registered(owner) : 0;

	return who && who->digests >= (s64)settings.share;
}

/* IMA begins to hash a file, unless it has kept the digest, and only returns that. */
SEC("fentry/ima_collect_measurement")
int BPF_PROG(cima_collect_begins, void *iint, struct file *file)
{
	struct inode *seen = (struct inode *)address(file->f_inode);
	struct task_struct *task = bpf_get_current_task_btf();
	struct mark *mark = bpf_task_storage_get(&marks, task, 0, 0);
	u64 flags = IMA_COLLECTED, key, owner = mark ? mark->registration : 0;
	struct begun *begins;
	struct writes *written;
	struct real real;

	if (bpf_core_type_exists(struct integrity_iint_cache))
		flags = BPF_CORE_READ((struct integrity_iint_cache *)iint, flags);
	else if (bpf_core_type_exists(struct ima_iint_cache))
		flags = BPF_CORE_READ((struct ima_iint_cache *)iint, flags);
	if (flags & IMA_COLLECTED)
		return 0;
	begins = bpf_task_storage_get(&begun, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!begins)
		return 0;
	begins->known.real = 0;
	begins->without_room = 0;
	if (has_its_share(owner)) {
		owner = OF_ALL;
		if (!(BPF_CORE_READ(file, f_path.mnt, mnt_flags) & MNT_READONLY) || beyond_share >= (s64)settings.share) {
			count_full();
			return 0;
		}
	}
	find_real(seen, &real);
	key = (u64)real.inode;
	written = writes_of(key);
	begins->known.writes = written ? *(volatile u64 *)&written->count : NOT_COUNTED;
	begins->known.owner = owner;
	begins->known.clean = !writer_of(real.inode);
	begins->known.real = key;
	return 0;
}

SEC("fexit/ima_collect_measurement")
int BPF_PROG(cima_collect_ends, void *iint, struct file *file, void *buf, s64 size, u32 algo,
	     void *modsig, int ret)
{
	struct inode *seen = (struct inode *)address(file->f_inode);
	struct task_struct *task = bpf_get_current_task_btf();
	u64 key = (u64)seen;
	struct begun *begins = bpf_task_storage_get(&begun, task, 0, 0);
	struct known known;
	struct ima_digest_data *digest = 0;
	struct real real;
	u8 head[2] = {};
	u32 length;

	if (!begins || !begins->known.real)
		return 0;
	known = begins->known;
	begins->known.real = 0;
	/* Who has no mark has no storage at all again, and pays for none (is_nobodys). */
	if (!bpf_task_storage_get(&marks, task, 0, 0)) {
		bpf_task_storage_delete(&begun, task);
		begins = 0;
	}
	if (bpf_core_type_exists(struct integrity_iint_cache))
		digest = BPF_CORE_READ((struct integrity_iint_cache *)iint, ima_hash);
	else if (bpf_core_type_exists(struct ima_iint_cache))
		digest = BPF_CORE_READ((struct ima_iint_cache *)iint, ima_hash);
	/* algo, length, two bytes of what EVM wants, digest[] */
	if (ret || !digest || bpf_probe_read_kernel(head, sizeof(head), digest) || head[1] > DIGEST_SIZE)
		goto unknown;
	known.hash = head[0];
	length = head[1];
	if (length > DIGEST_SIZE)
		goto unknown;
	if (bpf_probe_read_kernel(known.digest, length, (void *)digest + 4))
		goto unknown;
	find_real(seen, &real);
	if (writer_of(real.inode) || known.real != (u64)real.inode)
		known.clean = 0;
	known.taken = bpf_ktime_get_ns();
	forget_digest(key);
	if (bpf_map_update_elem(&digests, &key, &known, BPF_ANY)) {
		count_full();
		if (begins) {
			begins->known = known;
			begins->known.real = 0;
			begins->without_room = key;
		}
	} else {
		count_digest(known.owner, 1);
	}
	return 0;
unknown:
	forget_digest(key);
	return 0;
}

/*
 * Of a file that more containers use than are kept, one bit says which of them it may be: so that a change
 * is not counted against all that use any such file. tables.py counts in the same way.
 */
static __always_inline u32 class_of(u64 registration)
{
	u32 class = scattered(registration) & (CLASSES - 1); /* a mask: the kernel's verifier sees where it ends */

	return class == LAYERS ? 0 : class;
}

/*
 * A container uses a file: it is told should that change under it. A file of a lower layer is in a class by itself:
 * others change files that many use, and are in many classes by being started again, but nobody changes a layer.
 */
__noinline int add_user(u64 real, u64 registration, u64 is_lower)
{
	u32 zero = 0, class = is_lower ? LAYERS : class_of(registration);
	u64 user;
	struct writes *written = bpf_map_lookup_elem(&writes, &real);
	struct registration *owner;
	struct totals *total;

	if (!written)
		return 0;
	for (u32 i = 0; i < USERS_MAX; i++) {
		user = *(volatile u64 *)&written->user[i];
		if (user == registration)
			return 0;
		if (user && registered(user))
			continue;
		if (__sync_val_compare_and_swap(&written->user[i], user, registration) == user)
			return 0;
	}
	owner = registered(registration);
	total = bpf_map_lookup_elem(&totals, &zero);
	if (!owner || !total)
		return 0;
	/* Each execution comes here: what is there already is only read. */
	if (!(*(volatile u64 *)&written->more_users & 1ULL << class))
		__sync_fetch_and_or(&written->more_users, 1ULL << class);
	if (is_lower && !(owner->flags & CROWDED_BELOW)) {
		owner->crowded_below = total->unattributed[LAYERS];
		__sync_fetch_and_or(&owner->flags, CROWDED_BELOW);
	} else if (!is_lower && !(owner->flags & CROWDED)) {
		owner->crowded = total->unattributed[class];
		__sync_fetch_and_or(&owner->flags, CROWDED);
	}
	return 0;
}

/*
 * Whether somebody may be running, or reading, what is in it now. Who executes or maps a file has it
 * open; the interpreter of a script opens it when it likes.
 */
static __always_inline int is_in_use(struct inode *real, const struct writes *written)
{
	return READ(real, i_mapping, i_mmap.rb_root.rb_node) ||
	       READ(real, i_readcount.counter) > 0 || written->awaited > 0;
}

SEC("lsm/inode_free_security")
int BPF_PROG(cima_inode_free, struct inode *inode)
{
	u64 key = (u64)inode;
	struct writes *written;
	struct registration *owner;

	if ((inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	forget_digest(key);
	written = bpf_map_lookup_elem(&writes, &key);
	if (!written)
		return 0;
	owner = written->mapped ? registered(written->mapped) : 0;
	if (owner)
		__sync_fetch_and_add(&owner->mapped, -1);
	bpf_map_delete_elem(&writes, &key);
	return 0;
}

#endif
