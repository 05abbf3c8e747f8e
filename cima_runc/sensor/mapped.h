/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Files that a container mapped shared and writable. When mapping and descriptor are gone, they can still
 * change, and nobody counts that: bytes behind the end of a file, in its last page, are none of what is
 * hashed, and run where that page is mapped executable; a read from a disk that was begun into the mapping
 * (O_DIRECT), or a copy from another process, lands when it is ready. For as long as such a file's inode
 * lives no digest of it is believed.
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

#endif
