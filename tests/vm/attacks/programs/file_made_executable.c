/*
 * A file is mapped to be read, where nobody looks, and made executable by mprotect.
 * Argument: private, shared, or personality: READ_IMPLIES_EXEC instead of mprotect. Must be seen: that a file became executable, by name, and as not stable.
 */
#include <sys/personality.h>

#include "attack.h"

ATTACK(file_made_executable)
{
	void *code;
	int fd;

	write_file("/tmp/evil", evil_code, sizeof(evil_code), 0644);
	truth("/tmp/evil");
	fd = opened("/tmp/evil", O_RDONLY);
	if (is_mode(argv, "personality"))
		must(personality(READ_IMPLIES_EXEC), "personality");
	code = mapped(mmap(0, PAGE, PROT_READ, is_mode(argv, "shared") ? MAP_SHARED : MAP_PRIVATE, fd, 0), "mmap");
	if (!is_mode(argv, "personality"))
		must(mprotect(code, PAGE, PROT_READ | PROT_EXEC), "mprotect");
	call(code);
	return 0;
}
