/*
 * The library that Stasis preloads into CRIU for a dump, so that CRIU does not
 * see the memory that Stasis copies itself.
 *
 * CRIU (4.0 and newer) asks the kernel which pages a process has with
 * ioctl(PAGEMAP_SCAN). The ioctl() below answers for CRIU: what lies in a
 * hidden range is "not there", everything else is asked from the kernel.
 *
 * The hidden ranges stand in memory shared with Stasis (struct table), which
 * fills it while the processes are frozen and sets `count` last. Entries are
 * sorted by process, then address, and do not overlap.
 *
 * No C library of a certain version is needed: the two functions used of it
 * exist in every one, and system calls are made directly. Rebuild with
 * `make generate`.
 */

typedef unsigned int u32;
typedef unsigned long u64;

#define NR_MMAP 9
#define NR_IOCTL 16
#define NR_READLINK 89
#define PROT_READ 1
#define MAP_SHARED 1

#define PAGEMAP_SCAN 0xc0606610UL
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4)

/* struct pm_scan_arg of linux/fs.h */
struct scan {
	u64 size, flags, start, end, walk_end;
	u64 vec, vec_len, max_pages;
	u64 inverted, mask, anyof, result;
};

struct region {
	u64 start, end, categories;
};

struct hidden {
	u64 pid, start, end;
};

#define TABLE_MAGIC 0x31444e494c425453UL /* "STBLIND1" */
#define TABLE_BYTES (4UL << 20)

struct table {
	u64 magic;
	u64 count;
	struct hidden hidden[];
};

extern int *__errno_location(void);
extern char *getenv(const char *name);

static const struct table *table;

static long syscall6(long n, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

static long parse(const char *s)
{
	long n = 0;

	if (!s || *s < '0' || *s > '9')
		return -1;
	for (; *s >= '0' && *s <= '9'; s++)
		n = n * 10 + (*s - '0');
	return n;
}

/* Maps the table when the library is loaded: CRIU closes descriptors later. */
__attribute__((constructor)) static void map_table(void)
{
	long fd = parse(getenv("STASIS_BLIND_FD"));
	long at;

	if (fd < 0)
		return;
	at = syscall6(NR_MMAP, 0, TABLE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	if (at < 0 && at > -4096)
		return;
	if (((const struct table *)at)->magic == TABLE_MAGIC)
		table = (const struct table *)at;
}

/* The process whose page map a descriptor is: "/proc/PID/pagemap". */
static long pagemap_owner(int fd)
{
	char link[32] = "/proc/self/fd/", path[64];
	char digits[12];
	const char *p, *name = "/pagemap";
	int n = 0, at = 14;
	long len, pid;

	if (fd < 0)
		return -1;
	do
		digits[n++] = '0' + fd % 10;
	while (fd /= 10);
	while (n)
		link[at++] = digits[--n];
	link[at] = 0;

	len = syscall6(NR_READLINK, (long)link, (long)path, sizeof(path) - 1, 0, 0, 0);
	if (len <= 0)
		return -1;
	path[len] = 0;
	/* proc may be mounted elsewhere: the pid is the last folder. */
	for (p = path + len; p > path && *p != '/'; p--)
		;
	for (n = 0; name[n] && p[n] == name[n]; n++)
		;
	if (name[n] || p[n])
		return -1;
	for (; p > path && p[-1] != '/'; p--)
		;
	pid = parse(p);
	return pid;
}

/* The first hidden range of the process that ends behind `at`. */
static const struct hidden *next_hidden(u64 pid, u64 at)
{
	u64 low = 0, high = __atomic_load_n(&table->count, __ATOMIC_ACQUIRE);
	u64 count = high;

	while (low < high) {
		u64 mid = (low + high) / 2;
		const struct hidden *h = &table->hidden[mid];

		if (h->pid < pid || (h->pid == pid && h->end <= at))
			low = mid + 1;
		else
			high = mid;
	}
	if (low < count && table->hidden[low].pid == pid)
		return &table->hidden[low];
	return 0;
}

/* Scans only what is not hidden, and says that all of it was walked. */
static long scan_visible(int fd, u64 pid, struct scan *arg)
{
	struct scan part = *arg;
	u64 at = arg->start, found = 0;

	while (at < arg->end && found < arg->vec_len) {
		const struct hidden *h = next_hidden(pid, at);
		u64 until = h && h->start < arg->end ? h->start : arg->end;
		long n;

		if (h && h->start <= at) {
			at = h->end;
			continue;
		}
		part.start = at;
		part.end = until;
		part.vec = arg->vec + found * sizeof(struct region);
		part.vec_len = arg->vec_len - found;
		n = syscall6(NR_IOCTL, fd, PAGEMAP_SCAN, (long)&part, 0, 0, 0);
		if (n < 0)
			return n;
		found += n;
		/*
		 * Only a full vector stops a walk early. walk_end does not
		 * tell: after a walk to the end it may hold an older value.
		 */
		if ((u64)n < part.vec_len)
			at = until;
		else
			at = ((struct region *)arg->vec)[found - 1].end;
	}
	arg->walk_end = at < arg->end ? at : arg->end;
	return found;
}

/*
 * Only the question "which pages are there" is answered differently. A scan for
 * something else, such as guard pages, and one that counts pages is CRIU's own.
 */
static int asks_for_pages(const struct scan *arg)
{
	return arg->vec && !arg->max_pages && !arg->flags &&
	       (arg->anyof & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED));
}

__attribute__((visibility("default"))) int ioctl(int fd, u64 request, void *arg)
{
	long ret, pid;

	if (request == PAGEMAP_SCAN && table && asks_for_pages(arg) && (pid = pagemap_owner(fd)) > 0)
		ret = scan_visible(fd, pid, arg);
	else
		ret = syscall6(NR_IOCTL, fd, request, (long)arg, 0, 0, 0);
	if (ret < 0 && ret > -4096) {
		*__errno_location() = -ret;
		return -1;
	}
	return ret;
}
