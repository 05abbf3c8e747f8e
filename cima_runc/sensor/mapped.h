/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Files that a container could write past what is counted. When mapping and descriptor are gone, they can still
 * change: bytes behind the end of a file, in its last page, are none of what is hashed, and run where that page
 * is mapped executable; a read from a disk that was begun into a shared mapping (O_DIRECT), or a copy from
 * another process, lands when it is ready; and where page cache and disk differ, what is hashed is the one, and
 * what runs may be the other. For as long as such a file's inode lives no digest of it is believed.
 *
 * A container has room for its share of them, and for those that the sensor knows of for another reason. Those
 * beyond it are forgotten (forgotten.h).
 */
#ifndef CIMA_MAPPED_H
#define CIMA_MAPPED_H

/* The current task may write this file unseen from now on. */
__noinline int remember(u64 real)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &real);
	struct mark *mark = mark_of_current();
	struct registration *owner = mark ? registered(mark->registration) : 0;

	/* Nothing else can run, and of nothing else the sensor is told that it is gone. */
	if ((READ((struct inode *)real, i_mode) & S_IFMT) != S_IFREG)
		return 0;
	if (written && written->mapped)
		return 0;
	if (!written && (!owner || owner->mapped < (s64)settings.share))
		written = writes_of(real);
	if (!written) {
		forget(real);
		written = bpf_map_lookup_elem(&writes, &real);
	}
	if (written && owner && __sync_val_compare_and_swap(&written->mapped, 0, mark->registration) == 0)
		__sync_fetch_and_add(&owner->mapped, 1);
	return 0;
}

/* Whether a mapping of this file can be written to, now or later, and the file by it. */
static __always_inline int is_way_to_write(struct file *file, unsigned long flags)
{
	u64 type = flags & MAP_TYPE;

	return (type == MAP_SHARED || type == MAP_SHARED_VALIDATE) && READ(file, f_mode) & FMODE_WRITE &&
	       (READ(file, f_inode, i_mode) & S_IFMT) == S_IFREG &&
	       !(READ(file, f_inode, i_flags) & S_PRIVATE);
}

/*
 * What is written to an open file may pass by the page cache, which then can differ from the disk: a direct write
 * that fails in its midst leaves what was read meanwhile. Or somebody maps another file, and has this one's pages: a
 * FUSE server had it handed through.
 *
 * A global function: inlined, all that comes after it is verified once for each of the ways through it.
 */
__noinline int remember_if_past_the_cache(u64 address_of_file)
{
	struct file *file = (void *)address_of_file;
	struct backing_file *backing = (void *)file;
	int is_direct = READ(file, f_flags) & O_DIRECT;

	if (!is_direct && (!bpf_core_field_exists(backing->user_path) ||
			   BPF_CORE_READ(backing, user_path.dentry, d_sb, s_magic) != FUSE))
		return 0;
	return mark_of_current() ? remember((u64)READ_POINTER(file, f_inode)) : 0;
}

/* A descriptor becomes one for direct writes: an overlay's is handed on to the file that holds the data. */
SEC("lsm/file_fcntl")
int BPF_PROG(cima_file_fcntl, struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd == F_SETFL && arg & O_DIRECT && file->f_mode & FMODE_WRITE && mark_of_current())
		remember(real_of(address(file->f_inode)));
	return 0;
}

#endif
