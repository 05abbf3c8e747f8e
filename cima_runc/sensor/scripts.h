/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Scripts: the kernel looks at one, and runs its interpreter, which opens it by its name: later, for a
 * process can be stopped, and perhaps more than once (Python's first look is for a zip file). So it is in use, as
 * if it were open, from then until it has been opened and the task has ended, whatever other programs that
 * becomes: what has opened it may be env(1), told to by LD_PRELOAD, before the interpreter runs. Who
 * ends without having opened it may have left that to another: then it stays in use.
 *
 * In a lower layer of an overlay that is counted of the overlay's inode, which is one container's, as are its
 * copies; and of the layer's, which is others' as well, and which nobody writes but by its handle.
 */
#ifndef CIMA_SCRIPTS_H
#define CIMA_SCRIPTS_H

/* A file that is open, as what is counted. Its entry is made here if it has none: later the inode may be gone. */
__noinline int count(struct counted *counted, u64 inode, u64 registration, u64 is_lower)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &inode);

	if (!counted)
		return 0;
	/* Of a lower layer, or not hashed yet. */
	if (!written && !has_its_share(registration))
		written = writes_of(inode);
	if (written)
		add_user(inode, registration, is_lower);
	counted->inode = inode;
	counted->born = written ? written->born : 0;
	return 0;
}

/* A script is in use from now on, by one more. */
static __always_inline void await(const struct counted *counted, u64 registration)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &counted->inode);

	if (!counted->born)
		count_dropped(registration);
	else if (written && written->born == counted->born)
		__sync_fetch_and_add(&written->awaited, 1);
	/* Else it is gone, and no name leads to it. */
}

static __always_inline void await_no_more(const struct counted *counted)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &counted->inode);

	if (written && written->born == counted->born)
		__sync_fetch_and_add(&written->awaited, -1);
}

static __always_inline int is_same(const struct counted *one, const struct counted *other)
{
	return one->inode == other->inode && one->born == other->born;
}

/*
 * execve(2) comes to another file without a program having taken over since the last: that is for an
 * interpreter to read, by binfmt_script, by binfmt_misc, or by a shell that the kernel gave it back to.
 */
static __always_inline void come_to(struct linux_binprm *bprm)
{
	struct mark *mark = bpf_task_storage_get(&marks, bpf_get_current_task_btf(), 0, 0);
	u64 seen = address(bprm->file->f_inode);
	struct real real;

	if (!mark)
		return;
	if (mark->looked_at.seen.inode && !is_same(&mark->looked_at.seen, &mark->next.seen)) {
		await(&mark->looked_at.seen, mark->registration);
		if (mark->looked_at.data.inode)
			await(&mark->looked_at.data, mark->registration);
		/* One that another script is read by stays in use. */
		mark->next = mark->looked_at;
	}
	find_real((struct inode *)seen, &real);
	count(&mark->looked_at.seen, real.is_lower ? seen : (u64)real.inode, mark->registration, 0);
	mark->looked_at.data.inode = 0;
	if (real.is_lower)
		count(&mark->looked_at.data, (u64)real.inode, mark->registration, 1);
}

/* A program has taken over: the interpreter of what was come to, or another. */
static __always_inline void take_over_script(struct mark *mark)
{
	__builtin_memset(&mark->looked_at, 0, sizeof(mark->looked_at));
	if (!mark->next.seen.inode)
		return;
	mark->script = mark->next;
	__builtin_memset(&mark->next, 0, sizeof(mark->next));
}

SEC("?fentry/exit_files")
int BPF_PROG(cima_exit_files, struct task_struct *task)
{
	struct mark *mark;

	if (!may_be_marked())
		return 0;
	mark = bpf_task_storage_get(&marks, task, 0, 0);
	if (!mark || !mark->script.opened)
		return 0;
	await_no_more(&mark->script.seen);
	await_no_more(&mark->script.data);
	__builtin_memset(&mark->script, 0, sizeof(mark->script));
	return 0;
}

/* A file is opened for reading: that of an overlay, and after that the one that holds the data. */
static __always_inline void opens(struct file *file)
{
	struct mark *mark;

	/* Who executes is marked here, where nothing sleeps: until Linux 6.2 there is no mark of any
	   task on a CPU on which one sleeps until there is memory for its own. */
	if (file->f_flags & FMODE_EXEC) {
		mark_of_current();
		return;
	}
	if (!may_be_marked())
		return;
	mark = bpf_task_storage_get(&marks, bpf_get_current_task_btf(), 0, 0);
	catch_up(mark);
	if (mark && mark->script.seen.inode == address(file->f_inode))
		mark->script.opened = 1;
}

/*
 * Whether a file that an overlay shows may be in use: awaited, or open for reading, after it was run, mapped or
 * measured. Who has it open reads on in the copy when it is copied up, and maps the file of the layer.
 */
static __always_inline int is_in_use_there(u64 seen)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &seen);

	if (written && written->awaited > 0)
		return 1;
	return READ((struct inode *)seen, i_readcount.counter) > 0 &&
	       (written || bpf_map_lookup_elem(&digests, &seen));
}

/*
 * A file of an overlay is about to be written to, and copied up before where it is of a lower layer: who uses it
 * reads the copy. Told are the container whose root the overlay is, whoever writes; who ran the file there, as far as
 * is known; and the writer. Not others that have the same layer. Of a copy that was hashed as such, or is in use,
 * written_to() says the same again, which is sent once where both are refused, or neither. Returns whether that is to
 * be refused.
 */
__noinline int copied_up(u64 seen_inode, u64 dentry, u32 why)
{
	struct inode *seen = (struct inode *)seen_inode;
	struct writes *written;
	struct mark *mark;
	u64 dev, *root, told[2] = {};
	int denied = 0;

	if (!is_in_use_there(seen_inode))
		return 0;
	dev = BPF_CORE_READ(seen, i_sb, s_dev);
	root = bpf_map_lookup_elem(&roots, &dev);
	if (root)
		told[0] = *root;
	mark = mark_of_current();
	if (mark)
		told[1] = mark->registration;
	written = bpf_map_lookup_elem(&writes, &seen_inode);
	if (mark)
		denied = is_enforced(told[0]) || is_enforced(told[1]) || (written && is_enforced_by_user(written));
	for (u32 i = 0; i < 2; i++)
		if (registered(told[i]))
			note(told[i], ABOUT(CHANGED, why, FILE_CHECK, denied), real_of(seen_inode), dentry);
	if (written)
		tell_users(seen_inode, ABOUT(CHANGED, why, FILE_CHECK, denied), real_of(seen_inode), dentry);
	return denied;
}

#endif
