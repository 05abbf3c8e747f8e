/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Events: built in a buffer, and sent to the ring once. What was sent before is not sent again, and a
 * container that sends too much loses events, counted.
 */
#ifndef CIMA_REPORT_H
#define CIMA_REPORT_H

/*
 * What has been reported. Whether a file was executed or mapped is not part of it: the first use is
 * the one recorded. That it was only read is: it may be executed yet.
 */
struct seen_key {
	u64 registration;
	u64 path_hash;
	u64 ino;
	u32 dev;
	s32 hash;
	u16 only_read;
	u16 denied; /* what was refused says nothing of what is not */
	u16 kind;
	u16 why;
	u8 digest[SHA256_SIZE]; /* of a longer one its beginning */
};

/* An event and its path, in a row. */
struct report {
	u64 seen; /* the inode whose digest is waited for */
	u64 real; /* what holds its data, and what tells that from the next at the same address */
	u64 real_ino;
	u64 real_generation;
	u64 writes; /* of it, when the use began */
	u64 path_hash;
	struct judged judged; /* for complete(): the stack has no room */
	struct event event;
	u8 path[PATH_SIZE + 8]; /* 8 more: zeros to the end of the last word, for the hash */
};

/* Room to build an event in: too large for the stack. */
struct scratch {
	struct report report;
	u64 busy;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SEEN_MAX);
	__type(key, struct seen_key);
	__type(value, u8);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SCRATCH_SLOTS);
	__type(key, u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

/*
 * By task: a use of a file whose digest IMA is about to take. In no task's storage: where a task sleeps
 * until there is memory for that, Linux 6.1 has no storage of any task on that CPU.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PENDING_MAX);
	__type(key, u64);
	__type(value, struct report);
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20); /* bytes; the loader sets it */
} events SEC(".maps");

/* The oldest give way, and begin anew when they send again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, REGISTRATIONS_MAX);
	__type(key, u64);
	__type(value, struct budget);
} budgets SEC(".maps");

/*
 * A sleepable program may be preempted, and another task then run it on the same CPU: a buffer is claimed.
 * Nothing that sleeps is called while one is held, so the CPU's own is free but for such tasks. A container can
 * have hundreds of those on one CPU; what they hold is anywhere, so that another finds room all the same.
 */
static __always_inline struct scratch *claim_scratch(void)
{
	u32 slot = bpf_get_smp_processor_id();

	for (u32 i = 0; i < SCRATCH_TRIES; i++) {
		struct scratch *s;

		slot &= SCRATCH_SLOTS - 1;
		s = bpf_map_lookup_elem(&scratch, &slot);
		if (s && __sync_val_compare_and_swap(&s->busy, 0, 1) == 0)
			return s;
		slot = bpf_get_prandom_u32();
	}
	return 0;
}

static __always_inline void release_scratch(struct scratch *s)
{
	__sync_lock_test_and_set(&s->busy, 0);
}

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIPROUND                                                                                  \
	do {                                                                                      \
		v0 += v1; v1 = ROTL(v1, 13); v1 ^= v0; v0 = ROTL(v0, 32);                         \
		v2 += v3; v3 = ROTL(v3, 16); v3 ^= v2;                                            \
		v0 += v3; v3 = ROTL(v3, 21); v3 ^= v0;                                            \
		v2 += v1; v1 = ROTL(v1, 17); v1 ^= v2; v2 = ROTL(v2, 32);                         \
	} while (0)

/*
 * SipHash-1-3 of the path, in words (Aumasson and Bernstein, 2012); zeros fill the last word.
 *
 * A global function, which the kernel verifies by itself: inlined, its loop is gone through once for
 * each of the ways that lead to it, and loading the sensor takes up to thirty times as long.
 */
__noinline u64 hash_path(const struct scratch *s, u32 len)
{
	u64 v0 = settings.path_key[0] ^ 0x736f6d6570736575ULL, v1 = settings.path_key[1] ^ 0x646f72616e646f6dULL;
	u64 v2 = settings.path_key[0] ^ 0x6c7967656e657261ULL, v3 = settings.path_key[1] ^ 0x7465646279746573ULL;
	u64 last = (u64)len << 48;

	if (!s)
		return 0;
	for (u32 at = 0; at < PATH_SIZE; at += 8) {
		u64 word;

		if (at >= len)
			break;
		word = *(const u64 *)(s->report.path + at);
		v3 ^= word;
		SIPROUND;
		v0 ^= word;
	}
	v3 ^= last;
	SIPROUND;
	v0 ^= last;
	v2 ^= 0xff;
	SIPROUND;
	SIPROUND;
	SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/*
 * How many bytes a container may send in a second. Of a ring that is half full there is less, so that several who
 * send all they may leave room for those who send little.
 */
static __always_inline u64 bytes_per_second(void)
{
	u64 size = bpf_ringbuf_query(&events, BPF_RB_RING_SIZE), used = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);

	if (used > size / 4 * 3)
		return settings.bytes_per_second / 64;
	return used > size / 2 ? settings.bytes_per_second / 16 : settings.bytes_per_second;
}

/*
 * Whether a container may send as many bytes more in this second. The ring is everybody's: without a
 * limit, one that does nothing but run new files could have others' events dropped.
 */
static __always_inline int may_send(u64 registration, u64 now, u32 bytes)
{
	struct budget *budget = bpf_map_lookup_elem(&budgets, &registration);
	struct budget begun = {.second = now / 1000000000, .bytes = bytes};

	if (!budget) {
		bpf_map_update_elem(&budgets, &registration, &begun, BPF_ANY);
		return 1;
	}
	if (budget->second != begun.second) {
		budget->second = begun.second;
		budget->bytes = 0;
	}
	return __sync_fetch_and_add(&budget->bytes, bytes) + bytes <= bytes_per_second();
}

/* Who and when: the current task, now. */
static __always_inline void stamp(struct event *e)
{
	e->time_ns = bpf_ktime_get_boot_ns();
	e->cgroup_id = bpf_get_current_cgroup_id();
	e->mntns = current_mntns();
	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->uid = bpf_get_current_uid_gid();
}

/* What all events have, but for the stamp: most are not sent, and need none. */
static __always_inline void begin_event(struct event *e, u64 registration, u32 kind, u32 why, u32 func)
{
	e->registration = registration;
	e->time_ns = 0;
	e->ino = 0;
	e->dev = 0;
	e->hash = -ENODATA;
	e->path_len = -ENODATA;
	e->func = func;
	e->denied = 0;
	e->kind = kind;
	e->why = why;
	__builtin_memset(e->digest, 0, DIGEST_SIZE);
}

/* Send the event, unless the same was sent before. */
__noinline int send(struct report *r)
{
	struct seen_key key = {};
	u8 one = 1;
	u32 bytes;

	if (!r)
		return 0;
	bytes = r->event.path_len;
	if (bytes > PATH_SIZE) /* an errno */
		bytes = 0;
	key.registration = r->event.registration;
	key.path_hash = r->path_hash;
	key.ino = r->event.ino;
	key.dev = r->event.dev;
	key.hash = r->event.hash;
	key.denied = r->event.denied;
	key.kind = r->event.kind;
	key.why = r->event.why;
	__builtin_memcpy(key.digest, r->event.digest, SHA256_SIZE);
	if (bpf_map_lookup_elem(&seen, &key))
		return 0;
	if (key.kind == USE && r->event.func == FILE_CHECK) {
		key.only_read = 1;
		if (bpf_map_lookup_elem(&seen, &key))
			return 0;
	}
	if (!r->event.time_ns)
		stamp(&r->event);
	if (!may_send(key.registration, r->event.time_ns, sizeof(r->event) + bytes) ||
	    bpf_ringbuf_output(&events, &r->event, sizeof(r->event) + bytes, 0))
		count_dropped(key.registration);
	else
		bpf_map_update_elem(&seen, &key, &one, BPF_ANY);
	return 0;
}

/* Name the file of an event by the last component of its path alone. */
static __always_inline void name_it(struct scratch *s, struct inode *inode, struct dentry *dentry)
{
	const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
	u32 bytes = bpf_probe_read_kernel_str(s->report.path, 256, name);

	s->report.event.ino = BPF_CORE_READ(inode, i_ino);
	s->report.event.dev = BPF_CORE_READ(inode, i_sb, s_dev);
	if (bytes <= 1 || bytes > 256) /* an errno */
		return;
	s->report.event.path_len = bytes;
	__builtin_memset(s->report.path + bytes, 0, 8);
	s->report.path_hash = hash_path(s, bytes);
}

/* What an event says, in one number: a global function takes five. */
#define ABOUT(kind, why, func, denied) \
	((u64)(kind) << 24 | (u64)(why) << 16 | (u64)(func) << 8 | !!(denied))

/* Report what is no use of a file: of `registration`, naming `dentry` where there is one. */
__noinline int note(u64 registration, u64 about, u64 inode, u64 dentry)
{
	struct scratch *s = claim_scratch();

	if (!s) {
		count_dropped(registration);
		return 0;
	}
	begin_event(&s->report.event, registration, about >> 24 & 0xff, about >> 16 & 0xff, about >> 8 & 0xff);
	s->report.path_hash = 0;
	s->report.event.denied = about & 1;
	if (dentry)
		name_it(s, (struct inode *)inode, (struct dentry *)dentry);
	send(&s->report);
	release_scratch(s);
	return 0;
}

#endif
