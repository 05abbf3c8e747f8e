/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Programs: what a task runs from now on, and with which rights it came. What the kernel runs for a
 * container outside of it.
 */
#ifndef CIMA_PROGRAMS_H
#define CIMA_PROGRAMS_H

/* Root file systems of containers: dev_t of an overlay -> registration. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REGISTRATIONS_MAX);
	__type(key, u64);
	__type(value, u64);
} roots SEC(".maps");

#include "scripts.h"

/*
 * A program of a container's root file system that is run by nobody of the container: the kernel was
 * told to (core_pattern, modprobe, release_agent, binfmt_misc), or somebody reached into it.
 */
static __always_inline struct mark *adopt(struct linux_binprm *bprm)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct inode *inode = bprm->file->f_inode;
	struct super_block *sb = inode->i_sb;
	struct mark *mark;
	u64 dev, *owner;

	if (sb->s_magic != OVERLAYFS)
		return 0;
	dev = sb->s_dev;
	owner = bpf_map_lookup_elem(&roots, &dev);
	if (!owner || !registered(*owner))
		return 0;
	note(*owner, ABOUT(HELPER, HELPER_RAN, BPRM_CHECK, 0), address(inode), address(bprm->file->f_path.dentry));
	mark = bpf_task_storage_get(&marks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mark) {
		count_dropped(*owner);
		return 0;
	}
	mark->registration = *owner;
	mark->entered = 0;
	mark->hash = -1;
	mark->path_len = 0;
	return mark;
}

/* Programs, scripts and interpreters, each as the kernel comes to it. */
SEC("lsm.s/bprm_check_security")
int BPF_PROG(cima_bprm_check, struct linux_binprm *bprm)
{
	struct mark *mark = mark_of_current();
	int denied;

	if (!mark)
		mark = adopt(bprm);
	denied = use(mark, bprm->file, BPRM_CHECK, 1);
	come_to(bprm);
	return refuse(denied, -EPERM);
}

/* Whether a process from outside has more rights than the container. */
static __always_inline void check_entry(u64 registration, struct linux_binprm *bprm)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct registration *owner = registered(registration);
	const struct cred *cred = BPF_CORE_READ(task, real_cred);
	int filtered = BPF_CORE_READ(task, seccomp.mode) != 0;
	struct dentry *dentry = bprm->file->f_path.dentry;
	u64 bounding = 0;

	if (!owner)
		return;
	bpf_probe_read_kernel(&bounding, sizeof(bounding),
			      (void *)cred + bpf_core_field_offset(struct cred, cap_bset));
	/* Before its first process there is nobody to compare with, only what its engine runs. */
	if (!(owner->flags & FIRST_SEEN)) {
		if (owner->pid && owner->pid != bpf_get_current_pid_tgid() >> 32)
			return;
		if (!(owner->flags & BOUNDING_KNOWN))
			owner->bounding = bounding;
		__sync_fetch_and_or(&owner->flags,
				    FIRST_SEEN | BOUNDING_KNOWN | (filtered ? SECCOMP_SEEN : 0));
		return;
	}
	if (bounding & ~owner->bounding)
		note(registration, ABOUT(ENTRY, CAPABILITIES, BPRM_CHECK, 0), address(bprm->file->f_inode), address(dentry));
	if (owner->flags & SECCOMP_SEEN && !filtered)
		note(registration, ABOUT(ENTRY, NO_SECCOMP, BPRM_CHECK, 0), address(bprm->file->f_inode), address(dentry));
}

/* A program has taken the task over. */
SEC("lsm.s/bprm_committed_creds")
int BPF_PROG(cima_committed, struct linux_binprm *bprm)
{
	struct mark *mark = mark_of_current();
	struct judged judged = {};
	struct scratch *s;
	u64 host;
	u32 bytes;

	if (!mark)
		return 0;
	catch_up(mark);
	if (mark->entered) {
		mark->entered = 0;
		check_entry(mark->registration, bprm);
	}
	/* Whoever makes a user namespace has all capabilities in it, and no more over the container than before. */
	host = BPF_CORE_READ(bpf_get_current_task_btf(), real_cred, user_ns, level) ? 0 : guest_of(mark);
	if (host)
		check_entry(host, bprm);
	take_over_script(mark);
	mark->is_new = 1;
	mark->hash = judge(address(bprm->file->f_inode), 0, &judged) ? -1 : judged.known.hash;
	__builtin_memcpy(mark->digest, judged.known.digest, DIGEST_SIZE);
	mark->path_len = 0;
	s = claim_scratch();
	if (!s)
		return 0;
	bytes = bpf_d_path(&bprm->file->f_path, (char *)s->report.path, PATH_SIZE);
	if (bytes <= PROGRAM_PATH_SIZE) { /* and no errno */
		__builtin_memset(s->report.path + bytes, 0, 8);
		__builtin_memcpy(mark->path, s->report.path, PROGRAM_PATH_SIZE);
		mark->path_hash = hash_path(s, bytes);
		mark->path_len = bytes;
	}
	release_scratch(s);
	return 0;
}

#endif
