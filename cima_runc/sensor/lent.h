/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Pages that the kernel keeps for a task and writes to: io_uring's buffers, and rings in memory of the
 * task's own; packets of AF_XDP. They can be a file's, by way of a shared mapping, and are written to when
 * the mapping is long gone; nothing counts that. For as long as such a file's inode lives no digest of it
 * is believed.
 *
 * What they are is looked at when they are pinned, and before anybody can write to them: mappings could
 * be exchanged meanwhile.
 */
#ifndef CIMA_LENT_H
#define CIMA_LENT_H

enum { PAGES_MAX = 1 << 18, /* 1 GiB, as io_uring's largest buffer */ MAPPING_IS_NO_FILE = 3 };

struct lent {
	u64 pages; /* struct page ** */
	u64 last;  /* the mapping of the page before */
};

/* A page, or the head of the larger one of which it is a part. */
static __always_inline u64 folio_of(u64 page)
{
	struct page___7_1 *newer = (void *)page;
	u64 head;

	if (bpf_core_field_exists(newer->compound_info))
		head = BPF_CORE_READ(newer, compound_info);
	else
		head = BPF_CORE_READ((struct page *)page, compound_head);
	if (!(head & 1))
		return page;
	/* A pointer, or from 7.1 on a mask: that is a small negative number. */
	return (s64)head > -(1LL << 40) ? page & head : head - 1;
}

__noinline int lend(u64 inode)
{
	struct writes *written;

	remember(inode);
	written = bpf_map_lookup_elem(&writes, &inode);
	if (written)
		written->lent = 1;
	/* Who mapped it meanwhile saw no writer. */
	changed_by(inode, 0, PINNED_MEMORY, 0);
	return 0;
}

static long lend_page(u32 index, struct lent *lent)
{
	u64 page = 0, mapping;
	struct inode *inode;

	bpf_probe_read_kernel(&page, sizeof(page), (void *)(lent->pages + index * sizeof(u64)));
	mapping = (u64)BPF_CORE_READ((struct folio *)folio_of(page), mapping);
	if (mapping == lent->last)
		return 0;
	lent->last = mapping;
	if (!mapping || mapping & MAPPING_IS_NO_FILE)
		return 0;
	inode = BPF_CORE_READ((struct address_space *)mapping, host);
	if (!is_memory_file(inode))
		lend((u64)inode);
	return 0;
}

static __always_inline void lend_pages(u64 pages, u32 count)
{
	struct lent lent = {.pages = pages};

	if (count > PAGES_MAX)
		count = PAGES_MAX;
	bpf_loop(count, lend_page, &lent, 0);
}

/* A returned pointer; 0 where it is an errno. Linux 6.1's verifier knows no pointers to pointers. */
static __always_inline u64 returned(void *ctx)
{
	u64 pointer = 0;

	bpf_get_func_ret(ctx, &pointer);
	return pointer >= (u64)-MAX_ERRNO ? 0 : pointer;
}

SEC("?fexit/io_pin_pages")
int BPF_PROG(cima_pinned, unsigned long from, unsigned long bytes)
{
	u64 pages = returned(ctx), count_at = 0;
	u32 count = 0;

	if (!pages)
		return 0;
	bpf_probe_read_kernel(&count_at, sizeof(count_at), &ctx[2]);
	bpf_probe_read_kernel(&count, sizeof(count), (void *)count_at);
	lend_pages(pages, count);
	return 0;
}

SEC("?fexit/xdp_umem_create")
int BPF_PROG(cima_umem)
{
	struct xdp_umem *umem = (void *)returned(ctx);

	if (umem)
		lend_pages((u64)BPF_CORE_READ(umem, pgs), BPF_CORE_READ(umem, npgs));
	return 0;
}

#endif
