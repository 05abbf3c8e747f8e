/*
 * A private mapping of a good file that was written to and is executable again. Argument: mapping (it
 * never was executable before), again (it was), text (this program's own), heap, stack, grown.
 * Must be seen: a `memory` record of kind execmod, execheap or execstack.
 */
#include "attack.h"

static void *protect(void *page, int protection)
{
	must(mprotect(page, PAGE, protection), "mprotect");
	return page;
}

static void *put(void *page) { memcpy(page, evil_code, sizeof(evil_code)); return page; }

__attribute__((aligned(PAGE), noinline, section(".text.victim"))) static int victim(void)
{
	__asm__ volatile(".skip 8192, 0x90");
	return 'g';
}

ATTACK(execmod)
{
	const int rx = PROT_READ | PROT_EXEC, rw = PROT_READ | PROT_WRITE;
	void *code = 0;

	if (is_mode(argv, "mapping")) {
		code = put(map_code(rw, MAP_PRIVATE));
	} else if (is_mode(argv, "again")) {
		code = map_code(rx, MAP_PRIVATE);
		call(code);
		put(protect(code, rw));
	} else if (is_mode(argv, "text")) {
		code = (void *)((uintptr_t)victim + PAGE - 1 & -PAGE);
		put(protect(code, rw));
	} else if (is_mode(argv, "heap")) {
		code = put((void *)(((uintptr_t)sbrk(4 * PAGE) + PAGE - 1) & -PAGE));
	} else if (is_mode(argv, "stack")) {
		char room[3 * PAGE];
		code = put((void *)(((uintptr_t)room + PAGE - 1) & -PAGE));
		protect(code, rx | PROT_WRITE);
		call(code);
		return 0;
	}
	call(protect(code, rx));
	return 0;
}
