/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Files that there was no room for. Of each the sensor has to know for as long as its inode lives that it can
 * be written unseen (mapped.h, lent.h); without that it would be believed. So those beyond the room are in a
 * Bloom filter (Bloom, 1970) over the addresses of their inodes: it may take another file for one of them,
 * never one of them for another. It forgets nothing: an inode that gets the address of one that is gone is
 * not believed either.
 */
#ifndef CIMA_FORGOTTEN_H
#define CIMA_FORGOTTEN_H

enum { FORGOTTEN_HASHES = 4 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FORGOTTEN_WORDS);
	__type(key, u32);
	__type(value, u64);
} forgotten SEC(".maps");

/* An address as bits that have to do with each other no more (MurmurHash3's last step, Appleby, 2011). */
static __always_inline u64 scattered(u64 address)
{
	address ^= address >> 33;
	address *= 0xff51afd7ed558ccdULL;
	address ^= address >> 33;
	address *= 0xc4ceb9fe1a85ec53ULL;
	return address ^ address >> 33;
}

/* The word and the bit of one of the hashes (double hashing: Kirsch and Mitzenmacher, 2006). */
static __always_inline u64 *forgotten_word(u64 hash, u32 which, u64 *bit)
{
	u32 at = (u32)hash + which * ((u32)(hash >> 32) | 1);
	u32 word = at / 64 % FORGOTTEN_WORDS;

	*bit = 1ULL << at % 64;
	return bpf_map_lookup_elem(&forgotten, &word);
}

__noinline int forget(u64 real)
{
	u64 hash = scattered(real), bit, *word;

	for (u32 i = 0; i < FORGOTTEN_HASHES; i++) {
		word = forgotten_word(hash, i, &bit);
		if (word)
			__sync_fetch_and_or(word, bit);
	}
	return 0;
}

/*
 * Whether this may be one of them. Read by an exchange with memory, which no earlier store of this CPU is
 * overtaken by: who makes an entry for a file first and then asks, and who forgets the file first and
 * then looks for its entry, cannot both miss each other.
 */
__noinline int was_forgotten(u64 real)
{
	u64 hash = scattered(real), bit, *word;

	for (u32 i = 0; i < FORGOTTEN_HASHES; i++) {
		word = forgotten_word(hash, i, &bit);
		if (word && !(__sync_fetch_and_or(word, 0) & bit))
			return 0;
	}
	return 1;
}

#endif
