/*
 * The OCI hook STAGE (prestart, settled, poststart or poststop): hands the runtime's state to the agent and
 * fails where the agent refuses. One program a stage; STAGE is set when it is compiled.
 *
 * Framing as in cima_runc/runtime/agent_socket.py. prestart waits until the container is registered, poststop
 * until the agent has let go of its namespace, so that its file systems can be used again, unless it
 * shows that it has; poststart tells of what has happened, and waits for nothing.
 *
 * An agent that was killed leaves its socket, and comes again: prestart asks until its time is spent.
 * Where there is no socket, or the time is spent, cima_runc/runtime/hook.py takes over with the same state: it
 * asks once more, and knows whether the container may start.
 * Its settings come in its environment, which the shim sets.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "../native/constants.h"
#include "../native/installed.h"

#define OWN_NAME "/libexec/cima/hooks/" STAGE
#define HOOK_PY "/libexec/cima/hook.py"
#define STATE_MAX (HOOK_STATE + 1)	/* the agent refuses what is longer */
#define HEADER_MAX 64
#define ID_MAX 256
#define COMES_BACK (strcmp(STAGE, "prestart") == 0 || strcmp(STAGE, "settled") == 0)
#define PREFIX_MAX (3 * PATH_MAX)	/* the bundle, the configuration and its digest, a NUL after each */
#define PAUSE_MS 50			/* between two tries to reach an agent that was killed */
#define ERROR_MAX 4096			/* bytes of the agent's reason that are shown */

/* A request: room for its header and for what is told of the configuration, and the state. */
static char request[HEADER_MAX + PREFIX_MAX + STATE_MAX];
static char *const state = request + HEADER_MAX + PREFIX_MAX;

/* GONE: there is a socket, but nobody behind it, or not any more. SILENT: no answer in time. */
enum answer { OK, REFUSED, UNAVAILABLE, GONE, SILENT };

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static size_t read_state(void)
{
	size_t length = 0;

	while (length < STATE_MAX) {
		ssize_t got = read(STDIN_FILENO, state + length, STATE_MAX - length);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	return length;
}

static const char *const TOLD[] = { "CIMA_CONFIG_SHA256", "CIMA_CONFIG", "CIMA_BUNDLE" };

/* Whether there is room to tell which configuration it is: unsaid, another one could be taken for it. */
static bool can_tell_config(void)
{
	for (size_t i = 0; i < sizeof TOLD / sizeof *TOLD; i++) {
		const char *value = getenv(TOLD[i]);

		if (value && strlen(value) >= PATH_MAX)
			return false;
	}
	return true;
}

/* Puts which configuration it is just before the state; returns how many bytes that takes. */
static size_t tell_config(void)
{
	size_t told = 0;

	for (size_t i = 0; i < sizeof TOLD / sizeof *TOLD; i++) {
		const char *value = getenv(TOLD[i]);
		size_t size = value ? strlen(value) + 1 : 0;

		if (size < 2)
			return 0;
		told += size;
		memcpy(state - told, value, size);
	}
	return told;
}

static bool send_all(int fd, const char *data, size_t length)
{
	while (length > 0) {
		ssize_t done = send(fd, data, length, MSG_NOSIGNAL);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return false;
		data += done;
		length -= (size_t)done;
	}
	return true;
}

/* Copies the container's id out of the state; false where none is found that is a file's name. */
static bool find_id(size_t length, char *id, size_t size)
{
	static const char key[] = "\"id\"";
	const char *at = memmem(state, length, key, sizeof key - 1);
	const char *end = state + length;
	size_t have = 0;

	if (!at)
		return false;
	for (at += sizeof key - 1; at < end && strchr(" \t\r\n:", *at); at++)
		;
	if (at == end || *at++ != '"')
		return false;
	for (; at < end && *at != '"'; at++) {
		if (have + 1 >= size || *at == '/' || *at == '\\' || *at == '\0')
			return false;
		id[have++] = *at;
	}
	id[have] = '\0';
	return at < end && have > 0;
}

/*
 * Whether there is an answer to wait for. poststart only tells; poststop has nothing to wait for
 * where the agent shows which containers it holds, and this one is not among them.
 */
static bool waits(const char *socket_path, size_t length)
{
	char held[PATH_MAX], id[ID_MAX];
	int directory, found;

	if (strcmp(STAGE, "poststop") != 0)
		return strcmp(STAGE, "poststart") != 0;
	if (!find_id(length, id, sizeof id) || !join(held, sizeof held, socket_path, HELD_SUFFIX))
		return true;
	directory = open(held, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0)
		return true;
	found = faccessat(directory, id, F_OK, 0);
	found = found == 0 || errno != ENOENT;
	close(directory);
	return found;
}

/* Asks the agent, for at most ms; text holds what it says, without the header. */
static enum answer ask_agent(const char *path, long long ms, size_t length, char *text, size_t size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval timeout = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
	char header[HEADER_MAX];
	size_t have = 0, told = tell_config();
	char *start = state - told;
	char *body;
	int fd, head;

	if (!join(address.sun_path, sizeof address.sun_path, path, ""))
		return UNAVAILABLE;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return UNAVAILABLE;
	head = snprintf(header, sizeof header, "%s %zu\n", STAGE, told + length);
	if (head < 0 || (size_t)head >= sizeof header ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) != 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) != 0 ||
	    connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
		enum answer answer = errno == ECONNREFUSED ? GONE : UNAVAILABLE;

		close(fd);
		return answer;
	}
	/* In one piece, so that the agent wakes once. */
	memcpy(start - head, header, (size_t)head);
	if (!send_all(fd, start - head, (size_t)head + told + length)) {
		close(fd);
		return GONE;
	}
	if (!waits(path, length)) {
		close(fd);
		return OK;
	}
	while (have < size - 1) {
		ssize_t got = recv(fd, text + have, size - 1 - have, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			close(fd);
			return SILENT;
		}
		if (got <= 0)
			break;
		have += (size_t)got;
	}
	close(fd);
	text[have] = '\0';
	if (!have)
		return GONE;
	body = memchr(text, '\n', have < HEADER_MAX ? have : HEADER_MAX);
	if (!body)
		return UNAVAILABLE;
	if (strcmp(text, "ok 0\n") == 0)
		return OK;
	if (strncmp(text, "error ", strlen("error ")) != 0)
		return UNAVAILABLE;
	memmove(text, body + 1, have - (size_t)(body + 1 - text) + 1);
	return REFUSED;
}

/* Asks the agent, again where it was killed, until its time is spent. */
static enum answer ask_until(long long deadline, const char *path, size_t length, char *text,
			     size_t size)
{
	const struct timespec pause = { .tv_nsec = PAUSE_MS * 1000000L };

	for (;;) {
		long long left = deadline - now_ms();
		enum answer answer = ask_agent(path, left > 1 ? left : 1, length, text, size);

		if (answer != GONE || !COMES_BACK)
			return answer;
		if (now_ms() + PAUSE_MS >= deadline)
			return SILENT;
		nanosleep(&pause, NULL);
	}
}

/* Prints text on standard error with everything but printable ASCII escaped. */
static void print_escaped(const char *text)
{
	for (; *text; text++) {
		unsigned char byte = (unsigned char)*text;

		if (byte == '\\')
			fputs("\\\\", stderr);
		else if (byte >= 0x20 && byte < 0x7f)
			fputc(byte, stderr);
		else
			fprintf(stderr, "\\x%02x", byte);
	}
}

/* Becomes hook.py, with the state that was read on its standard input; returns where it cannot. */
static void become_python(size_t length)
{
	char python[PATH_MAX], script[PATH_MAX];
	struct installed own;
	size_t written = 0;
	int fd;

	if (!find_installed(&own, OWN_NAME) || !find_python(&own, python, sizeof python) ||
	    !join(script, sizeof script, own.prefix, HOOK_PY))
		return;
	fd = memfd_create("state", MFD_CLOEXEC);
	while (fd >= 0 && written < length) {
		ssize_t done = write(fd, state + written, length - written);

		if (done <= 0)
			return;
		written += (size_t)done;
	}
	if (fd < 0 || lseek(fd, 0, SEEK_SET) != 0 || dup2(fd, STDIN_FILENO) != STDIN_FILENO)
		return;
	execl(python, python, "-I", "-S", "-X", "utf8", script, STAGE, (char *)NULL);
}

int main(void)
{
	char text[HEADER_MAX + ERROR_MAX];
	const char *path = getenv("CIMA_SOCKET"), *limit = getenv("CIMA_TIMEOUT");
	int seconds = limit ? atoi(limit) : 60;
	size_t length = read_state();
	/* A little less than the runtime's own limit, so that a reason can still be told. */
	long long deadline = now_ms() + 1000LL * seconds - 1500;

	if (!path)
		path = "/run/cima/agent.sock";
	/* What has no room here has it in Python, and the agent says what is wrong with it. */
	switch (can_tell_config() ? ask_until(deadline, path, length, text, sizeof text) : UNAVAILABLE) {
	case OK:
		return 0;
	case REFUSED:
		fputs("cima-runc: the agent refuses: ", stderr);
		print_escaped(text);
		fputc('\n', stderr);
		return 1;
	case SILENT:
		/* The time is spent: Python's turn must be short. */
		setenv("CIMA_TIMEOUT", "1", 1);
		break;
	case UNAVAILABLE:
	case GONE:
		break;
	}
	become_python(length);
	fprintf(stderr, "cima-runc: the hook " STAGE " cannot start its Python: %s\n",
		strerror(errno));
	return 1;
}
