/*
 * An interpreter reads a foreign script that was opened for writing too.
 * Argument: read_write or read. Must be seen, where reads are measured: its digest, or that it has none.
 */
#include "attack.h"

ATTACK(script_read)
{
	char *argv_of[] = {"sh", is_mode(argv, "read") ? "/tmp/evil.sh" : 0, 0}, *none[] = {0};

	write_file("/tmp/evil.sh", evil_script, evil_script_end - evil_script, 0644);
	truth("/tmp/evil.sh");
	if (!is_mode(argv, "read"))
		must(dup2(open("/tmp/evil.sh", O_RDWR), 0), "dup2");
	must(execve("/bin/sh", argv_of, none), "/bin/sh");
	return 0;
}
