/*
 * cima-runc: what engines call instead of runc.
 *
 * Whatever starts no container becomes runc at once. What starts one is prepared first, that is,
 * its bundle gets our hooks: by the agent, which is warm, over its socket; or, where no agent
 * answers or anything at all is in doubt, by cima_runc/runtime/shim.py in a Python of its own. Both run
 * the same code. Then this process becomes runc, with its environment, descriptors, signals and
 * working directory as they came.
 *
 * Not steered by environment variables. docs/adr/0010-native-launcher.md says how it knows the
 * settings without reading TOML.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bundle_guard.h"
#include "constants.h"
#include "installed.h"
#include "runc_args.h"

#define OWN_NAME "/bin/cima-runc"
#define PREPARE_PY "/libexec/cima/prepare.py"
#define HOOKS_DIR "/libexec/cima/hooks"
#define COMPANION_MAX 4096
#define RUNTIMES_MAX 16
#define ARGS_MAX 4096
#define AGENT_SECONDS 2
#define LOG_LINE_MAX 1024

struct settings {
	const char *socket;
	const char *runtimes[RUNTIMES_MAX];
	size_t count;
};

static const char *const SEARCH_PATH[] = {
	"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", NULL
};

static void write_all(int fd, const char *text)
{
	size_t length = strlen(text);

	while (length > 0) {
		ssize_t done = write(fd, text, length);

		if (done <= 0)
			return;
		text += done;
		length -= (size_t)done;
	}
}

/*
 * Says why not, as runc would: on standard error and in the engine's log in its format. what and
 * why are our own words or strerror's: nothing in them needs escaping.
 */
static int fail(const struct runc_args *args, const char *what, const char *why)
{
	char line[LOG_LINE_MAX], entry[LOG_LINE_MAX * 2], now[64];
	time_t seconds = time(NULL);
	struct tm parts;
	int log;

	if (snprintf(line, sizeof line, "cima-runc: %s: %s", what, why) < 0)
		return 1;
	write_all(STDERR_FILENO, line);
	write_all(STDERR_FILENO, "\n");
	if (!args->log || !args->log[0] || !gmtime_r(&seconds, &parts) ||
	    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
		return 1;
	log = open(args->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (log < 0)
		return 1;
	if (args->log_format && strcmp(args->log_format, "json") == 0)
		snprintf(entry, sizeof entry,
			 "{\"level\":\"error\",\"msg\":\"%s\",\"time\":\"%s\"}\n", line, now);
	else
		snprintf(entry, sizeof entry, "time=\"%s\" level=error msg=\"%s\"\n", now, line);
	write_all(log, entry);
	close(log);
	return 1;
}

/*
 * Reads the settings that we need: the built-in ones where there is no settings file, otherwise
 * those that Python left in the companion file, if they are of this very settings file.
 */
static bool read_settings(struct settings *settings, char *buffer, size_t size)
{
	struct stat file, companion;
	char expected[256];
	char *at, *end;
	ssize_t length;
	int fd, head;

	settings->count = 0;
	if (stat(SETTINGS_FILE, &file) != 0) {
		if (errno != ENOENT)
			return false;
		settings->socket = "/run/cima/agent.sock";
		settings->runtimes[settings->count++] = "runc";
		settings->runtimes[settings->count++] = "crun";
		return true;
	}
	fd = open(COMPANION_FILE, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (fstat(fd, &companion) != 0 || !S_ISREG(companion.st_mode) || companion.st_uid != 0 ||
	    (companion.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
		close(fd);
		return false;
	}
	length = read(fd, buffer, size - 1);
	close(fd);
	if (length <= 0 || (size_t)length >= size - 1 || buffer[length - 1] != '\n' ||
	    memchr(buffer, '\0', (size_t)length) != NULL)
		return false;
	buffer[length] = '\0';
	head = snprintf(expected, sizeof expected, "%s %llu %llu %lld %lld.%09ld %lld.%09ld\n",
			COMPANION_MAGIC, (unsigned long long)file.st_dev,
			(unsigned long long)file.st_ino, (long long)file.st_size,
			(long long)file.st_mtim.tv_sec, file.st_mtim.tv_nsec,
			(long long)file.st_ctim.tv_sec, file.st_ctim.tv_nsec);
	if (head < 0 || (size_t)head >= sizeof expected || strncmp(buffer, expected, (size_t)head) != 0)
		return false;
	settings->socket = NULL;
	for (at = buffer + head; *at; at = end + 1) {
		end = strchr(at, '\n');
		if (!end || end == at)
			return false;
		*end = '\0';
		if (!settings->socket)
			settings->socket = at;
		else if (settings->count < RUNTIMES_MAX)
			settings->runtimes[settings->count++] = at;
		else
			return false;
	}
	return settings->count > 0;
}

static bool is_runtime(const char *path, const struct installed *own)
{
	struct stat status;

	return stat(path, &status) == 0 && S_ISREG(status.st_mode) &&
	       !(status.st_dev == own->dev && status.st_ino == own->ino) &&
	       access(path, X_OK) == 0;
}

/* Finds the first low-level runtime that is there and is not ourselves. */
static bool find_runtime(const struct settings *settings, const struct installed *own, char *path,
			 size_t size)
{
	for (size_t i = 0; i < settings->count; i++) {
		const char *name = settings->runtimes[i];

		if (name[0] == '/') {
			if (join(path, size, name, "") && is_runtime(path, own))
				return true;
			continue;
		}
		for (const char *const *dir = SEARCH_PATH; *dir; dir++) {
			int length = snprintf(path, size, "%s/%s", *dir, name);

			if (length > 0 && (size_t)length < size && is_runtime(path, own))
				return true;
		}
	}
	return false;
}

/*
 * Asks the agent to put our hooks into the bundle, which only root may write. What it gets is the
 * open directory, so that no path can mean another one in its mount namespace, and the path for the
 * hooks to tell; what it answers is which file is now the
 * configuration, so that we see that it is ours. False: nobody answers, or it declines.
 */
static bool ask_agent(const struct settings *settings, const struct installed *own, const char *bundle)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct timeval timeout = { .tv_sec = AGENT_SECONDS };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char path[PATH_MAX], real[PATH_MAX], words[2 * PATH_MAX], answer[128], expected[128];
	struct msghdr message = { 0 };
	struct cmsghdr *header;
	struct stat status;
	struct iovec body;
	ssize_t length;
	int fd, directory;
	bool prepared = false;

	if (!join(address.sun_path, sizeof address.sun_path, settings->socket, BUNDLES_SUFFIX) ||
	    !join(words, PATH_MAX, own->prefix, HOOKS_DIR) ||
	    !join(path, sizeof path, bundle, "/config.json") ||
	    !is_callers_alone(bundle, real, sizeof real))
		return false;
	length = (ssize_t)strlen(words) + 1;
	memcpy(words + length, real, strlen(real));
	length += (ssize_t)strlen(real);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	directory = open(bundle, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0)
		goto done;
	body = (struct iovec){ .iov_base = words, .iov_len = (size_t)length };
	message.msg_iov = &body;
	message.msg_iovlen = 1;
	message.msg_control = control.bytes;
	message.msg_controllen = sizeof control.bytes;
	header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &directory, sizeof(int));
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) != 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) != 0 ||
	    connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
	    sendmsg(fd, &message, MSG_NOSIGNAL) != (ssize_t)body.iov_len)
		goto done;
	length = recv(fd, answer, sizeof answer - 1, 0);
	if (length <= 0 || stat(path, &status) != 0)
		goto done;
	answer[length] = '\0';
	snprintf(expected, sizeof expected, "ok %llu %llu", (unsigned long long)status.st_dev,
		 (unsigned long long)status.st_ino);
	prepared = strcmp(answer, expected) == 0;
done:
	if (directory >= 0)
		close(directory);
	close(fd);
	return prepared;
}

/*
 * Runs prepare.py, which puts the hooks in if need be and answers with the runtime's path and a
 * newline. False: it has said why the container cannot start, or *why is set to that.
 */
static bool ask_python(const struct installed *own, int argc, char **argv, char *runtime, size_t size,
		       const char **why)
{
	char python[PATH_MAX], script[PATH_MAX];
	char *command[ARGS_MAX + 8];
	size_t count = 0, length = 0;
	int pipe_fds[2];
	pid_t child;

	*why = NULL;
	if (argc > ARGS_MAX) {
		*why = "more arguments than any engine gives";
		return false;
	}
	if (!find_python(own, python, sizeof python) ||
	    !join(script, sizeof script, own->prefix, PREPARE_PY)) {
		*why = strerror(ENAMETOOLONG);
		return false;
	}
	command[count++] = python;
	command[count++] = (char[]){ "-I" };
	command[count++] = (char[]){ "-S" };
	command[count++] = (char[]){ "-X" };
	command[count++] = (char[]){ "utf8" };
	command[count++] = script;
	for (int i = 1; i < argc; i++)
		command[count++] = argv[i];
	command[count] = NULL;

	if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
		*why = strerror(errno);
		return false;
	}
	child = fork();
	if (child < 0) {
		*why = strerror(errno);
		close(pipe_fds[0]);
		close(pipe_fds[1]);
		return false;
	}
	if (child == 0) {
		/* dup2 onto itself would keep close-on-exec. */
		if (pipe_fds[1] == STDOUT_FILENO ? fcntl(STDOUT_FILENO, F_SETFD, 0) == 0
						 : dup2(pipe_fds[1], STDOUT_FILENO) >= 0)
			execv(python, command);
		_exit(127);
	}
	close(pipe_fds[1]);
	while (length < size) {
		ssize_t got = read(pipe_fds[0], runtime + length, size - length);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	close(pipe_fds[0]);
	/* Its answer is what counts: where SIGCHLD is ignored there is no status. */
	int status = 0;
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	if (length >= 3 && length < size && runtime[0] == '/' && runtime[length - 1] == '\n') {
		runtime[length - 1] = '\0';
		return true;
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != SAID_WHY)
		*why = "its Python failed, install the package again";
	return false;
}

/* Whether it may start a container from a checkpoint, which not every runtime may. */
static bool may_restore(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], RESTORE_COMMAND) == 0)
			return true;
	return false;
}

int main(int argc, char **argv)
{
	struct settings settings;
	struct runc_args args;
	struct installed own;
	char companion[COMPANION_MAX + 1], runtime[PATH_MAX];
	const char *why;
	bool ready = false;

	if (argc < 1)
		return 1;
	args = parse_runc_args(argv + 1, (size_t)argc - 1);
	if (!find_installed(&own, OWN_NAME))
		return fail(&args, "not installed as PREFIX" OWN_NAME, "install the package again");
	if (read_settings(&settings, companion, sizeof companion) &&
	    find_runtime(&settings, &own, runtime, sizeof runtime)) {
		if (!args.starts)
			ready = true;
		else if (args.certain && strcmp(args.config, "config.json") == 0 &&
			 !may_restore(argc, argv))
			ready = ask_agent(&settings, &own, args.bundle);
	}
	if (!ready && !ask_python(&own, argc, argv, runtime, sizeof runtime, &why))
		return why ? fail(&args, "the container cannot be measured", why) : 1;
	argv[0] = strrchr(runtime, '/') + 1;
	execv(runtime, argv);
	return fail(&args, "the low-level runtime cannot be executed", strerror(errno));
}
