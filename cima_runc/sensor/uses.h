/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Uses of files: each program, script, interpreter and library as the kernel comes to it, and what is
 * read where its name is one of the settings'.
 *
 * IMA looks at a file just after the programs here. Where it has not hashed the file yet, and nothing
 * is to be refused, the use is kept until it has (`pending`): a file is not hashed twice.
 */
#ifndef CIMA_USES_H
#define CIMA_USES_H

/* Uses that wait now, of all containers: those of tasks that ended in the midst are never taken off. */
volatile u64 waiting_uses = 0;

/* Keep room for an event until IMA has looked at the file; 0: there is none, or not for this container. */
static __always_inline int wait_for_ima(struct registration *owner)
{
	u64 task = bpf_get_current_pid_tgid();
	struct scratch *s;
	int kept;

	if (!owner || owner->waiting >= PENDING_SHARE)
		return 0;
	s = claim_scratch();
	if (!s)
		return 0;
	s->report.seen = 0;
	kept = !bpf_map_update_elem(&pending, &task, &s->report, BPF_ANY);
	release_scratch(s);
	return kept;
}

/* It is not used: it is not counted to a container's share either. */
static __always_inline void give_room_back(void)
{
	u64 task = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&pending, &task);
}

/*
 * Whether what was judged is what the use began with. The task may have let go of that long ago, where
 * the kernel skipped the program that should have sent the use: the file may have been written to and
 * hashed again since, or be gone and another one be at its address.
 */
static __always_inline int is_of_use(const struct report *r)
{
	u64 real = real_of(r->seen);
	struct inode *inode = (struct inode *)real;

	return (r->judged.known.writes == (u64)NOT_COUNTED || r->judged.known.writes <= r->writes) && real == r->real &&
	       READ(inode, i_ino) == r->real_ino &&
	       READ(inode, i_generation) == r->real_generation;
}

/* What is waited for is in that room. */
static __always_inline void begin_to_wait(struct registration *owner, struct mark *mark, struct scratch *s, u64 seen)
{
	u64 task = bpf_get_current_pid_tgid();
	struct report *r = bpf_map_lookup_elem(&pending, &task);
	struct inode *holder;
	struct writes *written;
	u64 real;

	s->report.seen = seen;
	real = real_of(seen);
	holder = (struct inode *)real;
	s->report.real = real;
	s->report.real_ino = READ(holder, i_ino);
	s->report.real_generation = READ(holder, i_generation);
	written = bpf_map_lookup_elem(&writes, &real);
	s->report.writes = written ? *(volatile u64 *)&written->count : 0;
	if (!owner || !r || bpf_probe_read_kernel(r, sizeof(*r), &s->report)) {
		count_dropped(s->report.event.registration);
		give_room_back();
		return;
	}
	__sync_fetch_and_add(&owner->waiting, 1);
	__sync_fetch_and_add(&waiting_uses, 1);
	mark->waits = 1;
}

/*
 * The digest that a use waited for, or the count of writes, found no room: others had taken it. The task that had the
 * digest taken still has it, and what its container cannot have written is believed all the same.
 */
static __always_inline u32 judge_without_room(struct report *r, struct task_struct *task, u32 why)
{
	struct begun *taken = bpf_task_storage_get(&begun, task, 0, 0);
	struct registration *owner = registered(r->event.registration);
	struct writes *written;
	u64 real = r->judged.real;

	if (why == NO_DIGEST_KEPT) {
		if (!taken || taken->without_room != r->seen)
			return NO_DIGEST_KEPT;
		taken->without_room = 0;
		r->judged.known = taken->known;
		r->judged.known.real = real;
	}
	if (r->judged.writable)
		return r->judged.writable;
	if (!r->judged.known.clean)
		return WRITTEN_WHILE_HASHED;
	written = bpf_map_lookup_elem(&writes, &real);
	if (written && *(volatile u64 *)&written->count != r->judged.known.writes)
		return WRITTEN_SINCE;
	if (!r->judged.unknown && is_beyond_reach(r->seen, real, r->judged.is_lower, owner ? owner->root_dev : 0))
		return STABLE;
	return MAP_FULL;
}

/* IMA has looked at the file that the task waits for. */
__noinline int complete(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u64 key = bpf_get_current_pid_tgid();
	struct report *r = bpf_map_lookup_elem(&pending, &key);
	struct mark *mark = bpf_task_storage_get(&marks, task, 0, 0);
	struct registration *owner;
	struct real real;
	u32 why;

	if (mark)
		mark->waits = 0;
	if (!r)
		return 0;
	if (!r->seen) { /* it was kept, and not used */
		bpf_map_delete_elem(&pending, &key);
		return 0;
	}
	__builtin_memset(&r->judged, 0, sizeof(r->judged));
	/* First: who opens it for writing after that has told this container, who did before is seen. */
	find_real((struct inode *)r->seen, &real);
	add_user(r->real, r->event.registration, real.is_lower);
	why = judge(r->seen, 0, &r->judged);
	if (why == NO_DIGEST_KEPT || why == MAP_FULL)
		why = judge_without_room(r, task, why);
	if (why != NO_DIGEST_KEPT && !is_of_use(r)) {
		why = WRITTEN_SINCE;
	} else if (why != NO_DIGEST_KEPT) {
		r->event.hash = r->judged.known.hash;
		__builtin_memcpy(r->event.digest, r->judged.known.digest, DIGEST_SIZE);
	}
	if (!r->event.why) /* what is wrong with its file system */
		r->event.why = why;
	send(r);
	owner = registered(r->event.registration);
	if (owner)
		__sync_fetch_and_add(&owner->waiting, -1);
	__sync_fetch_and_add(&waiting_uses, -1);
	bpf_map_delete_elem(&pending, &key);
	return 0;
}

/*
 * The kernel skips a program while another task, which it has preempted, is in it on the same CPU. It
 * does not skip those of the LSM: the next that this task comes to makes up for it.
 */
static __always_inline void catch_up(struct mark *mark)
{
	if (mark && mark->waits)
		complete();
}

/* Nearly always nothing waits for anything. */
static __always_inline int complete_if_any(void)
{
	if (waiting_uses && may_be_marked())
		complete();
	return 0;
}

SEC("fexit/ima_bprm_check")
int BPF_PROG(cima_ima_bprm, void *bprm)
{
	return complete_if_any();
}

SEC("fexit/ima_file_mmap")
int BPF_PROG(cima_ima_mmap, void *file)
{
	return complete_if_any();
}

static __always_inline int use_by(u64 registration, struct mark *mark, struct file *file, u32 func, int late)
{
	struct registration *owner = registered(registration);
	struct inode *inode = file->f_inode;
	u64 seen = address(inode);
	u64 root_dev = owner ? owner->root_dev : 0;
	u32 why, now, again, named, had_digest, bytes;
	struct judged judged = {};
	struct scratch *s;
	int denied, waits = 0;
	s32 hash;

	why = now = judge(seen, registration, &judged);
	named = unreliable(seen, judged.real);
	if (!named && func == MMAP_CHECK && maps_another(address(file)))
		named = MOVED;
	hash = judged.known.hash;
	had_digest = inode->i_flags & S_IMA;
	if (settings.largest && (u64)inode->i_size > settings.largest) {
		why = TOO_LARGE;
		hash = -EFBIG;
		__builtin_memset(judged.known.digest, 0, DIGEST_SIZE);
	} else if (why) {
		/* Where IMA has a digest from before the sensor, it takes none. */
		waits = late && settings.late && !is_enforced(registration) && why != MEMORY_FILE &&
			(why != NO_DIGEST_KEPT || !had_digest) && wait_for_ima(owner);
		if (!waits) {
			hash = bpf_ima_file_hash(file, judged.known.digest, DIGEST_SIZE);
			/* What that took is known by now; what it had kept says nothing new. */
			now = judge(seen, registration, &judged);
			if (!now) {
				why = STABLE;
				hash = judged.known.hash;
			} else if (hash >= 0 && !judged.writable && !judged.unknown && !judged.count &&
				   (now == NO_DIGEST_KEPT || now == MAP_FULL || now == HOOK_MISSING) &&
				   /* Whose share is full has no writes counted of what is hashed for it. */
				   !has_its_share(registration) &&
				   is_beyond_reach(seen, judged.real, judged.is_lower, root_dev)) {
				why = STABLE;
			} else if (now != NO_DIGEST_KEPT) {
				why = now;
			} else if (hash >= 0) {
				why = had_digest && !some_found_no_room() ? OLDER_THAN_SENSOR : MAP_FULL;
			}
		}
	}
	if (named && why != TOO_LARGE)
		why = named;
	denied = !waits && (why == TOO_LARGE || !is_allowed(registration, why, hash, judged.known.digest));
	/* One of its users is told of whatever comes after it was judged. */
	if (!waits && !denied && (now || !judged.is_user)) {
		add_user(judged.real, registration, judged.is_lower);
		/* Who opened it for writing before that has told nobody. */
		again = why ? now : judge(seen, registration, &judged);
		if (!again)
			hash = judged.known.hash;
		if (again != now)
			why = again;
		denied = !is_allowed(registration, why, hash, judged.known.digest);
	}

	s = claim_scratch();
	if (!s) {
		count_dropped(registration);
		if (waits)
			give_room_back();
		return refuse(denied, -EPERM);
	}
	begin_event(&s->report.event, registration, USE, waits ? named : why, func);
	s->report.event.path_len = bpf_d_path(&file->f_path, (char *)s->report.path, PATH_SIZE);
	bytes = s->report.event.path_len;
	if (bytes > PATH_SIZE) /* an errno */
		bytes = 0;
	__builtin_memset(s->report.path + bytes, 0, 8);
	s->report.path_hash = hash_path(s, bytes);
	s->report.event.ino = inode->i_ino;
	s->report.event.dev = inode->i_sb->s_dev;
	s->report.event.denied = denied;
	if (waits) {
		stamp(&s->report.event);
		begin_to_wait(owner, mark, s, seen);
	} else {
		s->report.event.hash = hash;
		__builtin_memcpy(s->report.event.digest, judged.known.digest, DIGEST_SIZE);
		send(&s->report);
	}
	release_scratch(s);
	return refuse(denied, -EPERM);
}

/*
 * Returns what the kernel is to do with a task of this mark, or none: 0, or -EPERM where the file may not run
 * in the container. A task of one container in another's namespace is both's.
 */
static __always_inline int use(struct mark *mark, struct file *file, u32 func, int late)
{
	u64 who[2] = {};
	int denied = 0;

	if (!mark) {
		if (is_nobodys())
			return 0;
		/* A container's, where there is no room for a mark: it is counted as lost. */
		who[0] = owner_of(address(namespace_of_current()));
		return refuse(who[0] && is_enforced(who[0]), -EPERM);
	}
	catch_up(mark);
	who[0] = mark->registration;
	who[1] = owner_of(address(namespace_of_current()));
	if (who[1] == who[0])
		who[1] = 0;
	for (u32 i = 0; i < 2; i++) {
		u64 registration = i ? who[1] : who[0];

		if (registration && use_by(registration, mark, file, func, late && !who[1]))
			denied = 1;
	}
	return refuse(denied, -EPERM);
}

static __always_inline int matches(const volatile struct name_pattern *pattern, const u8 *name,
				   u32 len)
{
	u32 size = pattern->size, rest;
	u8 text[NAME_PATTERN_SIZE + 3] = {};

	if (size > NAME_PATTERN_SIZE || size > len)
		return 0;
	rest = len - size;
	if (pattern->at_start && pattern->at_end && rest)
		return 0;
	if (bpf_probe_read_kernel(text, size, name + (pattern->at_start ? 0 : rest)))
		return 0;
	for (u32 i = 0; i < NAME_PATTERN_SIZE; i++)
		if (i < size && text[i] != pattern->text[i])
			return 0;
	return 1;
}

/* Whether one of the settings' patterns is that of this name. */
__noinline int is_named(u64 name, u32 len)
{
	for (u32 i = 0; i < NAME_PATTERNS_MAX; i++) {
		if (i >= settings.patterns)
			break;
		if (matches(&settings.pattern[i], (const u8 *)name, len))
			return 1;
	}
	return 0;
}

/*
 * What an interpreter reads, where it has the name of a script. When a file is opened to be executed
 * that is not reading.
 */
static __always_inline int read_by_name(struct file *file)
{
	struct mark *mark;

	if (!(file->f_mode & FMODE_READ) || (file->f_flags & FMODE_EXEC) ||
	    (file->f_inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	mark = mark_of_current();
	if (!mark)
		return 0;
	if (!is_named((u64)BPF_CORE_READ(file, f_path.dentry, d_name.name), file->f_path.dentry->d_name.len))
		return 0;
	return use(mark, file, FILE_CHECK, 0);
}

/* Loaded only where the settings name any: from Linux 6.12 on this, */
SEC("?lsm.s/file_post_open")
int BPF_PROG(cima_file_post_open, struct file *file, int mask)
{
	return read_by_name(file);
}

/* before that this, where the kernel cannot read the file yet: a digest that it has kept, or none. */
SEC("?lsm.s/file_open")
int BPF_PROG(cima_file_open_read, struct file *file)
{
	return read_by_name(file);
}

/*
 * An interpreter asks whether it may run a file that it will read: execveat(2) with AT_EXECVE_CHECK,
 * from Linux 6.14 on. The kernel then ends before bprm_check_security.
 */
SEC("lsm.s/bprm_creds_for_exec")
int BPF_PROG(cima_execve_check, struct linux_binprm *bprm)
{
	struct linux_binprm___6_14 *newer = (void *)bprm;

	if (!bpf_core_field_exists(newer->is_check) || !BPF_CORE_READ_BITFIELD(newer, is_check))
		return 0;
	return use(mark_of_current(), bprm->file, BPRM_CHECK, 0);
}

#endif
