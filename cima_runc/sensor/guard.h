/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Guard: what a container does to files in use, to other programs' memory, to the sensor, and to the
 * settings by which the kernel runs programs.
 */
#ifndef CIMA_GUARD_H
#define CIMA_GUARD_H

/*
 * A file is opened for writing, or truncated: whatever is known of its digest is not believed any more.
 * Where a container may be running what is in it, that container is told; where one of them may run its
 * image's files alone, it is refused to tasks of containers.
 */
static __always_inline int changed_by(u64 real, u64 dentry, u32 why, int may_refuse)
{
	struct writes *written = bpf_map_lookup_elem(&writes, &real);
	int denied;

	if (!written)
		return 0;
	__sync_fetch_and_add(&written->count, 1);
	if (!written->user[0] || !is_in_use((struct inode *)real, written))
		return 0;
	denied = may_refuse && mark_of_current() && is_enforced_by_user(written);
	tell_users(real, ABOUT(CHANGED, why, FILE_CHECK, denied), real, dentry);
	return refuse(denied, -ETXTBSY);
}

static __always_inline int written_to(u64 real, u64 dentry, u32 why)
{
	return changed_by(real, dentry, why, 1);
}

/* Text of up to 15 bytes, as two words. */
struct name {
	u64 word[2];
};
#define IS(given, literal)                                                                        \
	({                                                                                        \
		struct name wanted = {};                                                          \
		__builtin_memcpy(&wanted, literal, sizeof(literal) - 1);                          \
		(given).word[0] == wanted.word[0] && (given).word[1] == wanted.word[1];           \
	})

/* Files that are no data: what does it mean that a container opens them for writing? */
static __always_inline u32 meaning_of(u64 magic, struct dentry *dentry, u32 *kind)
{
	struct name name = {};

	*kind = GUARD;
	if (magic == TRACEFS || magic == DEBUGFS)
		return TRACING;
	bpf_probe_read_kernel_str(&name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	if (magic == PROC) {
		if (IS(name, "ftrace_enabled"))
			return TRACING;
		*kind = CHANGED;
		if (IS(name, "mem"))
			return PROCESS_MEMORY;
		*kind = HELPER;
		if (IS(name, "core_pattern") || IS(name, "modprobe") || IS(name, "hotplug") ||
		    IS(name, "poweroff_cmd") || IS(name, "hb_ctl_path"))
			return HELPER_SET;
	}
	*kind = HELPER;
	if (magic == CGROUP && IS(name, "release_agent"))
		return HELPER_SET;
	if (magic == SYSFS && (IS(name, "uevent_helper") || IS(name, "usermode_helper") ||
			       IS(name, "cache_getent") || IS(name, "cltrack_prog") || IS(name, "v86d")))
		return HELPER_SET;
	if (magic == BINFMT_MISC && IS(name, "register"))
		return HELPER_SET;
	*kind = GUARD;
	/* The kernel goes on with what a disk holds of another one's memory. */
	return magic == SYSFS && IS(name, "resume") ? KERNEL_CODE : 0;
}

/*
 * Devices below all files: disks, physical memory, an image of it that is to be gone on with (/dev/snapshot), and the
 * registers that say where the kernel begins. What is written there changes files and programs that nobody has open.
 * Whether a file system is on it, now or later, the kernel does not say here.
 */
static __always_inline int is_raw(struct inode *inode)
{
	u32 major = inode->i_rdev >> MINORBITS, minor = inode->i_rdev & ((1 << MINORBITS) - 1);

	if ((inode->i_mode & S_IFMT) == S_IFBLK)
		return 1;
	if ((inode->i_mode & S_IFMT) != S_IFCHR)
		return 0;
	return major == SCSI_GENERIC_MAJOR || major == MSR_MAJOR ||
	       (major == MISC_MAJOR && minor == SNAPSHOT_MINOR) ||
	       (major == MEM_MAJOR && (minor == MEM || minor == KMEM || minor == PORT));
}

/* `always`: it is refused on a host that only records, too. */
static __always_inline int reaches_for(u32 kind, u32 why, struct file *file, int always)
{
	u64 dentry = address(file->f_path.dentry);

	return refuse(tell(ABOUT(kind, why, FILE_CHECK, always), address(file->f_inode), dentry), -EPERM);
}

/*
 * kernel.ftrace_enabled detaches every program here, of which the kernel says nothing: all containers
 * would run unseen. It is no container's to write; where the host does, each has lost something.
 */
static __always_inline int reaches_for_the_switch(struct file *file)
{
	u32 zero = 0;
	struct totals *total = bpf_map_lookup_elem(&totals, &zero);

	if (mark_of_current())
		return reaches_for(GUARD, TRACING, file, 1);
	if (total)
		__sync_fetch_and_add(&total->switched, 1);
	return 0;
}

/* The file of an overlay comes here again as the one that holds the data. */
SEC("lsm/file_open")
int BPF_PROG(cima_file_open, struct file *file)
{
	struct inode *inode;
	u64 magic;
	u32 why, kind;

	if (!(file->f_mode & FMODE_WRITE)) {
		opens(file);
		return 0;
	}
	inode = file->f_inode;
	if ((inode->i_mode & S_IFMT) != S_IFREG)
		return is_raw(inode) ? reaches_for(GUARD, RAW_DEVICE, file, 0) : 0;
	magic = inode->i_sb->s_magic;
	if (magic == OVERLAYFS)
		return refuse(copied_up(address(inode), address(file->f_path.dentry), OPENED_WHILE_MAPPED), -ETXTBSY);
	if (magic != PROC && magic != TRACEFS && magic != DEBUGFS && magic != SYSFS && magic != CGROUP &&
	    magic != BINFMT_MISC) {
		if (file->f_flags & O_DIRECT || file->f_mode & FMODE_BACKING)
			remember_if_past_the_cache(address(file));
		return written_to(address(inode), address(file->f_path.dentry), OPENED_WHILE_MAPPED);
	}
	why = meaning_of(magic, file->f_path.dentry, &kind);
	if (!why)
		return 0;
	if (why == TRACING && magic == PROC)
		return reaches_for_the_switch(file);
	return reaches_for(kind, why, file, 0);
}

static __always_inline int changes_size(struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode;

	if (!(attr->ia_valid & ATTR_SIZE))
		return 0;
	inode = READ_POINTER(dentry, d_inode);
	if (READ(inode, i_sb, s_magic) == OVERLAYFS)
		return refuse(copied_up((u64)inode, address(dentry), TRUNCATED_WHILE_MAPPED), -ETXTBSY);
	return written_to((u64)inode, address(dentry), TRUNCATED_WHILE_MAPPED);
}

/* The loader takes the one that has as many arguments as this kernel's. */
SEC("?lsm/inode_setattr")
int BPF_PROG(cima_setattr_2, struct dentry *dentry, struct iattr *attr)
{
	return changes_size(dentry, attr);
}

SEC("?lsm/inode_setattr")
int BPF_PROG(cima_setattr_3, void *idmap, struct dentry *dentry, struct iattr *attr)
{
	return changes_size(dentry, attr);
}

/*
 * A file is given another one's blocks. To have them shared (FIDEDUPERANGE) the descriptor need not be open for writing,
 * only allowed to be, as the kernel has seen by now; it compares what is cached of both. A copy (FICLONE) has what is on
 * the disk, whoever makes it: behind the end of a file that could be written unseen that may be anything.
 */
SEC("?fentry/generic_remap_file_range_prep")
int BPF_PROG(cima_dedupe, struct file *from, s64 at, struct file *to, s64 at_to, s64 *size, unsigned int flags)
{
	u64 real = address(to->f_inode), origin = address(from->f_inode);
	struct writes *written;

	if (!(flags & REMAP_FILE_DEDUP)) {
		written = bpf_map_lookup_elem(&writes, &origin);
		if (writable_pages(origin, written)) {
			remember(real);
			written = bpf_map_lookup_elem(&writes, &real);
			if (written) /* also where the task is of no container */
				__sync_val_compare_and_swap(&written->mapped, 0, FORGOTTEN);
		}
		return 0;
	}
	if (!mark_of_current())
		return 0;
	remember(real);
	return changed_by(real, address(to->f_path.dentry), OPENED_WHILE_MAPPED, 0);
}

/*
 * What is cached of a file could not be written back, or is lost (memory that is broken): it is read from the disk
 * again, which holds something else. A later use sees that by itself (writer_of); who has it mapped is told. Also in
 * an interrupt: the current task has nothing to do with it.
 */
SEC("?fentry/__filemap_set_wb_err")
int BPF_PROG(cima_pages_lost, struct address_space *mapping, int err)
{
	return changed_by(address(mapping->host), 0, WAS_MAPPED, 0);
}

/* XFS_IOC_SWAPEXT and, from Linux 6.10 on, its successors, whatever the size of what they are given. */
static __always_inline int exchanges_blocks_of_xfs(struct file *file, unsigned int cmd)
{
	u32 number = cmd & 0xff;

	return (cmd >> 8 & 0xff) == 'X' && (number == 109 || (number >= 129 && number <= 131)) &&
	       READ(file, f_inode, i_sb, s_magic) == XFS;
}

/*
 * What no container needs, and is refused on a host that only records, too: ext4 exchanges blocks of two files and
 * leaves what is cached of the second, xfs gives one of them what the other has behind its end; a FUSE server hands a
 * file through, which others then map by another inode. Servers ask for that whether or not they may, and go on without:
 * it is no reach for anything.
 */
static __always_inline int passes_the_cache(struct file *file, unsigned int cmd)
{
	if (cmd == EXT4_IOC_MOVE_EXT || exchanges_blocks_of_xfs(file, cmd))
		return reaches_for(GUARD, RAW_DEVICE, file, 1);
	if ((cmd == LOOP_CHANGE_FD || cmd == LOOP_SET_STATUS || cmd == LOOP_SET_STATUS64) &&
	    file->f_inode->i_rdev >> MINORBITS == LOOP_MAJOR)
		return reaches_for(GUARD, RAW_DEVICE, file, 0);
	if (cmd == FUSE_DEV_IOC_BACKING_OPEN && file->f_inode->i_rdev == FUSE_DEVICE)
		return refuse(mark_of_current() != 0, -EPERM);
	return 0;
}

SEC("lsm/file_ioctl")
int BPF_PROG(cima_ioctl, struct file *file, unsigned int cmd)
{
	return passes_the_cache(file, cmd);
}

SEC("?lsm/file_ioctl_compat")
int BPF_PROG(cima_ioctl_compat, struct file *file, unsigned int cmd)
{
	return passes_the_cache(file, cmd);
}

/*
 * Another's memory: attaching, /proc/PID/mem, process_vm_writev(2). Who is told is whose it is, and in whose
 * namespace a task of another container does it.
 */
static __always_inline int reached_into(u64 registration, struct mark *by)
{
	u64 told = registration, host = by ? guest_of(by) : 0;
	int denied;

	if (!told && by)
		told = by->registration;
	denied = by && (is_enforced_here() || is_enforced(told));
	note(told, ABOUT(CHANGED, PTRACE, NONE, denied), 0, 0);
	if (host && host != told)
		note(host, ABOUT(CHANGED, PTRACE, NONE, denied), 0, 0);
	return refuse(denied, -EPERM);
}

/*
 * The kernel asks for the same rights where somebody only reads: another's memory (process_vm_readv), its stack in
 * the kernel (/proc/PID/stack, syscall), or takes a descriptor of it (pidfd_getfd), as debuggers' and monitors'
 * first looks do. By the number of the 64-bit system call; a 32-bit task's is another.
 */
static __always_inline int only_reads(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_struct___x86 *x86 = (void *)task;
	struct pt_regs___x86 *regs = (void *)bpf_task_pt_regs(task);

	/* A worker of io_uring has the number of a call that its maker was in. */
	if (task->flags & PF_IO_WORKER || BPF_CORE_READ(x86, thread_info.status) & TS_COMPAT)
		return 0;
	switch (BPF_CORE_READ(regs, orig_ax)) {
	case 0: /* read, pread64, readv, preadv, preadv2 */
	case 17:
	case 19:
	case 295:
	case 327:
	case 40: /* sendfile */
	case 275: /* splice */
	case 310: /* process_vm_readv */
	case 438: /* pidfd_getfd */
		return 1;
	}
	return 0;
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(cima_ptrace, struct task_struct *child, unsigned int mode)
{
	struct mark *mark, *theirs;
	u64 owner = 0;

	if (!(mode & PTRACE_MODE_ATTACH) || only_reads())
		return 0;
	mark = mark_of_current();
	theirs = bpf_task_storage_get(&marks, child, 0, 0);
	if (theirs && registered(theirs->registration))
		owner = theirs->registration;
	return owner || mark ? reached_into(owner, mark) : 0;
}

SEC("lsm/ptrace_traceme")
int BPF_PROG(cima_traceme, struct task_struct *parent)
{
	struct mark *mark = mark_of_current();

	return mark ? reached_into(mark->registration, mark) : 0;
}

/* Pages that a program has not touched yet are whatever the holder of a userfaultfd says. */
SEC("lsm/inode_init_security_anon")
int BPF_PROG(cima_anon_inode, struct inode *inode, const struct qstr *name)
{
	struct name text = {};

	bpf_probe_read_kernel_str(&text, sizeof(text), BPF_CORE_READ(name, name));
	if (!IS(text, "[userfaultfd]"))
		return 0;
	return refuse(tell(ABOUT(CHANGED, USERFAULTFD, NONE, 0), 0, 0), -EPERM);
}

/*
 * The sensor is no container's to reach: not by numbers of maps and programs, not by pins, and no
 * program of a container's may attach where the sensor's do. What they may have is programs of their
 * cgroups and sockets.
 */
#define BIT(n) (1ULL << (n))
#define CALLS_OF_OTHERS /* enum bpf_cmd */                                                        \
	(BIT(7) /* OBJ_GET */ | BIT(11) | BIT(12) | BIT(13) | BIT(14) /* by number */ |           \
	 BIT(17) /* RAW_TRACEPOINT_OPEN */ | BIT(19) | BIT(20) /* TASK_FD_QUERY */ | BIT(23) |    \
	 BIT(30) | BIT(31) | BIT(33) /* ITER_CREATE */)
#define PROGRAMS_THAT_TRACE /* enum bpf_prog_type */                                              \
	(BIT(2) /* KPROBE */ | BIT(5) /* TRACEPOINT */ | BIT(7) /* PERF_EVENT */ |                \
	 BIT(17) | BIT(24) /* RAW_TRACEPOINT */ | BIT(26) /* TRACING */ | BIT(27) /* STRUCT_OPS */ | \
	 BIT(28) /* EXT */ | BIT(29) /* LSM */)
enum { BPF_PROG_LOAD = 5 };

SEC("lsm/bpf")
int BPF_PROG(cima_bpf, int cmd, void *attr, unsigned int size)
{
	u32 type = 0;

	if ((u32)cmd > 63)
		return 0;
	if (cmd == BPF_PROG_LOAD) {
		bpf_probe_read_kernel(&type, sizeof(type), attr);
		if (type > 63 || !(PROGRAMS_THAT_TRACE & BIT(type)))
			return 0;
	} else if (!(CALLS_OF_OTHERS & BIT(cmd))) {
		return 0;
	}
	return refuse(tell(ABOUT(GUARD, BPF_CALL, NONE, 1), 0, 0), -EPERM);
}

/*
 * A probe has the instruction executed that was in the file when it was put there, whatever the file holds
 * later; perf_event_open(2) makes one without tracefs.
 */
static __always_inline int probes(struct inode *inode)
{
	if (tell(ABOUT(GUARD, TRACING, NONE, 0), address(inode), 0))
		bpf_send_signal(SIGKILL);
	return 0;
}

SEC("?fentry/uprobe_register")
int BPF_PROG(cima_uprobe, struct inode *inode)
{
	return probes(inode);
}

/* Up to Linux 6.11 one that counts who waits for it as well. */
SEC("?fentry/uprobe_register_refctr")
int BPF_PROG(cima_uprobe_counted, struct inode *inode)
{
	return probes(inode);
}

/* The kernel writes memory to the blocks of a file, below what is cached of it. */
static __always_inline int swaps(long result)
{
	if (!result)
		note_both(ABOUT(GUARD, RAW_DEVICE, NONE, 0), 0, 0);
	return 0;
}

SEC("?fexit/__x64_sys_swapon")
int BPF_PROG(cima_swapon, void *regs, long result)
{
	return swaps(result);
}

SEC("?fexit/__ia32_sys_swapon")
int BPF_PROG(cima_swapon_32, void *regs, long result)
{
	return swaps(result);
}

/* Code for the kernel itself: a module, or another kernel. It can do what it likes. */
static __always_inline int loads_into_kernel(u64 inode, u64 dentry)
{
	return refuse(tell(ABOUT(GUARD, KERNEL_CODE, NONE, 0), inode, dentry), -EPERM);
}

SEC("lsm/kernel_load_data")
int BPF_PROG(cima_load_data, u32 id)
{
	if (id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE) &&
	    id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_KEXEC_IMAGE))
		return 0;
	return loads_into_kernel(0, 0);
}

SEC("lsm/kernel_read_file")
int BPF_PROG(cima_read_file, struct file *file, u32 id)
{
	if (id != bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE) &&
	    id != bpf_core_enum_value(enum kernel_read_file_id, READING_KEXEC_IMAGE) &&
	    (!bpf_core_enum_value_exists(enum kernel_read_file_id, READING_MODULE_COMPRESSED) ||
	     id != bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE_COMPRESSED)))
		return 0;
	return loads_into_kernel(address(file->f_inode), address(file->f_path.dentry));
}

/* Nor are its pins: who removes one, or the file system that holds them, detaches it. */
static __always_inline int unpins(void)
{
	return refuse(tell(ABOUT(GUARD, BPF_CALL, NONE, 1), 0, 0), -EPERM);
}

SEC("lsm/inode_unlink")
int BPF_PROG(cima_unlink, struct inode *dir)
{
	return dir->i_sb->s_magic == BPF_FS ? unpins() : 0;
}

/* What has the new name is gone. */
SEC("lsm/inode_rename")
int BPF_PROG(cima_rename, struct inode *dir)
{
	return dir->i_sb->s_magic == BPF_FS ? unpins() : 0;
}

SEC("lsm/sb_umount")
int BPF_PROG(cima_umount, struct vfsmount *mnt)
{
	return mnt->mnt_sb->s_magic == BPF_FS ? unpins() : 0;
}

/* In these nothing is that the kernel does not count the writers of, or nothing that can run. */
static __always_inline int is_of_no_device(u64 magic)
{
	switch (magic) {
	case TMPFS:
	case RAMFS:
	case PROC:
	case SYSFS:
	case CGROUP:
	case CGROUP2:
	case DEVPTS:
	case MQUEUE:
	case BPF_FS:
	case SECURITYFS:
	case TRACEFS:
	case DEBUGFS:
		return 1;
	}
	return 0;
}

/*
 * The program that control groups of version 1 have run when one is empty is an option of their file system, too:
 * of mount(2), new or again, and of fsconfig(2).
 */
SEC("lsm/fs_context_parse_param")
int BPF_PROG(cima_mount_option, struct fs_context *fc, struct fs_parameter *param)
{
	struct name name = {}, key = {};

	bpf_probe_read_kernel_str(&name, sizeof(name), BPF_CORE_READ(fc, fs_type, name));
	bpf_probe_read_kernel_str(&key, sizeof(key), BPF_CORE_READ(param, key));
	if (!IS(name, "cgroup") || !IS(key, "release_agent"))
		return 0;
	return refuse(tell(ABOUT(HELPER, HELPER_SET, NONE, 0), 0, 0), -EPERM);
}

/* A superblock is remembered as a container's, or no more. */
static __always_inline int forget_mounted(u64 key)
{
	u64 *owner = bpf_map_lookup_elem(&mounted, &key);
	struct registration *who = owner && *owner ? registered(*owner) : 0;

	if (who)
		__sync_fetch_and_add(&who->mounted, -1);
	bpf_map_delete_elem(&mounted, &key);
	return 0;
}

/*
 * File systems that a container mounts: what it can write below them is seen by nobody. One that was there before
 * is not made anew: it may be the host's, with every container's files. Of what kind it is, is not known here yet;
 * one that is not remembered would be believed.
 */
SEC("lsm/sb_alloc_security")
int BPF_PROG(cima_sb_alloc, struct super_block *sb)
{
	struct mark *mark = mark_of_current();
	struct registration *owner = mark ? registered(mark->registration) : 0;
	u64 key = address(sb);

	if (!owner)
		return 0;
	if (owner->mounted >= (s64)(settings.share / 8) || bpf_map_update_elem(&mounted, &key, &mark->registration, BPF_ANY))
		return -ENOMEM;
	__sync_fetch_and_add(&owner->mounted, 1);
	return 0;
}

/* What it is, is known by now. */
SEC("lsm/sb_kern_mount")
int BPF_PROG(cima_mount, struct super_block *sb)
{
	u64 key = address(sb);

	if (mark_of_current() && is_of_no_device(sb->s_magic) && is_containers(&key))
		forget_mounted(key);
	return 0;
}

/*
 * One that is read-only now may have been written before, whoever changes that. It does not become a container's
 * by that: it may be the host's, with every container's files. The host is refused nothing, however many file
 * systems a container mounted.
 */
SEC("lsm/sb_remount")
int BPF_PROG(cima_remount, struct super_block *sb)
{
	u64 key = (u64)sb, nobody = 0;

	if (bpf_map_lookup_elem(&mounted, &key) || !bpf_map_update_elem(&mounted, &key, &nobody, BPF_NOEXIST))
		return 0;
	if (mark_of_current())
		return -ENOMEM;
	forget(address(sb));
	return 0;
}

SEC("lsm/sb_free_security")
int BPF_PROG(cima_sb_free, struct super_block *sb)
{
	return forget_mounted(address(sb));
}

#endif
