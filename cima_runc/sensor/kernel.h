/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What is used of the kernel: constants of its headers, and the fields of its structures that are
 * read here; their offsets come from the running kernel (BPF CO-RE).
 */
#ifndef CIMA_KERNEL_H
#define CIMA_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;
/* What bpf_helpers.h and bpf_tracing.h want of linux/types.h, which the bpf target does not have. */
typedef u8 __u8;
typedef u16 __u16, __be16;
typedef u32 __u32, __be32, __wsum;
typedef u64 __u64;
typedef s32 __s32;
typedef s64 __s64;

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_HASH_OF_MAPS = 13,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
	BPF_F_NO_PREALLOC = 1,
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_RING_SIZE = 1,
	BPF_F_MMAPABLE = 1 << 10,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1,
};
enum {
	EPERM = 1,
	ENOMEM = 12,
	EACCES = 13,
	ETXTBSY = 26,
	EFBIG = 27,
	ENODATA = 61,
	MAX_ERRNO = 4095,
	SIGKILL = 9,
};
enum { PROT_WRITE = 2, PROT_EXEC = 4, MAP_SHARED = 1, MAP_SHARED_VALIDATE = 3, MAP_TYPE = 15 };
enum { VM_WRITE = 2, VM_EXEC = 4, VM_SHARED = 8, READ_IMPLIES_EXEC = 0x400000 };
enum { FMODE_READ = 1, FMODE_WRITE = 2, FMODE_EXEC = 0x20, ATTR_SIZE = 8 };
enum { FMODE_BACKING = 3 << 24 /* either bit, by release */, O_DIRECT = 0x4000, F_SETFL = 4 };
enum { S_IFMT = 0170000, S_IFCHR = 0020000, S_IFBLK = 0060000, S_IFREG = 0100000, S_PRIVATE = 1 << 9, S_IMA = 1 << 10 };
enum { FS_REQUIRES_DEV = 1 };
enum { SB_RDONLY = 1, SB_KERNMOUNT = 1 << 22, SB_I_IMA_UNVERIFIABLE_SIGNATURE = 0x20 };
enum { MNT_READONLY = 0x40 };
enum { F_SEAL_WRITE = 8, PTRACE_MODE_ATTACH = 2, PF_KTHREAD = 0x200000, PF_IO_WORKER = 0x10 };
enum { HASH_ALGO_SHA256 = 4, IMA_COLLECTED = 0x20 };
enum { TS_COMPAT = 2 }; /* arch/x86/include/asm/thread_info.h */
enum { CLONE_NEWNS = 0x20000, REMAP_FILE_DEDUP = 1 };
/* include/uapi/linux/loop.h; what a device shows is exchanged, by a descriptor that is open for reading alone */
#define LOOP_SET_STATUS 0x4c02
#define LOOP_SET_STATUS64 0x4c04
#define LOOP_CHANGE_FD 0x4c06
#define LOOP_MAJOR 7
#define EXT4_IOC_MOVE_EXT 0xc028660fU /* fs/ext4/ext4.h */
#define FUSE_DEV_IOC_BACKING_OPEN 0x4010e501U /* include/uapi/linux/fuse.h */
#define FUSE_DEVICE (10 << MINORBITS | 229) /* /dev/fuse, as Documentation/admin-guide/devices.txt says */
/* linux/major.h, the minor numbers of drivers/char/mem.c, and linux/miscdevice.h */
enum { MINORBITS = 20, MEM_MAJOR = 1, SCSI_GENERIC_MAJOR = 21, MSR_MAJOR = 202, MEM = 1, KMEM = 2, PORT = 4, MISC_MAJOR = 10, SNAPSHOT_MINOR = 231 };
#define MNT_NS_ANON_INO 0xEFFFFFF7U /* the number of every anonymous mount namespace, from 7.x on */

/* linux/magic.h */
enum magic {
	OVERLAYFS = 0x794c7630,
	TMPFS = 0x01021994,
	RAMFS = 0x858458f6,
	PROC = 0x9fa0,
	SYSFS = 0x62656572,
	DEBUGFS = 0x64626720,
	TRACEFS = 0x74726163,
	BPF_FS = 0xcafe4a11,
	BINFMT_MISC = 0x42494e4d,
	CGROUP = 0x27e0eb,
	CGROUP2 = 0x63677270,
	DEVPTS = 0x1cd1,
	MQUEUE = 0x19800202,
	SECURITYFS = 0x73636673,
	FUSE = 0x65735546,
	OCFS2 = 0x7461636f,
	GFS2 = 0x01161970,
	HUGETLBFS = 0x958458f6,
	ZFS = 0x2fc12fc1,
	XFS = 0x58465342,
};

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define KERNEL __attribute__((preserve_access_index))
typedef struct {
	int counter;
} KERNEL atomic_t;
struct ns_common {
	u32 inum;
} KERNEL;
struct mnt_namespace {
	struct ns_common ns;
	u64 seq;
} KERNEL;
struct ns_common___6_18 {
	u64 ns_id;
	u32 ns_type;
	u32 inum;
} KERNEL;
struct mnt_namespace___6_18 {
	struct ns_common___6_18 ns;
} KERNEL;
struct nsproxy {
	struct mnt_namespace *mnt_ns;
} KERNEL;
struct capabilities { /* kernel_cap_t, 8 bytes by whichever name */
	u64 val;
};
struct user_namespace {
	int level; /* 0: the initial one */
} KERNEL;
struct cred {
	struct capabilities cap_bset;
	struct user_namespace *user_ns;
} KERNEL;
struct seccomp {
	int mode;
} KERNEL;
struct thread_info___x86 {
	u32 status;
} KERNEL;
struct mm_struct {
	unsigned long start_brk, brk, start_stack, arg_start;
} KERNEL;
struct task_struct___x86 {
	struct thread_info___x86 thread_info;
} KERNEL;
struct task_struct {
	void *bpf_storage;
	struct nsproxy *nsproxy;
	const struct cred *real_cred;
	struct mm_struct *mm;
	struct task_struct *real_parent;
	struct seccomp seccomp;
	unsigned int personality;
	unsigned int flags;
} KERNEL;
struct qstr {
	u32 len;
	const unsigned char *name;
} KERNEL;
struct inode;
struct super_block;
struct dentry {
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
} KERNEL;
struct vfsmount;
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} KERNEL;
struct file_system_type {
	const char *name;
	int fs_flags;
} KERNEL;
struct super_block {
	u32 s_dev;
	struct file_system_type *s_type;
	unsigned long s_magic;
	unsigned long s_flags;
	unsigned long s_iflags;
} KERNEL;
struct vfsmount {
	struct super_block *mnt_sb;
	int mnt_flags;
} KERNEL;
struct rb_node;
struct rb_root {
	struct rb_node *rb_node;
} KERNEL;
struct rb_root_cached {
	struct rb_root rb_root;
} KERNEL;
struct address_space {
	struct inode *host;
	u32 wb_err;
	atomic_t i_mmap_writable;
	struct rb_root_cached i_mmap;
} KERNEL;
struct inode {
	unsigned short i_mode;
	unsigned int i_flags;
	unsigned int i_rdev;
	unsigned long i_ino;
	u32 i_generation;
	s64 i_size;
	struct super_block *i_sb;
	atomic_t i_writecount;
	atomic_t i_readcount;
	struct address_space *i_mapping;
} KERNEL;
struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
} KERNEL;
/* fs/file_table.c: the file that another one is handed through to, which begins it */
struct backing_file {
	struct path user_path;
} KERNEL;
struct linux_binprm {
	struct file *file;
} KERNEL;
struct linux_binprm___6_14 {
	unsigned int is_check : 1;
} KERNEL;
struct vm_area_struct {
	unsigned long vm_start, vm_end;
	unsigned long vm_flags;
	struct mm_struct *vm_mm;
	struct file *vm_file;
	void *anon_vma;
} KERNEL;
struct folio {
	struct address_space *mapping;
} KERNEL;
struct page {
	unsigned long compound_head;
} KERNEL;
struct page___7_1 {
	unsigned long compound_info;
} KERNEL;
struct xdp_umem {
	struct page **pgs;
	u32 npgs;
} KERNEL;
struct iattr {
	unsigned int ia_valid;
} KERNEL;
struct pt_regs___x86 {
	unsigned long di, bx, orig_ax;
} KERNEL;
struct bpf_iter_meta;
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} KERNEL;

/* mm/shmem.c: files in memory */
struct shmem_inode_info {
	unsigned int seals;
	struct inode vfs_inode;
} KERNEL;

/* IMA: what it keeps of an inode, by its name up to 6.9 and after. */
struct ima_digest_data {
	u8 algo;
	u8 length;
} KERNEL;
struct integrity_iint_cache {
	unsigned long flags;
	struct ima_digest_data *ima_hash;
} KERNEL;
struct ima_iint_cache {
	unsigned long flags;
	struct ima_digest_data *ima_hash;
} KERNEL;

/* An option of a file system that is mounted, or mounted again. */
struct fs_context {
	struct file_system_type *fs_type;
} KERNEL;
struct fs_parameter {
	const char *key;
} KERNEL;

/* What the kernel is given to run in itself; include/linux/kernel_read_file.h numbers anew with releases. */
enum kernel_load_data_id { LOADING_MODULE, LOADING_KEXEC_IMAGE };
enum kernel_read_file_id { READING_MODULE, READING_MODULE_COMPRESSED, READING_KEXEC_IMAGE };

/* The module overlay: loaded before this is. */
struct ovl_path {
	void *layer;
	struct dentry *dentry;
} KERNEL;
struct ovl_entry {
	unsigned int __numlower;
	struct ovl_path __lowerstack[];
} KERNEL;
struct ovl_inode {
	unsigned long flags;
	struct inode vfs_inode;
	struct dentry *__upperdentry;
	struct ovl_entry *oe;
} KERNEL;
struct ovl_inode___6_1 {
	struct inode *lowerdata;
	struct ovl_path lowerpath;
} KERNEL;
enum ovl_inode_flag { OVL_UPPERDATA = 3 };
/* From 6.13 on; before, an open file of an overlay holds the one below by itself. */
struct ovl_file {
	struct file *realfile;
} KERNEL;

/*
 * A pointer as a mere number: global functions take no pointers to the kernel's structures. To the kernel's
 * verifier the difference of two pointers is a number, and so is the task's address from the other helper.
 */
static __always_inline u64 address(const void *pointer)
{
	u64 number = (u64)pointer;
	struct task_struct *task = bpf_get_current_task_btf();

	asm volatile("%0 -= %1" : "+r"(number) : "r"(task));
	return number + bpf_get_current_task();
}

/*
 * Reads a field of the kernel's by way of pointers, as BPF_CORE_READ does, and like that gives 0 where one of
 * them leads nowhere. From Linux 6.2 on (`casts`) that is a load for each, and no call.
 */
#define READ(pointer, fields...) ___apply(___read, ___narg(fields))(pointer, fields)
#define ___read1(p, a) (settings.casts ? ___as(p)->a : BPF_CORE_READ(p, a))
#define ___read2(p, a, b) (settings.casts ? ___as(p)->a->b : BPF_CORE_READ(p, a, b))
#define ___read3(p, a, b, c) (settings.casts ? ___as(p)->a->b->c : BPF_CORE_READ(p, a, b, c))
#define ___as(p) ((typeof(p))bpf_rdonly_cast(p, bpf_core_type_id_kernel(typeof(*(p)))))
extern void *bpf_rdonly_cast(const void *pointer, __u32 type) __attribute__((section(".ksyms"), weak));

/* The same for a field that is a pointer, as one that the kernel's verifier holds for a mere number. */
#define READ_POINTER(pointer, fields...) ___apply(___pointer, ___narg(fields))(pointer, fields)
#define ___pointer1(p, a) ((typeof((p)->a))(settings.casts ? address(___as(p)->a) : (u64)BPF_CORE_READ(p, a)))

#endif
