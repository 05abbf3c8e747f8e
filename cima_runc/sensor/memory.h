/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Executable memory: what can run though no file was measured for it, by the kinds that SELinux has
 * given names to (security/selinux/hooks.c). Reported once for each program and kind.
 */
#ifndef CIMA_MEMORY_H
#define CIMA_MEMORY_H

static __always_inline int denies_memory(u64 registration)
{
	struct registration *owner = registration ? registered(registration) : 0;

	return owner && owner->flags & DENY_MEMORY;
}

__noinline int note_memory_of(u64 registration, struct mark *mark, u32 why, u32 denied)
{
	struct scratch *s = claim_scratch();
	u32 bytes;

	if (!s) {
		count_dropped(registration);
		return 0;
	}
	if (!mark) {
		release_scratch(s);
		return 0;
	}
	bytes = mark->path_len;
	begin_event(&s->report.event, registration, MEMORY, why, NONE);
	s->report.event.denied = denied;
	s->report.path_hash = mark->path_hash;
	if (mark->hash >= 0) {
		s->report.event.hash = mark->hash;
		__builtin_memcpy(s->report.event.digest, mark->digest, DIGEST_SIZE);
	}
	if (bytes && bytes <= PROGRAM_PATH_SIZE) {
		__builtin_memcpy(s->report.path, mark->path, PROGRAM_PATH_SIZE);
		s->report.event.path_len = bytes;
	}
	send(&s->report);
	release_scratch(s);
	return 0;
}

/* Report executable memory of the task with this mark; returns what the kernel is to do. */
static __always_inline int note_memory(struct mark *mark, u32 why)
{
	u64 host = guest_of(mark);
	int denied = denies_memory(mark->registration) || denies_memory(host);

	note_memory_of(mark->registration, mark, why, denied);
	if (host)
		note_memory_of(host, mark, why, denied);
	return refuse(denied, -EACCES);
}

/* Memory without a file, or of one that only the kernel has (shared memory, /dev/zero). */
static __always_inline int is_anonymous(struct file *file)
{
	struct inode *inode = file ? READ(file, f_inode) : 0;

	return !inode || (READ(inode, i_mode) & S_IFMT) != S_IFREG ||
	       READ(inode, i_flags) & S_PRIVATE;
}

static long look_at_stack(struct task_struct *task, struct vm_area_struct *vma, u32 *is_executable)
{
	*is_executable = (vma->vm_flags & VM_EXEC) != 0;
	return 0;
}

/*
 * A new program has its stack before the first of it is mapped executable, which is now. Returns whether
 * it is not to run.
 */
static __always_inline int has_executable_stack(struct mark *mark)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u32 is_executable = 0;

	if (!mark->is_new)
		return 0;
	mark->is_new = 0;
	if (bpf_find_vma(task, task->mm->arg_start, look_at_stack, &is_executable, 0)) {
		count_dropped(mark->registration);
		return 0;
	}
	return is_executable && note_memory(mark, EXECSTACK);
}

/*
 * Libraries, and whatever else is mapped executable.
 *
 * Up to Linux 6.12 the kernel's verifier holds `file` for never null, and removes a test for it: an
 * anonymous mapping would be an oops. So the argument is read as a number first.
 */
SEC("lsm.s/mmap_file")
int BPF_PROG(cima_mmap_file, struct file *file, unsigned long reqprot, unsigned long prot,
	     unsigned long flags)
{
	u64 raw = 0;
	struct mark *mark;
	int is_private = (flags & MAP_TYPE) != MAP_SHARED && (flags & MAP_TYPE) != MAP_SHARED_VALIDATE;

	prot |= reqprot;
	if ((is_private && !(prot & PROT_EXEC)) || is_nobodys())
		return 0;
	bpf_probe_read_kernel(&raw, sizeof(raw), ctx);
	mark = mark_of_current();
	if (raw && mark && is_way_to_write((struct file *)raw, flags))
		remember(real_of((u64)READ_POINTER((struct file *)raw, f_inode)));
	if (!(prot & PROT_EXEC))
		return 0;
	if (mark && has_executable_stack(mark))
		return -EACCES;
	if (is_anonymous((struct file *)raw))
		return mark ? note_memory(mark, EXECMEM) : 0;
	if (mark && is_private && prot & PROT_WRITE && note_memory(mark, EXECMEM))
		return -EACCES;
	return file ? use(mark, file, MMAP_CHECK, 1) : 0;
}

/* A mapping becomes executable. The address space is locked: nothing can be hashed, no path walked. */
SEC("lsm/file_mprotect")
int BPF_PROG(cima_file_mprotect, struct vm_area_struct *vma, unsigned long reqprot,
	     unsigned long prot)
{
	struct mark *mark;
	struct mm_struct *mm;
	struct file *file;
	struct inode *inode;
	u64 flags, start, end;
	int denied;

	prot |= reqprot;
	if (!(prot & PROT_EXEC))
		return 0;
	flags = BPF_CORE_READ(vma, vm_flags);
	file = BPF_CORE_READ(vma, vm_file);
	/*
	 * Executable already: what may become new is that it can be written, too. There need be no record of
	 * it yet: the vDSO is executable since the program began.
	 */
	if (flags & VM_EXEC && (!(prot & PROT_WRITE) || flags & (VM_WRITE | VM_SHARED)))
		return 0;
	mark = mark_of_current();
	if (!mark)
		return 0;
	if (is_anonymous(file)) {
		mm = BPF_CORE_READ(vma, vm_mm);
		start = BPF_CORE_READ(vma, vm_start);
		end = BPF_CORE_READ(vma, vm_end);
		if (start >= BPF_CORE_READ(mm, start_brk) && end <= BPF_CORE_READ(mm, brk))
			return note_memory(mark, EXECHEAP);
		if (start <= BPF_CORE_READ(mm, start_stack) && end >= BPF_CORE_READ(mm, start_stack))
			return note_memory(mark, EXECSTACK);
		return note_memory(mark, EXECMEM);
	}
	if (flags & VM_EXEC)
		return note_memory(mark, EXECMEM);
	if (!(flags & VM_SHARED)) {
		if (BPF_CORE_READ(vma, anon_vma) && note_memory(mark, EXECMOD))
			return -EACCES;
		if (prot & PROT_WRITE && note_memory(mark, EXECMEM))
			return -EACCES;
	}
	inode = READ_POINTER(file, f_inode);
	denied = tell(ABOUT(USE, MPROTECT, MMAP_CHECK, 0), (u64)inode, (u64)BPF_CORE_READ(file, f_path.dentry));
	return refuse(denied, -EACCES);
}

/* From here on what it may read it may execute: its heap grows executable without another call. */
static __always_inline int sets_persona(u64 persona)
{
	struct mark *mark;

	if ((u32)persona == 0xffffffff || !(persona & READ_IMPLIES_EXEC))
		return 0;
	mark = mark_of_current();
	if (mark && note_memory(mark, EXECMEM))
		bpf_send_signal(SIGKILL);
	return 0;
}

SEC("fentry/__x64_sys_personality")
int BPF_PROG(cima_personality, struct pt_regs___x86 *regs)
{
	return sets_persona(BPF_CORE_READ(regs, di));
}

/* As 32-bit programs call it. */
SEC("?fentry/__ia32_sys_personality")
int BPF_PROG(cima_personality_32, struct pt_regs___x86 *regs)
{
	return sets_persona(BPF_CORE_READ(regs, bx));
}

#endif
