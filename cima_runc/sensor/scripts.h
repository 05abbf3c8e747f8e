/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Scripts: the kernel looks at one, and runs its interpreter, which opens it by its name: later, for a
 * process can be stopped, and perhaps more than once (Python's first look is for a zip file). So it is in use, as
 * if it were open, from then until the interpreter has opened it and has ended, or become another program. Who
 * ends without having opened it may have left that to another: then it stays in use.
 *
 * In a lower layer of an overlay that is counted of the overlay's inode, which is one container's, as are its
 * copies; and of the layer's, which is others' as well, and which nobody writes but by its handle.
 */
#ifndef CIMA_SCRIPTS_H
#define CIMA_SCRIPTS_H

/* A script is in use from now on, by one more. */
static __always_inline void await(u64 key, u64 registration, int is_lower)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &key);

	if (!written && !has_its_share(registration)) {
		/* Of a lower layer, or hashed before the sensor was loaded. */
		writes_of(key);
		add_user(key, registration, is_lower);
		written = bpf_map_lookup_elem(&writes, &key);
	}
	if (written)
		__sync_fetch_and_add(&written->awaited, 1);
	else
		count_dropped(registration);
}

static __always_inline void await_no_more(u64 key)
{
	struct writes *written = key ? bpf_map_lookup_elem(&writes, &key) : 0;

	if (written)
		__sync_fetch_and_add(&written->awaited, -1);
}

/* The interpreter of this script is another program now, or has ended. */
static __always_inline void end_script(struct script *script)
{
	if (script->opened) {
		await_no_more(script->seen);
		await_no_more(script->data);
	}
	__builtin_memset(script, 0, sizeof(*script));
}

/*
 * execve(2) comes to another file without a program having taken over since the last: that is for an
 * interpreter to read, by binfmt_script, by binfmt_misc, or by a shell that the kernel gave it back to.
 */
static __always_inline void come_to(struct linux_binprm *bprm)
{
	struct mark *mark = bpf_task_storage_get(&marks, bpf_get_current_task_btf(), 0, 0);
	u64 seen = address(bprm->file->f_inode), script, data;
	struct real real;

	if (!mark)
		return;
	script = mark->looked_at;
	data = mark->looked_at_data;
	find_real((struct inode *)seen, &real);
	mark->looked_at = real.is_lower ? seen : (u64)real.inode;
	mark->looked_at_data = real.is_lower ? (u64)real.inode : 0;
	if (!script || script == mark->next.seen)
		return;
	await(script, mark->registration, 0);
	if (data)
		await(data, mark->registration, 1);
	/* One that another script is read by stays in use. */
	mark->next.seen = script;
	mark->next.data = data;
}

/* A program has taken over: the interpreter of what was come to, or another. */
static __always_inline void take_over_script(struct mark *mark)
{
	mark->looked_at = 0;
	/* What has not opened it may be env(1): what that becomes will. */
	if (!mark->next.seen && !mark->script.opened)
		return;
	end_script(&mark->script);
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
	if (mark)
		end_script(&mark->script);
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
	if (mark && mark->script.seen == address(file->f_inode))
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
 * reads the copy. Only the overlay's own container is told, since others have the same layer. Of a copy that was
 * hashed as such, or is in use, written_to() says the same again, which is sent once. Returns whether that is to be
 * refused.
 */
__noinline int copied_up(u64 seen_inode, u64 dentry, u32 why)
{
	struct inode *seen = (struct inode *)seen_inode;
	struct mark *mark;
	u64 dev, owner = 0, *root;
	int denied;

	if (!is_in_use_there(seen_inode))
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
	note(owner, ABOUT(CHANGED, why, FILE_CHECK, denied), real_of(seen_inode), dentry);
	return denied;
}

#endif
