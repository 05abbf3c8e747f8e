/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Scripts: the kernel looks at one, and runs its interpreter, which opens it by its name: later, for a
 * process can be stopped, and perhaps never. Until then it is awaited, and in use as if it were open.
 *
 * In a lower layer of an overlay that is counted of the overlay's inode, which is one container's, as are
 * its copies: the layer is others' as well.
 */
#ifndef CIMA_SCRIPTS_H
#define CIMA_SCRIPTS_H

static __always_inline u64 awaited_as(struct inode *seen)
{
	struct real real;

	find_real(seen, &real);
	return real.is_lower ? (u64)seen : (u64)real.inode;
}

/*
 * execve(2) comes to another file without a program having taken over since the last: that is for an
 * interpreter to read, by binfmt_script, by binfmt_misc, or by a shell that the kernel gave it back to.
 */
static __always_inline void come_to(struct linux_binprm *bprm)
{
	struct mark *mark = bpf_task_storage_get(&marks, bpf_get_current_task_btf(), 0, 0);
	struct writes *written;
	u64 script;

	if (!mark)
		return;
	script = mark->looked_at;
	mark->looked_at = awaited_as((struct inode *)address(bprm->file->f_inode));
	if (!script || script == mark->script)
		return;
	written = bpf_map_lookup_elem(&writes, &script);
	if (!written) {
		/* Of a lower layer, and hashed before the sensor was loaded. */
		writes_of(script);
		add_user(script, mark->registration);
		written = bpf_map_lookup_elem(&writes, &script);
	}
	if (!written)
		return;
	/* One that this task had not opened either stays awaited. */
	__sync_fetch_and_add(&written->awaited, 1);
	mark->script = script;
}

/* A file is opened for reading: that of an overlay, and after that the one that holds the data. */
static __always_inline void opens(struct file *file)
{
	struct mark *mark;
	struct writes *written;
	u64 inode;

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
	if (!mark || !mark->script)
		return;
	inode = address(file->f_inode);
	if (inode != mark->script)
		return;
	mark->script = 0;
	written = bpf_map_lookup_elem(&writes, &inode);
	if (written)
		__sync_fetch_and_add(&written->awaited, -1);
}

/*
 * A file of an overlay's lower layer is about to be copied, to be written to: who awaits it will open
 * the copy. Only the overlay's own container is told, since others have the same layer. Returns whether
 * that is to be refused.
 */
__noinline int copied_up(u64 seen_inode, u64 dentry, u32 why)
{
	struct inode *seen = (struct inode *)seen_inode;
	struct mark *mark;
	struct real real;
	struct writes *written;
	u64 key, dev, owner = 0, *root;
	int denied;

	if (has_own_data(seen))
		return 0;
	find_real(seen, &real);
	if (!real.is_lower)
		return 0;
	key = (u64)real.inode;
	written = bpf_map_lookup_elem(&writes, &seen_inode);
	if (!written || written->awaited <= 0)
		return 0;
	mark = mark_of_current();
	if (mark) {
		owner = mark->registration;
	} else {
		dev = BPF_CORE_READ(seen, i_sb, s_dev);
		root = bpf_map_lookup_elem(&roots, &dev);
		if (root && registered(*root))
			owner = *root;
	}
	if (!owner)
		return 0;
	denied = mark && is_enforced(owner);
	note(owner, ABOUT(CHANGED, why, FILE_CHECK, denied), key, dentry);
	return denied;
}

#endif
