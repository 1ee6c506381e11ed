/* Memory that is more than anonymous and private: files mapped privately, and memory shared with a child. */
#include "subject.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sched.h>

#define N 128 /* pages of each mapping */

/* ---- filemap: a private mapping of a file, every second page written ---- */

static char *file_mem, *ro_mem;
static const char *file_path;

static int file_with_pages(const char *path, uint64_t key)
{
	char page[PAGE];
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0)
		die_errno("%s", path);
	for (size_t i = 0; i < N; i++) {
		page_fill(page, key + i, 1);
		write_full(fd, page, PAGE);
	}
	return fd;
}

static void filemap_setup(struct args *a)
{
	(void)a;
	file_path = in_dir("mapped");
	int fd = file_with_pages(file_path, 0);
	file_mem = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	ro_mem = mmap(NULL, N / 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, N / 2 * PAGE);
	if (file_mem == MAP_FAILED || ro_mem == MAP_FAILED)
		die_errno("map %s", file_path);
	close(fd);
	for (size_t i = 0; i < N; i += 2)
		page_fill(file_mem + i * PAGE, i, 2);
}

static void filemap_check(void)
{
	char page[PAGE];
	const char *why = NULL;
	for (size_t i = 0; i < N && !why; i++)
		why = page_wrong(file_mem + i * PAGE, i, i % 2 ? 1 : 2);
	if (why)
		bad("mapping: %s", why);
	check_all("read-only half", ro_mem, N / 2, N / 2, 1);
	/* What was written privately must not have reached the file. */
	int fd = open(file_path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		bad("%s: %s", file_path, strerror(errno));
		return;
	}
	why = NULL;
	for (size_t i = 0; i < N && !why; i++) {
		read_full(file_path, fd, page, PAGE);
		why = page_wrong(page, i, 1);
	}
	if (why)
		bad("the file itself changed: %s", why);
	close(fd);
}

const struct feature feature_filemap = {
	.name = "filemap", .help = "a private mapping of a file, every second page written", .setup = filemap_setup,
	.check = filemap_check,
};

/* ---- memory shared with a child: each side writes, the other has to see it ---- */

struct shared {
	const char *what;
	char *mem; /* N pages of version 1, then one page through which parent and child talk */
	struct helper child;
};

#define SHARED_BYTES ((N + 1) * PAGE)

/* The child looks at all pages, and answers the number in the last page with its hash. */
static void shared_work(void *arg, char question, char *answer, size_t size)
{
	struct shared *s = arg;
	volatile uint64_t *talk = (uint64_t *)(s->mem + N * PAGE);
	(void)question;
	for (size_t i = 0; i < N; i++) {
		const char *why = page_wrong(s->mem + i * PAGE, i, 1);
		if (why)
			snprintf(answer, size, "%s", why);
	}
	talk[1] = mix(talk[0]);
}

static void shared_begin(struct shared *s)
{
	if (s->mem == MAP_FAILED)
		die_errno("map");
	fill_all(s->mem, N, 0, 1);
	helper_start(&s->child, NULL, shared_work, s);
}

static void shared_look(struct shared *s)
{
	static uint64_t number;
	volatile uint64_t *talk = (uint64_t *)(s->mem + N * PAGE);
	check_all(s->what, s->mem, N, 0, 1);
	talk[0] = ++number;
	if (ask(&s->child, s->what, '?') && talk[1] != mix(number))
		bad("%s: parent and child do not share it any more", s->what);
}

/* ---- anonshared ---- */

static struct shared anon = { .what = "shared anonymous memory" };

static void anon_setup(struct args *a)
{
	(void)a;
	anon.mem = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared_begin(&anon);
}

static void anon_check(void)
{
	shared_look(&anon);
}

const struct feature feature_anonshared = {
	.name = "anonshared", .help = "MAP_SHARED|MAP_ANONYMOUS, with a child", .setup = anon_setup, .check = anon_check,
};

/* ---- memfd ---- */

static struct shared memfd = { .what = "memfd" };
static int memfd_fd, sealed_fd;
static char *sealed_mem;
#define SEALS (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE)

static void memfd_setup(struct args *a)
{
	(void)a;
	memfd_fd = memfd_create("stasis-subject", MFD_CLOEXEC);
	if (memfd_fd < 0 || ftruncate(memfd_fd, SHARED_BYTES))
		die_errno("memfd");
	memfd.mem = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_fd, 0);
	shared_begin(&memfd);
	lseek(memfd_fd, 12345, SEEK_SET);

	char page[PAGE];
	sealed_fd = memfd_create("stasis-sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	for (size_t i = 0; i < N; i++) {
		page_fill(page, i, 3);
		write_full(sealed_fd, page, PAGE);
	}
	if (fcntl(sealed_fd, F_ADD_SEALS, SEALS))
		die_errno("seal");
	sealed_mem = mmap(NULL, N * PAGE, PROT_READ, MAP_PRIVATE, sealed_fd, 0);
}

static void memfd_check(void)
{
	char page[PAGE];
	shared_look(&memfd);
	want("memfd offset", lseek(memfd_fd, 0, SEEK_CUR), 12345);
	if (pread(memfd_fd, page, PAGE, 3 * PAGE) != (ssize_t)PAGE || page_wrong(page, 3, 1))
		bad("reading the descriptor does not give what is mapped");
	want("seals", fcntl(sealed_fd, F_GET_SEALS), SEALS);
	check_all("sealed memfd", sealed_mem, N, 0, 3);
	if (pread(sealed_fd, page, PAGE, 5 * PAGE) != (ssize_t)PAGE || page_wrong(page, 5, 3))
		bad("the sealed memfd's content is wrong");
}

const struct feature feature_memfd = {
	.name = "memfd", .help = "a memfd mapped with a child, and a sealed one", .setup = memfd_setup, .check = memfd_check,
};

/* ---- tmpfs: a mapped file of /dev/shm. The file itself stays where it is, so only the mapping comes back. ---- */

static struct shared tmpfs = { .what = "file in /dev/shm" };
static const char *tmpfs_path;

static void tmpfs_setup(struct args *a)
{
	/* The path comes from the caller, who removes the file in the end. */
	tmpfs_path = arg_text(a, "path", "");
	int fd = open(tmpfs_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, SHARED_BYTES))
		die_errno("%s", tmpfs_path);
	tmpfs.mem = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	shared_begin(&tmpfs);
}

static void tmpfs_check(void)
{
	char page[PAGE];
	shared_look(&tmpfs);
	int fd = open(tmpfs_path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, page, PAGE, N * PAGE) != (ssize_t)PAGE || memcmp(page, tmpfs.mem + N * PAGE, PAGE))
		bad("what is written to the mapping is not in the file");
	if (fd >= 0)
		close(fd);
}

const struct feature feature_tmpfs = {
	.name = "tmpfs", .help = "path=FILE (in a tmpfs) mapped shared, with a child", .setup = tmpfs_setup, .check = tmpfs_check,
};

/* ---- sysvshm: CRIU takes System V memory only out of an IPC namespace of its own ---- */

static struct shared sysv = { .what = "System V shared memory" };
static int sysv_id;
#define SYSV_KEY 0x57a515

static void sysv_setup(struct args *a)
{
	(void)a;
	if (unshare(CLONE_NEWIPC))
		need("a new IPC namespace (CAP_SYS_ADMIN)");
	sysv_id = shmget(SYSV_KEY, SHARED_BYTES, IPC_CREAT | 0640);
	if (sysv_id < 0)
		die_errno("shmget");
	sysv.mem = shmat(sysv_id, NULL, 0);
	if (sysv.mem == (void *)-1)
		die_errno("shmat");
	shared_begin(&sysv);
}

static void sysv_check(void)
{
	struct shmid_ds ds;
	shared_look(&sysv);
	want("id of the key", shmget(SYSV_KEY, 0, 0), sysv_id);
	if (shmctl(sysv_id, IPC_STAT, &ds)) {
		bad("shmctl: %s", strerror(errno));
		return;
	}
	want("mode", ds.shm_perm.mode & 0777, 0640);
	want("size", ds.shm_segsz, SHARED_BYTES);
	want("attachments", ds.shm_nattch, 2);
}

const struct feature feature_sysvshm = {
	.name = "sysvshm", .help = "a System V segment with a child, in an IPC namespace of its own", .setup = sysv_setup,
	.check = sysv_check,
};
