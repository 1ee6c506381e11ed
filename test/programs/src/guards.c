/* guards: pages that nobody may touch, made by MADV_GUARD_INSTALL, as newer C libraries have below the stacks of threads. */
#include "subject.h"
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#define GUARD_INSTALL 102 /* MADV_GUARD_INSTALL, Linux 6.13 */
#define GUARD_REMOVE 103
#define PAGE_IS_GUARD (1 << 8) /* Linux 6.15 */

#define PAGES 240 /* of each region */

static struct region {
	const char *what, *flag; /* flag: of smaps, which it keeps */
	char *at;
	uint64_t key;
} regions[] = {
	{ "guards", "gu", 0, 31 << 20 }, { "guards in locked memory", "lo", 0, 32 << 20 }, { "guards in shared memory", "sh", 0, 33 << 20 },
};

/* What page i is: some are guards alone, some in a row, and of some the guard was taken away again. */
static bool is_guard(size_t i) { return i % 6 == 3 || (i > 100 && i < 140); }
static bool was_guard(size_t i) { return i % 6 == 5 && !is_guard(i); }

/* Whether the kernel tells guards from pages that are swapped out. Without that, nobody can dump them. */
static bool told(void *p)
{
	struct {
		uint64_t start, end, categories;
	} found;
	uint64_t scan[12] = { sizeof scan, 0, (uintptr_t)p, (uintptr_t)p + PAGE, 0, (uintptr_t)&found, 1, 0, 0, PAGE_IS_GUARD, 0, PAGE_IS_GUARD };
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int n = ioctl(fd, 0xc0606610, scan); /* PAGEMAP_SCAN */
	close(fd);
	return n == 1;
}

static void guards_setup(struct args *a)
{
	bool locked = arg_num(a, "locked", 1);
	for (size_t r = 0; r < sizeof regions / sizeof *regions; r++) {
		char *p = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | (r == 2 ? MAP_SHARED : MAP_PRIVATE), -1, 0);
		if (p == MAP_FAILED)
			die_errno("mmap");
		fill_all(p, PAGES, regions[r].key, 1);
		for (size_t i = 0; i < PAGES; i++) {
			if ((is_guard(i) || was_guard(i)) && madvise(p + i * PAGE, PAGE, GUARD_INSTALL))
				need("MADV_GUARD_INSTALL (Linux 6.13; in shared memory 6.15)");
			if (was_guard(i))
				madvise(p + i * PAGE, PAGE, GUARD_REMOVE);
		}
		regions[r].at = p;
	}
	if (!told(regions[0].at + 3 * PAGE))
		need("PAGE_IS_GUARD (Linux 6.15)");
	/* All of it is locked, but it says that it could not bring the guards. */
	if (!locked)
		regions[1].flag = "gu";
	else if (mlock(regions[1].at, PAGES * PAGE) && errno != ENOMEM)
		need("RLIMIT_MEMLOCK for %lu KiB", PAGES * PAGE / 1024);
}

static sigjmp_buf back;

static void on_fault(int signal)
{
	siglongjmp(back, signal);
}

/* dies_of says which signal the touch of a page is. */
static int dies_of(volatile char *p)
{
	struct sigaction mine = { .sa_handler = on_fault, .sa_flags = SA_NODEFER }, before;
	sigaction(SIGSEGV, &mine, &before);
	int signal = sigsetjmp(back, 1);
	if (!signal)
		*p;
	sigaction(SIGSEGV, &before, NULL);
	return signal;
}

static const char *guard_page_wrong(char *p)
{
	char byte;
	struct iovec to = { &byte, 1 }, from = { p, 1 };
	if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) >= 0 || errno != EFAULT)
		return "a guard page can be read";
	return dies_of(p) == SIGSEGV ? NULL : "a guard page can be touched";
}

static const char *region_page_wrong(const struct region *r, size_t i)
{
	static const char empty[PAGE];
	char *p = r->at + i * PAGE;
	if (is_guard(i))
		return guard_page_wrong(p);
	/* A shared page stays in its file while a guard hides it. */
	if (was_guard(i) && strcmp(r->flag, "sh"))
		return memcmp(p, empty, PAGE) ? "the page of a guard that was taken away is not zero" : NULL;
	return page_wrong(p, r->key + i, 1);
}

static void guards_check(void)
{
	for (size_t n = 0; n < sizeof regions / sizeof *regions; n++) {
		const struct region *r = &regions[n];
		for (size_t i = 0; i < PAGES; i++) {
			const char *why = region_page_wrong(r, i);
			if (why) {
				bad("%s: page %zu: %s", r->what, i, why);
				break;
			}
		}
		struct vma first, last;
		if (!vma_of(r->at, &first) || !vma_of(r->at + (PAGES - 1) * PAGE, &last)) {
			bad("%s: the mapping is gone", r->what);
			continue;
		}
		if (!vma_has(&first, r->flag))
			bad("%s: the flag %s is lost (flags %s)", r->what, r->flag, first.flags);
		if (first.start != last.start)
			bad("%s: it is one mapping no more", r->what);
	}
}

const struct feature feature_guards = {
	.name = "guards", .help = "guard pages (MADV_GUARD_INSTALL) in private, locked (locked=1) and shared memory, beside written pages",
	.setup = guards_setup, .check = guards_check,
};
