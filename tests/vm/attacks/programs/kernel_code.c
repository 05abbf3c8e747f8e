/*
 * Code for the kernel itself. Argument: module, module_file, or kexec. None is any, so that the kernel refuses it
 * after it has asked. Must be seen: that it was tried.
 */
#include "attack.h"

ATTACK(kernel_code)
{
	long result;

	write_file("/tmp/evil", evil_program, evil_program_end - evil_program, 0755);
	truth("/tmp/evil");
	if (is_mode(argv, "module"))
		result = syscall(SYS_init_module, evil_program, (long)(evil_program_end - evil_program), "");
	else if (is_mode(argv, "module_file"))
		result = syscall(SYS_finit_module, opened("/tmp/evil", O_RDONLY), "", 0);
	else
		result = syscall(SYS_kexec_load, 0, 0, 0, 0);
	if (result < 0 && errno == ENOSYS)
		absent(argv[0]);
	if (result < 0 && errno == EPERM)
		refused(argv[0]);
	/* Whoever could load one has no need of this. */
	puts("ran: evil");
	return 0;
}
