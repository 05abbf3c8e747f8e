/*
 * truncate(2) by path opens no file for writing. The script says another thing without its last line.
 * Must be seen: the shorter script's digest, or that it is not stable.
 */
#include "attack.h"

ATTACK(truncated_by_path)
{
	char *bytes = dirty_mapping(SCRIPT);

	munmap(bytes, size_of(SCRIPT));
	execute(SCRIPT);
	must(truncate(SCRIPT, size_of(SCRIPT) - strlen("word=good\n")), "truncate");
	truth(SCRIPT);
	execute(SCRIPT);
	return 0;
}
