/* Open files: offsets and flags, deleted ones, locks. */
#include "subject.h"
#include <sys/file.h>

#define BYTES 100000

static int make_file(const char *path, uint64_t key)
{
	char *buf = malloc(BYTES);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0640);
	if (fd < 0)
		die_errno("%s", path);
	bytes_fill(buf, BYTES, key);
	write_full(fd, buf, BYTES);
	free(buf);
	return fd;
}

static void content(const char *what, int fd, uint64_t key)
{
	static char buf[BYTES];
	if (pread(fd, buf, BYTES, 0) != BYTES || bytes_wrong(buf, BYTES, key))
		bad("%s: its content is wrong", what);
}

/* ---- files: offsets, flags, and a descriptor that shares its offset ---- */

static int plain, copy, appending, path_only, folder, cloexec;

static void files_setup(struct args *a)
{
	(void)a;
	const char *path = in_dir("plain");
	plain = make_file(path, 1);
	lseek(plain, 4711, SEEK_SET);
	copy = dup(plain);
	appending = open(path, O_WRONLY | O_APPEND | O_NONBLOCK);
	path_only = open(path, O_PATH);
	folder = open(in_dir("."), O_RDONLY | O_DIRECTORY);
	/* A number far above the others. */
	cloexec = fcntl(plain, F_DUPFD_CLOEXEC, 300);
	if (copy < 0 || appending < 0 || path_only < 0 || folder < 0 || cloexec < 300)
		die_errno("open");
}

static void files_check(void)
{
	struct stat st, st2;
	content("plain file", plain, 1);
	want("offset", lseek(plain, 0, SEEK_CUR), 4711);
	/* A duplicate has the same offset, moved through either. */
	lseek(copy, 10, SEEK_CUR);
	want("offset through the duplicate", lseek(plain, 0, SEEK_CUR), 4721);
	lseek(plain, 4711, SEEK_SET);
	want("offset of the high descriptor", lseek(cloexec, 0, SEEK_CUR), 4711);
	want("close-on-exec", fcntl(cloexec, F_GETFD), FD_CLOEXEC);
	want("no close-on-exec", fcntl(plain, F_GETFD), 0);
	want("append flags", fcntl(appending, F_GETFL) & (O_APPEND | O_NONBLOCK | O_ACCMODE), O_APPEND | O_NONBLOCK | O_WRONLY);
	want("O_PATH", fcntl(path_only, F_GETFL) & O_PATH, O_PATH);
	if (fstat(folder, &st) || !S_ISDIR(st.st_mode) || faccessat(folder, "plain", R_OK, 0))
		bad("the folder's descriptor is wrong");
	if (fstat(plain, &st) || fstat(path_only, &st2) || st.st_ino != st2.st_ino)
		bad("descriptors show different files");
}

const struct feature feature_files = {
	.name = "files", .help = "offsets, flags, duplicates, O_PATH, a folder", .setup = files_setup, .check = files_check,
};

/* ---- deleted: a file with no name left, still read and written, and mapped ---- */

static int deleted;
static char *deleted_map;
static uint64_t deleted_key;

static void deleted_setup(struct args *a)
{
	(void)a;
	const char *path = in_dir("deleted");
	deleted = make_file(path, 2);
	deleted_key = 2;
	lseek(deleted, 99, SEEK_SET);
	deleted_map = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, deleted, 0);
	if (deleted_map == MAP_FAILED || unlink(path))
		die_errno("%s", path);
}

static void deleted_check(void)
{
	static char buf[BYTES];
	struct stat st;
	content("deleted file", deleted, deleted_key);
	if (bytes_wrong(deleted_map, BYTES, deleted_key))
		bad("the mapping of the deleted file is wrong");
	want("offset", lseek(deleted, 0, SEEK_CUR), 99);
	if (fstat(deleted, &st))
		bad("fstat: %s", strerror(errno));
	want("links", st.st_nlink, 0);
	want("mode", st.st_mode & 0777, 0640);
	/* It has no name: all that it holds is in the checkpoint, and so it may change from check to check. */
	bytes_fill(buf, BYTES, ++deleted_key);
	if (pwrite(deleted, buf, BYTES, 0) != BYTES)
		bad("write: %s", strerror(errno));
}

const struct feature feature_deleted = {
	.name = "deleted", .help = "a deleted file, open, mapped and written again at each check", .setup = deleted_setup,
	.check = deleted_check,
};

/* ---- linkremap: the name it was opened by is gone, another name is left ---- */

static int relinked;

static void linkremap_setup(struct args *a)
{
	(void)a;
	const char *path = in_dir("first-name");
	relinked = make_file(path, 3);
	if (link(path, in_dir("second-name")) || unlink(path))
		die_errno("%s", path);
}

static void linkremap_check(void)
{
	struct stat st, named;
	content("file with a name less", relinked, 3);
	if (fstat(relinked, &st) || stat(in_dir("second-name"), &named) || st.st_ino != named.st_ino)
		bad("it is not the file of the second name any more");
	want("links", st.st_nlink, 1);
}

const struct feature feature_linkremap = {
	.name = "linkremap", .help = "a file whose name at opening is gone, with another left (--link-remap)",
	.setup = linkremap_setup, .check = linkremap_check,
};

/* ---- locks ---- */

static int flock_fd, posix_fd, ofd_fd;
static const char *lock_path[3];

static struct flock range(short type, off_t start, off_t len)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
}

static void locks_setup(struct args *a)
{
	(void)a;
	struct flock w = range(F_WRLCK, 100, 50), r = range(F_RDLCK, 1000, 0), o = range(F_WRLCK, 7, 7);
	lock_path[0] = in_dir("flock");
	lock_path[1] = in_dir("posix-lock");
	lock_path[2] = in_dir("ofd-lock");
	flock_fd = make_file(lock_path[0], 4);
	posix_fd = make_file(lock_path[1], 5);
	ofd_fd = make_file(lock_path[2], 6);
	if (flock(flock_fd, LOCK_EX) || fcntl(posix_fd, F_SETLK, &w) || fcntl(posix_fd, F_SETLK, &r) ||
	    fcntl(ofd_fd, F_OFD_SETLK, &o))
		die_errno("lock");
}

/* What a stranger sees. Returns the number of the first lock that is not as it was, or 0. */
static int locks_seen(pid_t owner)
{
	struct flock l = range(F_WRLCK, 0, 0);
	int fd = open(lock_path[0], O_RDWR);
	if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
		return 1;
	fd = open(lock_path[1], O_RDWR);
	if (fcntl(fd, F_GETLK, &l) || l.l_type != F_WRLCK || l.l_start != 100 || l.l_len != 50 || l.l_pid != owner)
		return 2;
	l = range(F_WRLCK, 500, 0);
	if (fcntl(fd, F_GETLK, &l) || l.l_type != F_RDLCK || l.l_start != 1000 || l.l_len != 0 || l.l_pid != owner)
		return 3;
	l = range(F_RDLCK, 1000, 0);
	if (fcntl(fd, F_GETLK, &l) || l.l_type != F_UNLCK)
		return 4;
	fd = open(lock_path[2], O_RDWR);
	l = range(F_WRLCK, 0, 0);
	if (fcntl(fd, F_OFD_GETLK, &l) || l.l_type != F_WRLCK || l.l_start != 7 || l.l_len != 7)
		return 5;
	return 0;
}

static void locks_check(void)
{
	int status;
	/* Closing any descriptor of a file drops a process's own POSIX locks on it, so another process has to look. */
	pid_t owner = getpid(), pid = fork();
	if (pid == 0)
		_exit(locks_seen(owner));
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		bad("could not look");
	else if (WEXITSTATUS(status))
		bad("%s", (const char *[]){ "", "the flock is gone", "the POSIX write lock is gone or differs",
					    "the POSIX read lock is gone or differs", "the read lock excludes readers",
					    "the open-file lock is gone or differs" }[WEXITSTATUS(status)]);
}

const struct feature feature_locks = {
	.name = "locks", .help = "flock, POSIX ranges, open-file ranges (--file-locks)", .setup = locks_setup, .check = locks_check,
};
