/*
 * No attack in particular: files are made, written to through descriptors and through mappings, renamed,
 * exchanged, linked, truncated and removed at random, and used as libraries and programs in between.
 * Each use says `use: PATH DIGEST`, the digest being of what the file holds at that moment.
 * Arguments: a seed, and how many steps.
 * Must be seen: each of these, or that the file is not stable; and no digest but these.
 */
#include "attack.h"

#define NAMES 6
#define MAPPINGS 3
#define SIZE 1024

static unsigned long state;
static char *mappings[MAPPINGS];
static unsigned counter;

static unsigned chance(unsigned below)
{
	/* Knuth's MMIX generator */
	state = state * 6364136223846793005UL + 1442695040888963407UL;
	return (state >> 33) % below;
}

static const char *name(void)
{
	static char names[4][32];
	static int next;
	char *chosen = names[next++ & 3];

	snprintf(chosen, 32, "/data/n%u", chance(NAMES));
	return chosen;
}

static void make(const char *path)
{
	char content[SIZE] = {0};
	int honest = opened(PROGRAM, O_RDONLY), fd;

	must(read(honest, content, SIZE - 8), "read");
	close(honest);
	memcpy(content + SIZE - 8, &counter, 4);
	counter++;
	fd = open(path, O_WRONLY | O_CREAT | (chance(2) ? O_TRUNC : 0), 0755);
	if (fd < 0)
		return; /* it runs, or is mapped */
	must(pwrite(fd, content, SIZE, 0), "pwrite");
	close(fd);
}

static void change(const char *path)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0)
		return;
	must(pwrite(fd, &counter, 4, SIZE - 4), "pwrite");
	counter++;
	close(fd);
}

static void map_shared(const char *path)
{
	int slot = chance(MAPPINGS), fd;

	if (mappings[slot]) {
		munmap(mappings[slot], SIZE);
		mappings[slot] = 0;
	}
	fd = open(path, O_RDWR);
	if (fd < 0)
		return;
	if (size_of(path) == SIZE)
		mappings[slot] = mapped(mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "mmap");
	close(fd);
}

static void change_mapped(void)
{
	char *bytes = mappings[chance(MAPPINGS)];

	if (bytes)
		*(volatile unsigned *)(bytes + SIZE - 4) = counter++;
}

static void use(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), is_mapped = 0;
	void *code;

	if (fd < 0)
		return;
	for (int i = 0; i < MAPPINGS; i++)
		is_mapped |= !!mappings[i];
	if (chance(2) && !is_mapped) {
		printf("use: %s ", path);
		truth(path);
		execute(path);
	} else {
		printf("use: %s ", path);
		truth(path);
		code = mapped(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0), "mmap");
		munmap(code, PAGE);
	}
	close(fd);
}

ATTACK(fuzz_names)
{
	state = atol(argv[0]);
	for (int step = 0; step < atoi(argv[1]); step++) {
		const char *one = name(), *other = name();

		unsigned what = chance(16);

		if (what < 2)
			make(one);
		else if (what == 2)
			change(one);
		else if (what == 3)
			map_shared(one);
		else if (what < 6)
			change_mapped();
		else if (what == 6)
			rename(one, other);
		else if (what == 7)
			syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
		else if (what == 8)
			unlink(other), (void)!link(one, other);
		else if (what == 9)
			unlink(one);
		else if (what == 10)
			(void)!truncate(one, SIZE - chance(2));
		else
			use(one);
	}
	printf("done\n");
	return 0;
}
