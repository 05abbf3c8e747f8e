/*
 * What the attacks share. Each is root in a container whose image holds this program, and three honest
 * files in /data: CODE (machine code, as a library has it), PROGRAM and SCRIPT. It gets foreign code to
 * run in their place; `ran: evil` on stdout says that it did. `true: DIGEST` is the SHA-256 of a file as
 * it was when it ran, which is what a record must show if one shows anything.
 */
#ifndef ATTACK_H
#define ATTACK_H
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CODE "/data/code"
#define PROGRAM "/data/program"
#define SCRIPT "/data/script"
#define PAGE 4096

struct attack {
	const char *name;
	int (*run)(int argc, char **argv);
};

/* ATTACK(name) { ... }: `attacks name ARG...` runs it with argv[0] the first ARG. */
#define ATTACK(id)                                                                                \
	static int id(int argc, char **argv);                                                     \
	static const struct attack attack_##id                                                    \
		__attribute__((used, section("attack"), aligned(16))) = {#id, id};                \
	static int id(int argc __attribute__((unused)), char **argv __attribute__((unused)))

/* The foreign machine code, and the foreign program and script: as large as the honest ones. */
extern const unsigned char evil_code[8];
extern const unsigned char evil_program[], evil_program_end[];
extern const unsigned char evil_script[], evil_script_end[];
extern const unsigned char good_code[8];

/* The result, or the end of the attack: `refused`, `absent` (no such thing in this kernel) or `failed`. */
long must(long result, const char *what);
void *mapped(void *result, const char *what);
void refused(const char *what);
void absent(const char *what);
int is_mode(char **argv, const char *mode);

int opened(const char *path, int flags);
void write_file(const char *path, const void *data, size_t size, int mode);
void overwrite(const char *path, const void *data, size_t size);
void write_text(const char *path, const char *text);
void truth(const char *path);

/* A page of CODE. */
void *map_code(int protection, int flags);
/* Run machine code and print what it is. */
void call(void *code);
/* Execute it in a child; the child's exit status. */
int execute(const char *path);
/* A shared writable mapping of the file that is dirty already; no descriptor is left. */
char *dirty_mapping(const char *path);
size_t size_of(const char *path);
#endif
