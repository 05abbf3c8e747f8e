/*
 * The code of a process is changed where it lies, through the kernel, which asks for no permission to
 * write there. Argument: proc_mem, ptrace or process_vm_writev.
 * Must be seen: that somebody may write into memory of the container's processes.
 */
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "attack.h"

static void in_child(void *code, void (*change)(pid_t child, void *code))
{
	pid_t child = must(fork(), "fork");
	int status;

	if (!child) {
		raise(SIGSTOP);
		call(code);
		_exit(0);
	}
	waitpid(child, &status, WUNTRACED);
	change(child, code);
	kill(child, SIGCONT);
	waitpid(child, &status, 0);
}

static void poke(pid_t child, void *code)
{
	long word;
	int status;

	memcpy(&word, evil_code, sizeof(word));
	must(ptrace(PTRACE_ATTACH, child, 0, 0), "PTRACE_ATTACH");
	waitpid(child, &status, 0);
	must(ptrace(PTRACE_POKETEXT, child, code, word), "PTRACE_POKETEXT");
	must(ptrace(PTRACE_DETACH, child, 0, SIGCONT), "PTRACE_DETACH");
}

static void writev_into(pid_t child, void *code)
{
	struct iovec from = {(void *)evil_code, sizeof(evil_code)}, to = {code, sizeof(evil_code)};

	must(process_vm_writev(child, &from, 1, &to, 1, 0), "process_vm_writev");
}

ATTACK(process_memory)
{
	int writable = is_mode(argv, "process_vm_writev") ? PROT_WRITE : 0;
	void *code = map_code(PROT_READ | PROT_EXEC | writable, MAP_PRIVATE);

	call(code);
	if (is_mode(argv, "ptrace")) {
		in_child(code, poke);
	} else if (writable) {
		in_child(code, writev_into);
	} else {
		int fd = opened("/proc/self/mem", O_RDWR);
		ssize_t written = pwrite(fd, evil_code, sizeof(evil_code), (uintptr_t)code);

		/* Linux 6.12 and later may be told to write past what a mapping allows for nobody: proc_mem= */
		if (written < 0 && errno == EIO)
			refused("pwrite /proc/self/mem");
		must(written, "pwrite /proc/self/mem");
		call(code);
	}
	return 0;
}
