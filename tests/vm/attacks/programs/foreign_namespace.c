/*
 * A mount namespace that a process of the host's made, given to the container as an open file together
 * with its user namespace: the container's task enters both, and executes what it finds there.
 * It connects to the socket /data/namespaces, which sends both descriptors.
 * Must be seen: the digest of the program that ran there (/bin/echo of the host's: the image has none).
 */
#include <sys/socket.h>
#include <sys/un.h>

#include "attack.h"

ATTACK(foreign_namespace)
{
	struct sockaddr_un address = {AF_UNIX, "/data/namespaces"};
	char room[CMSG_SPACE(2 * sizeof(int))], byte;
	struct iovec io = {&byte, 1};
	struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	int channel = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket"), *fds;
	char *argv_of[] = {"/bin/echo", "ran: evil", 0}, *none[] = {0};

	must(connect(channel, (void *)&address, sizeof(address)), "connect");
	must(recvmsg(channel, &message, 0), "recvmsg");
	fds = (int *)CMSG_DATA(CMSG_FIRSTHDR(&message));
	must(setns(fds[0], CLONE_NEWUSER), "setns user");
	must(setns(fds[1], CLONE_NEWNS), "setns mnt");
	truth("/bin/echo");
	must(execve("/bin/echo", argv_of, none), "execve");
	return 0;
}
