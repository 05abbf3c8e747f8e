/*
 * PTRACE_TRACEME: the child asks to be traced, and the parent writes into a program that has been
 * executed and has not begun. Must be seen: that the container's processes trace each other.
 */
#include <sys/ptrace.h>
#include <sys/user.h>

#include "attack.h"

ATTACK(traced_by_parent)
{
	/* write(1, "ran: evil\n", 10); exit(0), position independent */
	static const unsigned char shell[] =
		"\x6a\x01\x58\x6a\x01\x5f\x48\x8d\x35\x10\x00\x00\x00\x6a\x0a\x5a\x0f\x05"
		"\x6a\x3c\x58\x31\xff\x0f\x05\x90\x90\x90\x90ran: evil\n";
	struct user_regs_struct registers;
	int status;
	pid_t child = must(fork(), "fork");

	if (!child) {
		char *argv_of[] = {PROGRAM, 0}, *none[] = {0};
		must(ptrace(PTRACE_TRACEME, 0, 0, 0), "PTRACE_TRACEME");
		execve(PROGRAM, argv_of, none);
		must(-1, PROGRAM);
	}
	waitpid(child, &status, 0);
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	must(ptrace(PTRACE_GETREGS, child, 0, &registers), "PTRACE_GETREGS");
	for (size_t at = 0; at < sizeof(shell); at += 8) {
		long word = 0;
		memcpy(&word, shell + at, sizeof(shell) - at < 8 ? sizeof(shell) - at : 8);
		must(ptrace(PTRACE_POKETEXT, child, registers.rip + at, word), "PTRACE_POKETEXT");
	}
	ptrace(PTRACE_DETACH, child, 0, 0);
	waitpid(child, &status, 0);
	return 0;
}
