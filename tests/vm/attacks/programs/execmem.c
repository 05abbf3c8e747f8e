/*
 * Executable memory that is no file's content: what is there was put there by the program.
 * Argument: which kind. Must be seen: a `memory` record of kind execmem.
 */
#include <sys/ipc.h>
#include <sys/personality.h>
#include <sys/shm.h>

#include "attack.h"

#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)
#define RW (PROT_READ | PROT_WRITE)

static void *filled(void *code) { memcpy(code, evil_code, sizeof(evil_code)); return code; }

static void *anonymous(void) { return filled(mapped(mmap(0, PAGE, RWX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap")); }

static void *anonymous_shared(void) { return filled(mapped(mmap(0, PAGE, RWX, MAP_SHARED | MAP_ANONYMOUS, -1, 0), "mmap")); }

static void *protected_later(void)
{
	void *code = filled(mapped(mmap(0, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap"));
	must(mprotect(code, PAGE, PROT_READ | PROT_EXEC), "mprotect");
	return code;
}

static void *protected_shared(void)
{
	void *code = filled(mapped(mmap(0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0), "mmap"));
	must(mprotect(code, PAGE, PROT_READ | PROT_EXEC), "mprotect");
	return code;
}

static void *by_pkey(void)
{
	void *code = filled(mapped(mmap(0, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap"));
	must(syscall(SYS_pkey_mprotect, code, PAGE, PROT_READ | PROT_EXEC, -1), "pkey_mprotect");
	return code;
}

static void *bss(void)
{
	static char page[2 * PAGE] __attribute__((aligned(PAGE)));
	filled(page);
	must(mprotect(page, PAGE, PROT_READ | PROT_EXEC), "mprotect");
	return page;
}

static void *dev_zero(void)
{
	void *code = filled(mapped(mmap(0, PAGE, RWX, MAP_PRIVATE, opened("/dev/zero", O_RDWR), 0), "mmap /dev/zero"));
	return code;
}

static void *dev_zero_shared(void) { return filled(mapped(mmap(0, PAGE, RWX, MAP_SHARED, opened("/dev/zero", O_RDWR), 0), "mmap /dev/zero")); }

static void *shmat_exec(void)
{
	int id = must(shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0700), "shmget");
	return filled(mapped(shmat(id, 0, SHM_EXEC), "shmat"));
}

static void *memfd_mapped(void)
{
	int fd = must(memfd_create("code", 0), "memfd_create");
	must(write(fd, evil_code, sizeof(evil_code)), "write");
	must(ftruncate(fd, PAGE), "ftruncate");
	return mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap");
}

static void *memfd_shared(void)
{
	int fd = must(memfd_create("code", 0), "memfd_create");
	must(ftruncate(fd, PAGE), "ftruncate");
	return filled(mapped(mmap(0, PAGE, RWX, MAP_SHARED, fd, 0), "mmap"));
}

static void *memfd_two_views(void)
{
	int fd = must(memfd_create("code", 0), "memfd_create");
	void *code;

	must(ftruncate(fd, PAGE), "ftruncate");
	code = mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0), "mmap");
	filled(mapped(mmap(0, PAGE, RW, MAP_SHARED, fd, 0), "mmap"));
	return code;
}

static void *memfd_secret_mapped(void)
{
	int fd = must(syscall(SYS_memfd_secret, 0), "memfd_secret");
	void *code;

	must(ftruncate(fd, PAGE), "ftruncate");
	code = filled(mapped(mmap(0, PAGE, RW, MAP_SHARED, fd, 0), "mmap"));
	must(mprotect(code, PAGE, PROT_READ | PROT_EXEC), "mprotect");
	return code;
}

static void *read_implies_exec(void)
{
	must(personality(READ_IMPLIES_EXEC), "personality");
	return filled(mapped(mmap(0, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap"));
}

/* The 32-bit system call, which is another function of the kernel's. */
static void *brk_of_old(void)
{
	char *heap;
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(136), "b"(READ_IMPLIES_EXEC) : "memory");
	if (result < 0) {
		errno = -result;
		must(-1, "personality");
	}
	/* Past what is there: the heap that is had its rights before. */
	heap = sbrk(64 * PAGE);
	return filled((void *)(((uintptr_t)heap + 32 * PAGE) & -PAGE));
}

#define HUGE (2 << 20)

static void *huge_anonymous(void) { return filled(mapped(mmap(0, HUGE, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0), "mmap MAP_HUGETLB")); }

static void *huge_memfd(void)
{
	int fd = must(memfd_create("code", MFD_HUGETLB), "memfd_create");
	must(ftruncate(fd, HUGE), "ftruncate");
	return filled(mapped(mmap(0, HUGE, RWX, MAP_SHARED, fd, 0), "mmap"));
}

static void *huge_shm(void)
{
	int id = must(shmget(IPC_PRIVATE, HUGE, IPC_CREAT | SHM_HUGETLB | 0700), "shmget");
	return filled(mapped(shmat(id, 0, SHM_EXEC), "shmat"));
}

static void *file_private(void) { return filled(map_code(RWX, MAP_PRIVATE)); }

/* The vDSO: no file's, and executable since the program began, for which there is no record. */
static void *vdso(void)
{
	char line[256];
	unsigned long begin = 0, end = 0;
	FILE *maps = fopen("/proc/self/maps", "r");

	while (maps && fgets(line, sizeof(line), maps))
		if (strstr(line, "[vdso]"))
			sscanf(line, "%lx-%lx", &begin, &end);
	/* As a whole: the kernel does not split it. */
	must(mprotect((void *)begin, end - begin, RWX), "mprotect");
	return filled((void *)(end - PAGE));
}

static const struct {
	const char *name;
	void *(*made)(void);
} kinds[] = {
	{"anonymous", anonymous}, {"anonymous_shared", anonymous_shared}, {"protected_later", protected_later},
	{"protected_shared", protected_shared}, {"by_pkey", by_pkey}, {"bss", bss}, {"dev_zero", dev_zero},
	{"dev_zero_shared", dev_zero_shared}, {"shmat", shmat_exec}, {"memfd", memfd_mapped},
	{"memfd_shared", memfd_shared}, {"memfd_two_views", memfd_two_views}, {"memfd_secret", memfd_secret_mapped},
	{"read_implies_exec", read_implies_exec}, {"file_private", file_private}, {"huge_anonymous", huge_anonymous}, {"huge_memfd", huge_memfd},
	{"huge_shm", huge_shm}, {"brk", brk_of_old}, {"vdso", vdso},
};

ATTACK(execmem)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (is_mode(argv, kinds[i].name))
			call(kinds[i].made());
	return 0;
}
