#include "attack.h"

/* mov $'e', %eax; ret */
const unsigned char evil_code[8] = {0xb8, 'e', 0, 0, 0, 0xc3, 0xcc, 0xcc};
const unsigned char good_code[8] = {0xb8, 'g', 0, 0, 0, 0xc3, 0xcc, 0xcc};

__asm__(".section .rodata\n"
	".global evil_program, evil_program_end, evil_script, evil_script_end\n"
	"evil_program: .incbin \"program.evil\"\nevil_program_end:\n"
	"evil_script: .incbin \"script.evil\"\nevil_script_end:\n"
	".previous\n");

static void end(const char *how, const char *what, int status)
{
	printf("%s: %s: %s\n", how, what, strerror(errno));
	fflush(stdout);
	_exit(status);
}

void refused(const char *what) { end("refused", what, 4); }
void absent(const char *what) { end("absent", what, 3); }

long must(long result, const char *what)
{
	if (result != -1)
		return result;
	if (errno == EPERM || errno == EACCES || errno == ETXTBSY)
		refused(what);
	if (errno == ENOSYS || errno == EOPNOTSUPP || errno == ENODEV || errno == ENOTTY)
		absent(what);
	end("failed", what, 2);
	return -1;
}

void *mapped(void *result, const char *what) { return (void *)must((long)result, what); }

int is_mode(char **argv, const char *mode) { return argv[0] && !strcmp(argv[0], mode); }

int opened(const char *path, int flags) { return must(open(path, flags | O_CLOEXEC, 0755), path); }

static void put(int fd, const void *data, size_t size)
{
	if (must(pwrite(fd, data, size, 0), "pwrite") != (long)size)
		end("failed", "short write", 2);
	close(fd);
}

void write_file(const char *path, const void *data, size_t size, int mode)
{
	int fd = opened(path, O_WRONLY | O_CREAT | O_TRUNC);
	must(fchmod(fd, mode), "fchmod");
	put(fd, data, size);
}

void overwrite(const char *path, const void *data, size_t size) { put(opened(path, O_WRONLY), data, size); }

void write_text(const char *path, const char *text)
{
	int fd = opened(path, O_WRONLY);
	must(write(fd, text, strlen(text)), path);
	close(fd);
}

size_t size_of(const char *path)
{
	struct stat info;
	must(stat(path, &info), path);
	return info.st_size;
}

void *map_code(int protection, int flags)
{
	int fd = opened(CODE, flags & MAP_SHARED && protection & PROT_WRITE ? O_RDWR : O_RDONLY);
	void *code = mapped(mmap(0, PAGE, protection, flags, fd, 0), "mmap " CODE);
	close(fd);
	return code;
}

void call(void *code)
{
	int said = ((int (*)(void))code)();
	printf("ran: %s\n", said == 'e' ? "evil" : said == 'g' ? "good" : "?");
	fflush(stdout);
}

int execute(const char *path)
{
	char *argv[] = {(char *)path, 0}, *envp[] = {0};
	int status;
	pid_t child = must(fork(), "fork");

	if (!child) {
		execve(path, argv, envp);
		must(-1, path);
	}
	waitpid(child, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

char *dirty_mapping(const char *path)
{
	int fd = opened(path, O_RDWR);
	char *bytes = mapped(mmap(0, size_of(path), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), path);

	close(fd);
	*(volatile char *)bytes = *(volatile char *)bytes;
	return bytes;
}

int main(int argc, char **argv)
{
	extern const struct attack __start_attack[], __stop_attack[];

	for (const struct attack *each = __start_attack; argc > 1 && each < __stop_attack; each++)
		if (!strcmp(each->name, argv[1]))
			return each->run(argc - 2, argv + 2);
	fprintf(stderr, "attacks: there is no such attack\n");
	return 2;
}
