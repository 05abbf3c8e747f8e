/*
 * Whether nobody but root may write a bundle, as cima_runc/runtime/bundle_guard.py decides it; that
 * one is asked where this says no, and tells the reason. No symbolic links here.
 */
#ifndef CIMA_BUNDLE_GUARD_H
#define CIMA_BUNDLE_GUARD_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "installed.h"

/* Whether there is none; the bits of the group's rights are the most that one may give (acl(5)). */
static bool has_no_list(const char *path)
{
	return lgetxattr(path, "system.posix_acl_access", NULL, 0) < 0 &&
	       (errno == ENODATA || errno == EOPNOTSUPP);
}

static bool is_roots(const char *path, const struct stat *status)
{
	if (status->st_uid != 0)
		return false;
	if (S_ISDIR(status->st_mode) && (status->st_mode & S_ISVTX) != 0)
		return true;
	return (status->st_mode & S_IWOTH) == 0 &&
	       ((status->st_mode & S_IWGRP) == 0 || (status->st_gid == 0 && has_no_list(path)));
}

/* Writes the bundle's path to real; false where it has links in it, or others may write there. */
static bool is_callers_alone(const char *bundle, char *real, size_t size)
{
	char given[PATH_MAX], config[PATH_MAX];
	struct stat status;
	size_t length;
	char *at;

	if (size < PATH_MAX || !realpath(bundle, real))
		return false;
	if (strcmp(bundle, ".") != 0) {
		if (!join(given, sizeof given, bundle, ""))
			return false;
		for (length = strlen(given); length > 1 && given[length - 1] == '/';)
			given[--length] = '\0';
		if (strcmp(given, real) != 0)
			return false;
	}
	if (lstat("/", &status) != 0 || !is_roots("/", &status))
		return false;
	for (at = real + 1;; at++) {
		if (*at != '/' && *at != '\0')
			continue;
		char end = *at;

		*at = '\0';
		bool known = lstat(real, &status) == 0 && S_ISDIR(status.st_mode) &&
			     is_roots(real, &status);
		*at = end;
		if (!known)
			return false;
		if ((status.st_mode & (S_IXGRP | S_IXOTH)) == 0)
			return true;
		if (end == '\0')
			break;
	}
	return join(config, sizeof config, real, "/config.json") && lstat(config, &status) == 0 &&
	       S_ISREG(status.st_mode) && is_roots(config, &status);
}

#endif
