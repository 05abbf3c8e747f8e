/*
 * Memory that a descriptor of the kernel's own lends, mapped executable: a packet socket's ring, or
 * that of an io_uring. Neither is a file with a digest. Argument: packet or io_uring. Must be seen: a `memory` record, or a file that cannot be named.
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <sys/socket.h>

#include "attack.h"

#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)

static void *packet(void)
{
	struct tpacket_req ring = {.tp_block_size = PAGE, .tp_block_nr = 1, .tp_frame_size = 2048, .tp_frame_nr = 2};
	int fd = must(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)), "socket AF_PACKET");

	must(setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &ring, sizeof(ring)), "PACKET_TX_RING");
	return mapped(mmap(0, PAGE, RWX, MAP_SHARED, fd, 0), "mmap packet");
}

static void *io_uring(void)
{
	struct io_uring_params p = {0};
	int ring = must(syscall(SYS_io_uring_setup, 64, &p), "io_uring_setup");

	return mapped(mmap(0, PAGE, RWX, MAP_SHARED, ring, IORING_OFF_SQES), "mmap io_uring");
}

ATTACK(kernel_memory)
{
	void *code = is_mode(argv, "packet") ? packet() : io_uring();

	memcpy(code, evil_code, sizeof(evil_code));
	call(code);
	return 0;
}
