/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Enforcement: what may run in a container that has a list. */
#ifndef CIMA_ALLOWED_H
#define CIMA_ALLOWED_H

struct allowlist {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* the loader makes each as large as it must be */
	__uint(key_size, SHA256_SIZE);
	__uint(value_size, sizeof(u8));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, REGISTRATIONS_MAX);
	__type(key, u64);
	__array(values, struct allowlist);
} allowed SEC(".maps");

static __always_inline int is_enforced(u64 registration)
{
	return bpf_map_lookup_elem(&allowed, &registration) != 0;
}

/* Whether the container's list, if it has one, lets a file with this digest run. */
static __always_inline int is_allowed(u64 registration, u32 why, s32 hash, const u8 *digest)
{
	void *allowlist = bpf_map_lookup_elem(&allowed, &registration);

	if (!allowlist)
		return 1;
	if (why || hash != HASH_ALGO_SHA256)
		return 0;
	return bpf_map_lookup_elem(allowlist, digest) != 0; /* its first 32 bytes */
}

#endif
