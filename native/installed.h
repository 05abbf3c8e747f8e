/*
 * Where this program is installed, from the kernel and not from argv[0], and its Python.
 */
#ifndef CIMA_INSTALLED_H
#define CIMA_INSTALLED_H

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct installed {
	char prefix[PATH_MAX];	/* of the installation, without a slash at its end */
	dev_t dev;		/* of this program's own file */
	ino_t ino;
};

/* Joins two strings; false where the result does not fit. */
static bool join(char *to, size_t size, const char *first, const char *second)
{
	int length = snprintf(to, size, "%s%s", first, second);

	return length >= 0 && (size_t)length < size;
}

/* Fills *own for the program that is installed as PREFIX and name; false where it is not. */
static bool find_installed(struct installed *own, const char *name)
{
	struct stat status;
	size_t tail = strlen(name), length;
	ssize_t found = readlink("/proc/self/exe", own->prefix, sizeof own->prefix - 1);

	if (found < 0 || stat("/proc/self/exe", &status) != 0)
		return false;
	length = (size_t)found;
	if (length < tail || memcmp(own->prefix + length - tail, name, tail) != 0)
		return false;
	own->prefix[length - tail] = '\0';
	own->dev = status.st_dev;
	own->ino = status.st_ino;
	return true;
}

/* The interpreter that the package is installed for: its own environment's, else the system's. */
static bool find_python(const struct installed *own, char *path, size_t size)
{
	if (!join(path, size, own->prefix, "/bin/python3"))
		return false;
	return access(path, X_OK) == 0 || join(path, size, "/usr/bin/python3", "");
}

#endif
