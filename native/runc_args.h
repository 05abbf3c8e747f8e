/*
 * Whether a command line of runc starts a container.
 *
 * The same decision as cima_runc/runtime/runc_args.py, which says why; tests/fuzz/test_runc_args_native.py
 * holds the two together. Pointers into argv, no memory of its own.
 */
#ifndef CIMA_RUNC_ARGS_H
#define CIMA_RUNC_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "constants.h"

struct runc_args {
	bool starts;		/* may start a container */
	bool certain;		/* every option is known: there is one bundle */
	const char *bundle;	/* where it starts for certain: the bundle's directory */
	const char *config;	/* where it starts for certain: the configuration's name in it */
	const char *log;	/* the value of --log, or NULL; none in doubt */
	const char *log_format;	/* the value of --log-format, or NULL; none in doubt */
};

static const char *const STARTING[] = { STARTING_COMMANDS, NULL };
static const char *const ENDING[] = { ENDING_OPTIONS, NULL };
static const char *const GLOBAL_VALUES[] = { GLOBAL_VALUE_OPTIONS, NULL };
static const char *const GLOBAL_FLAGS[] = { GLOBAL_FLAG_OPTIONS, NULL };
static const char *const COMMAND_VALUES[] = { COMMAND_VALUE_OPTIONS, NULL };
static const char *const COMMAND_FLAGS[] = { COMMAND_FLAG_OPTIONS, NULL };

static bool one_of(const char *arg, size_t length, const char *const *names)
{
	for (; *names; names++)
		if (strlen(*names) == length && memcmp(*names, arg, length) == 0)
			return true;
	return false;
}

static bool is_one_of(const char *arg, const char *const *names)
{
	return one_of(arg, strlen(arg), names);
}

/*
 * Reads options from *at on, up to the first plain argument (*at is then its index).
 * Returns false at the first option that is not known. *ending: --help or --version was met.
 */
static bool read_options(char **argv, size_t count, size_t *at, const char *const *with_value,
			 const char *const *flags, struct runc_args *args, bool *ending)
{
	for (; *at < count; ++*at) {
		const char *arg = argv[*at];
		const char *equals, *value;
		size_t length;

		if (strcmp(arg, "--") == 0) {
			++*at;
			return true;
		}
		if (arg[0] != '-' || arg[1] == '\0')
			return true;
		if (is_one_of(arg, ENDING)) {
			*ending = true;
			return true;
		}
		equals = strchr(arg, '=');
		length = equals ? (size_t)(equals - arg) : strlen(arg);
		if (one_of(arg, length, with_value) && (arg[1] == '-' || !equals)) {
			if (equals) {
				value = equals + 1;
			} else {
				if (++*at >= count)
					return false;
				value = argv[*at];
				if (value[0] == '-' || is_one_of(value, STARTING))
					return false;
			}
			if (one_of(arg, length, (const char *const[]){ "-b", "--bundle", NULL }))
				args->bundle = value;
			else if (one_of(arg, length, (const char *const[]){ "-f", "--config", NULL }))
				args->config = value;
			else if (one_of(arg, length, (const char *const[]){ "--log", NULL }))
				args->log = value;
			else if (one_of(arg, length, (const char *const[]){ "--log-format", NULL }))
				args->log_format = value;
		} else if (!is_one_of(arg, flags)) {
			return false;
		}
	}
	return true;
}

static bool any_option(char **argv, size_t count, size_t at)
{
	for (; at < count; at++)
		if (argv[at][0] == '-')
			return true;
	return false;
}

/* Reads runc's arguments, without the program's own name. */
static struct runc_args parse_runc_args(char **argv, size_t count)
{
	struct runc_args args = { .bundle = "", .config = "" };
	bool ending = false;
	size_t at = 0;

	args.certain = read_options(argv, count, &at, GLOBAL_VALUES, GLOBAL_FLAGS, &args, &ending);
	if (!args.certain) {
		for (at = 0; at < count; at++)
			args.starts |= is_one_of(argv[at], STARTING);
		return args;
	}
	args.starts = !ending && at < count && is_one_of(argv[at], STARTING);
	if (!args.starts)
		return args;
	at++;
	args.certain = read_options(argv, count, &at, COMMAND_VALUES, COMMAND_FLAGS, &args, &ending);
	if (args.certain && (ending || (count - at != 1 && !any_option(argv, count, at))))
		args.starts = false;
	else
		args.certain = args.certain && count - at == 1;
	if (args.bundle[0] == '\0')
		args.bundle = ".";
	if (args.config[0] == '\0')
		args.config = "config.json";
	return args;
}

#endif
