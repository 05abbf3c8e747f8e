/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Mount namespaces that containers make: a process that enters one from outside is the container's.
 * Tasks of the container are known by their lineage, wherever they are.
 */
#ifndef CIMA_NAMESPACES_H
#define CIMA_NAMESPACES_H

/* What is made in a container's namespace is that one's, whosever the task is: of its own it has a mark. */
static __always_inline void is_born(struct mark *mark, struct mnt_namespace *ns)
{
	u64 host = guest_of(mark), registration = host ? host : mark->registration;
	struct watched entry = {.registration = registration, .namespace_id = namespace_id(ns), .nested = 1};
	struct registration *owner = registered(registration);
	u32 inum = BPF_CORE_READ(ns, ns.inum);
	u8 *ever = ever_watched_slot(inum);

	if (!owner)
		return;
	if (ever)
		*(volatile u8 *)ever = 1;
	/* Beyond its share, who enters from outside is not known for its own: others' are to find room. */
	if (!entry.namespace_id || owner->nested >= NESTED_SHARE || bpf_map_update_elem(&watched, &inum, &entry, BPF_ANY)) {
		count_dropped(registration);
		return;
	}
	__sync_fetch_and_add(&owner->nested, 1);
	/* Unwatched in the meantime: the loader may have looked for nested ones before this one. */
	if (!registered(registration))
		bpf_map_delete_elem(&watched, &inum);
}

/* Up to 6.17 all of them are born here. */
SEC("?fexit/copy_mnt_ns")
int BPF_PROG(cima_copy_mnt_ns, u64 flags, struct mnt_namespace *old, void *user_ns, void *new_fs,
	     struct mnt_namespace *new)
{
	struct mark *mark;

	if (new == old || (u64)new >= (u64)-MAX_ERRNO)
		return 0;
	mark = mark_of_current();
	if (mark)
		is_born(mark, new);
	return 0;
}

/* Later also in open_tree(2) and fsmount(2); here each namespace of any kind is given its number. */
SEC("?fexit/__ns_tree_gen_id")
int BPF_PROG(cima_ns_born, struct ns_common___6_18 *ns)
{
	struct mark *mark;

	if (BPF_CORE_READ(ns, ns_type) != CLONE_NEWNS || BPF_CORE_READ(ns, inum) == MNT_NS_ANON_INO)
		return 0;
	mark = mark_of_current();
	if (mark)
		is_born(mark, (void *)ns - bpf_core_field_offset(struct mnt_namespace___6_18, ns));
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
	owner = entry->nested ? registered(registration) : 0;
	if (owner)
		__sync_fetch_and_add(&owner->nested, -1);
	bpf_map_delete_elem(&watched, &inum);
	return 0;
}

#endif
