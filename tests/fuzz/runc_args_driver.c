/* Prints the launcher's decision on its own arguments, for test_runc_args_native.py. */
#include <stdio.h>

#include "../../native/runc_args.h"

int main(int argc, char **argv)
{
	struct runc_args args = parse_runc_args(argv + 1, (size_t)argc - 1);

	printf("%d%c%d%c", args.starts, 0, args.certain, 0);
	if (args.starts && args.certain)
		printf("%s%c%s%c", args.bundle, 0, args.config, 0);
	if (args.certain)
		printf("%s%c%s%c", args.log ? args.log : "", 0,
		       args.log_format && args.log_format[0] ? args.log_format : "text", 0);
	return 0;
}
