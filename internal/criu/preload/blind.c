/*
 * The part of the preloaded library for a dump: CRIU does not see the memory that
 * Stasis copies itself.
 *
 * CRIU (4.0 and newer) asks the kernel which pages a process has with
 * ioctl(PAGEMAP_SCAN). The ioctl() below answers for CRIU: what lies in a
 * hidden range is "not there", everything else is asked from the kernel.
 *
 * CRIU reads the mappings of a process from /proc/PID/smaps, for which the
 * kernel walks all page tables, and uses only the first line of each mapping
 * and its VmFlags. The openat64() below gives CRIU a list of just these where
 * Stasis has made one.
 *
 * Both stand in memory shared with Stasis (struct table, struct lists), which
 * fills it while the processes are frozen and sets `count` last. Hidden ranges
 * are sorted by process, then address, and do not overlap.
 *
 * Rebuild with `make generate`.
 */

#include "preload.h"

#define NR_WRITE 1
#define NR_CLOSE 3
#define NR_LSEEK 8
#define NR_IOCTL 16
#define NR_OPENAT 257
#define NR_MEMFD_CREATE 319

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

/* The lists of mappings: behind the table of hidden ranges. */
#define LISTS_BYTES (4UL << 20)

struct list {
	u64 pid, offset, length; /* offset from the start of struct lists */
};

struct lists {
	u64 count;
	struct list list[];
};

static const struct table *table;

__attribute__((constructor)) static void map_table(void)
{
	const struct table *at = map_shared("STASIS_BLIND_FD", TABLE_BYTES + LISTS_BYTES, PROT_READ);

	if (at && at->magic == TABLE_MAGIC)
		table = at;
}

/* The part of a path behind its last slash that stands before `end`. */
static const char *last_part(const char *path, const char *end)
{
	while (end > path && end[-1] != '/')
		end--;
	return end;
}

/*
 * The process whose page map a descriptor is: "/proc/PID/pagemap". proc may be
 * mounted elsewhere, so only the end of the path counts.
 */
static long pagemap_owner(int fd)
{
	char path[64];
	long len = path_of(fd, path, sizeof(path));
	const char *name = last_part(path, path + len);

	if (!len || !same(name, "pagemap") || name == path)
		return -1;
	return parse(last_part(path, name - 1));
}

/* The process whose folder in proc a descriptor is: "/proc/PID". */
static long folder_owner(int fd)
{
	char path[64];
	long len = path_of(fd, path, sizeof(path));

	return len ? parse(last_part(path, path + len)) : -1;
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
	long pid;

	if (request == PAGEMAP_SCAN && table && asks_for_pages(arg) && (pid = pagemap_owner(fd)) > 0)
		return result(scan_visible(fd, pid, arg));
	return result(syscall6(NR_IOCTL, fd, request, (long)arg, 0, 0, 0));
}

/* The list that Stasis has made of a process' mappings, or 0. */
static const struct list *list_of(const struct lists *lists, u64 pid)
{
	u64 count = __atomic_load_n(&lists->count, __ATOMIC_ACQUIRE);

	for (u64 i = 0; i < count; i++)
		if (lists->list[i].pid == pid)
			return &lists->list[i];
	return 0;
}

/* A file in memory with the list in it, to be read from its start. */
static long open_list(const struct lists *lists, const struct list *list)
{
	const char *text = (const char *)lists + list->offset;
	long fd = syscall6(NR_MEMFD_CREATE, (long)"smaps", 0, 0, 0, 0, 0);
	long written = 0;

	if (fd < 0)
		return fd;
	while (written < (long)list->length) {
		long n = syscall6(NR_WRITE, fd, (long)text + written, list->length - written, 0, 0, 0);

		if (n <= 0) {
			syscall6(NR_CLOSE, fd, 0, 0, 0, 0, 0);
			return n ? n : -5; /* EIO */
		}
		written += n;
	}
	syscall6(NR_LSEEK, fd, 0, 0, 0, 0, 0);
	return fd;
}

__attribute__((visibility("default"))) int openat64(int dir, const char *path, int flags, u32 mode)
{
	if (table && same(path, "smaps")) {
		const struct lists *lists = (const struct lists *)((const char *)table + TABLE_BYTES);
		const struct list *list = list_of(lists, folder_owner(dir));

		if (list)
			return result(open_list(lists, list));
	}
	return result(syscall6(NR_OPENAT, dir, (long)path, flags, mode, 0, 0));
}
