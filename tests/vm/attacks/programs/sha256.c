/* SHA-256 (FIPS 180-4): what a file held when it ran, said by the attack itself. */
#include "attack.h"

static uint32_t k[64];

static uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

/* The first 32 bits of the fractional part of a root of a prime. */
static uint32_t fraction(int prime, int cube)
{
	/* Newton's method on 64.64 fixed point would be exact; long double has 64 bits, of which 36 are asked for. */
	long double x = prime;
	for (int i = 0; i < 60; i++)
		x = cube ? (2 * x + prime / (x * x)) / 3 : (x + prime / x) / 2;
	return (uint32_t)((x - (int)x) * 4294967296.0L);
}

static void block(uint32_t h[8], const unsigned char *data)
{
	uint32_t w[64], v[8];

	for (int i = 0; i < 16; i++)
		w[i] = data[4 * i] << 24 | data[4 * i + 1] << 16 | data[4 * i + 2] << 8 | data[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + (rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
		       (rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(v, h, sizeof(v));
	for (int i = 0; i < 64; i++) {
		uint32_t a = v[0], e = v[4];
		uint32_t one = v[7] + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
		uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
		memmove(v + 1, v, 28);
		v[4] += one;
		v[0] = one + two;
	}
	for (int i = 0; i < 8; i++)
		h[i] += v[i];
}

void truth(const char *path)
{
	uint32_t h[8];
	unsigned char data[64];
	uint64_t total = 0;
	int fd = opened(path, O_RDONLY), primes = 0;
	ssize_t got;

	for (int n = 2; primes < 64; n++) {
		int prime = 1;
		for (int d = 2; d * d <= n; d++)
			prime &= n % d != 0;
		if (!prime)
			continue;
		if (primes < 8)
			h[primes] = fraction(n, 0);
		k[primes++] = fraction(n, 1);
	}
	while ((got = read(fd, data, 64)) == 64) {
		block(h, data);
		total += 64;
	}
	must(got, "read");
	total += got;
	memset(data + got, 0, 64 - got);
	data[got] = 0x80;
	if (got >= 56) {
		block(h, data);
		memset(data, 0, 64);
	}
	for (int i = 0; i < 8; i++)
		data[56 + i] = total * 8 >> (56 - 8 * i);
	block(h, data);
	close(fd);
	printf("true: ");
	for (int i = 0; i < 8; i++)
		printf("%08x", h[i]);
	printf("\n");
	fflush(stdout);
}
