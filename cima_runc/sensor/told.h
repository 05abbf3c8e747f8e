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

#endif
