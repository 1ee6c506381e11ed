/*
 * The part of the preloaded library that lets CRIU keep what it has found out
 * about the kernel.
 *
 * CRIU tries out some thirty features of the kernel when it starts, with
 * processes and namespaces of their own, and keeps the outcome in a file in
 * /run; but only where /run is a tmpfs, so that a new kernel finds no old
 * answers. Elsewhere each run tries all of it again. The calls below give CRIU
 * a file that Stasis has chosen instead, whose name stands for the boot and
 * whatever else the answers depend on, and say that it lies in a tmpfs.
 */

#include "preload.h"

#define NR_RENAME 82
#define NR_UNLINK 87
#define NR_FSTATFS 138
#define NR_OPENAT 257

#define AT_FDCWD -100
#define TMPFS_MAGIC 0x01021994
#define LONGEST 256

/* struct statfs64 of sys/statfs.h; only the first field matters here. */
struct statfs {
	long type, rest[14];
};

static char file[LONGEST], temporary[LONGEST];

static void keep(char *at, const char *value)
{
	long n = 0;

	while (value && value[n] && n < LONGEST - 1)
		n++;
	for (long i = 0; value && !value[n] && i < n; i++)
		at[i] = value[i]; /* one that is too long is none */
}

__attribute__((constructor)) static void read_names(void)
{
	keep(file, getenv("STASIS_KERNEL_FILE"));
	keep(temporary, getenv("STASIS_KERNEL_TEMPORARY"));
}

/* The path to use for the one that CRIU names. */
static const char *chosen(const char *path)
{
	if (*file && *temporary && same(path, "/run/criu.kdat"))
		return file;
	if (*file && *temporary && same(path, "/run/criu.kdat.tmp"))
		return temporary;
	return path;
}

__attribute__((visibility("default"))) int open64(const char *path, int flags, u32 mode)
{
	return result(syscall6(NR_OPENAT, AT_FDCWD, (long)chosen(path), flags, mode, 0, 0));
}

__attribute__((visibility("default"))) int fstatfs64(int fd, struct statfs *s)
{
	long ret = syscall6(NR_FSTATFS, fd, (long)s, 0, 0, 0, 0);
	char path[LONGEST];

	if (!ret && *file && path_of(fd, path, sizeof(path)) && (same(path, file) || same(path, temporary)))
		s->type = TMPFS_MAGIC;
	return result(ret);
}

__attribute__((visibility("default"))) int rename(const char *from, const char *to)
{
	return result(syscall6(NR_RENAME, (long)chosen(from), (long)chosen(to), 0, 0, 0, 0));
}

__attribute__((visibility("default"))) int unlink(const char *path)
{
	return result(syscall6(NR_UNLINK, (long)chosen(path), 0, 0, 0, 0, 0));
}
