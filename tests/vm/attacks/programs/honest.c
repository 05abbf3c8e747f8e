/* No attack: all three files are used as they are. Must be seen: their digests; TRUSTED. */
#include "attack.h"

ATTACK(honest)
{
	call(map_code(PROT_READ | PROT_EXEC, MAP_PRIVATE));
	execute(PROGRAM);
	execute(SCRIPT);
	return 0;
}
