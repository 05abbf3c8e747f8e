/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Who is told of what a task does: the container that it is of, and, where it does it in another container's
 * namespace, that one too. An engine that ran inside of a container, and made another, has left its mark there;
 * and who enters a container out of another one is seen by both.
 */
#ifndef CIMA_TOLD_H
#define CIMA_TOLD_H

/* In whose namespace a task with this mark is, where that is another container's; or 0. */
static __always_inline u64 guest_of(struct mark *mark)
{
	u64 host = owner_of(address(namespace_of_current()));

	return host == mark->registration ? 0 : host;
}

__noinline int note_both(u64 about, u64 inode, u64 dentry)
{
	struct mark *mark = mark_of_current();
	u64 host;

	if (!mark)
		return 0;
	note(mark->registration, about, inode, dentry);
	host = guest_of(mark);
	if (host)
		note(host, about, inode, dentry);
	return 0;
}

__noinline int is_enforced_here(void)
{
	struct mark *mark = mark_of_current();
	u64 host;

	if (!mark)
		return 0;
	if (is_enforced(mark->registration))
		return 1;
	host = guest_of(mark);
	return host && is_enforced(host);
}

/*
 * Tell of what is no use of a file. Returns whether it is refused: as `about` says, or where the image's files alone
 * may run.
 */
static __always_inline int tell(u64 about, u64 inode, u64 dentry)
{
	if (!mark_of_current())
		return 0;
	if (is_enforced_here())
		about |= 1;
	note_both(about, inode, dentry);
	return about & 1;
}

/* A change that some containers of these classes are not told of by name. */
__noinline int count_unattributed(u64 classes)
{
	u32 zero = 0;
	struct totals *total = bpf_map_lookup_elem(&totals, &zero);

	for (u32 i = 0; total && i < CLASSES; i++)
		if (classes & 1ULL << i)
			__sync_fetch_and_add(&total->unattributed[i], 1);
	return 0;
}

/* Tell the containers that use what is counted by this inode. */
__noinline int tell_users(u64 counted, u64 about, u64 inode, u64 dentry)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &counted);
	u64 user;

	if (!written)
		return 0;
	for (u32 i = 0; i < USERS_MAX; i++) {
		user = written->user[i];
		if (user && registered(user))
			note(user, about, inode, dentry);
	}
	if (written->more_users)
		count_unattributed(written->more_users);
	return 0;
}

/* Whether one of them, as far as they are known, may run its image's files alone. */
static __always_inline int is_enforced_by_user(const struct writes *written)
{
	int enforced = 0;

	for (u32 i = 0; i < USERS_MAX; i++)
		enforced |= written->user[i] && is_enforced(written->user[i]);
	return enforced;
}

#endif
