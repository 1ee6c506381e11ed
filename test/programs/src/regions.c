/* Memory of special kinds: each feature maps one, fills it, and checks content and the mapping's own properties. */
#include "subject.h"
#include <alloca.h>
#include <sys/resource.h>

/* expect_vma checks permissions ("" for any) and one flag of smaps ("" for none). */
static void expect_vma(const char *what, const void *addr, const char *perms, const char *flag)
{
	struct vma v;
	if (!vma_of(addr, &v)) {
		bad("%s: the mapping at %p is gone", what, addr);
		return;
	}
	if (*perms && strncmp(v.perms, perms, 3))
		bad("%s: permissions are %.3s, were %s", what, v.perms, perms);
	if (*flag && !vma_has(&v, flag))
		bad("%s: the flag %s is lost (flags %s)", what, flag, v.flags);
}

/* ---- locked ---- */

static char *locked_mem, *onfault_mem;
static size_t locked_pages;

static void locked_setup(struct args *a)
{
	locked_pages = arg_num(a, "kib", 2048) * 1024 / PAGE;
	locked_mem = map_anon(locked_pages * PAGE, PROT_READ | PROT_WRITE, 0);
	fill_all(locked_mem, locked_pages, 1 << 20, 1);
	if (mlock(locked_mem, locked_pages * PAGE))
		need("RLIMIT_MEMLOCK for %zu KiB", locked_pages * PAGE / 1024);
	/* Locked, but only as far as it is touched: half of it. */
	onfault_mem = map_anon(locked_pages * PAGE, PROT_READ | PROT_WRITE, 0);
	if (mlock2(onfault_mem, locked_pages * PAGE, MLOCK_ONFAULT))
		die_errno("mlock2");
	fill_all(onfault_mem, locked_pages / 2, 2 << 20, 1);
}

static void locked_check(void)
{
	check_all("locked", locked_mem, locked_pages, 1 << 20, 1);
	expect_vma("locked", locked_mem, "rw-", "lo");
	check_all("locked on fault", onfault_mem, locked_pages / 2, 2 << 20, 1);
	expect_vma("locked on fault", onfault_mem, "rw-", "lo");
}

const struct feature feature_locked = {
	.name = "locked", .help = "mlock and mlock2(MLOCK_ONFAULT): kib=2048 each", .setup = locked_setup, .check = locked_check,
};

/* ---- protected ---- */

#define GUARDED 256 /* pages of each kind */

static char *none_mem, *read_mem, *exec_mem, *striped_mem;

static void protect_setup(struct args *a)
{
	(void)a;
	none_mem = map_anon(GUARDED * PAGE, PROT_READ | PROT_WRITE, 0);
	read_mem = map_anon(GUARDED * PAGE, PROT_READ | PROT_WRITE, 0);
	exec_mem = map_anon(GUARDED * PAGE, PROT_READ | PROT_WRITE, 0);
	striped_mem = map_anon(GUARDED * PAGE, PROT_READ | PROT_WRITE, 0);
	fill_all(none_mem, GUARDED, 3 << 20, 1);
	fill_all(read_mem, GUARDED, 4 << 20, 1);
	fill_all(exec_mem, GUARDED, 5 << 20, 1);
	fill_all(striped_mem, GUARDED, 6 << 20, 1);
	mprotect(none_mem, GUARDED * PAGE, PROT_NONE);
	mprotect(read_mem, GUARDED * PAGE, PROT_READ);
	mprotect(exec_mem, GUARDED * PAGE, PROT_READ | PROT_EXEC);
	/* Every second page: as many mappings as pages. */
	for (size_t i = 0; i < GUARDED; i += 2)
		mprotect(striped_mem + i * PAGE, PAGE, PROT_NONE);
}

static void protect_check(void)
{
	expect_vma("none", none_mem, "---", "");
	mprotect(none_mem, GUARDED * PAGE, PROT_READ);
	check_all("none", none_mem, GUARDED, 3 << 20, 1);
	mprotect(none_mem, GUARDED * PAGE, PROT_NONE);

	expect_vma("read-only", read_mem, "r--", "");
	check_all("read-only", read_mem, GUARDED, 4 << 20, 1);
	expect_vma("executable", exec_mem, "r-x", "");
	check_all("executable", exec_mem, GUARDED, 5 << 20, 1);

	expect_vma("striped", striped_mem, "---", "");
	expect_vma("striped", striped_mem + PAGE, "rw-", "");
	expect_vma("striped", striped_mem + (GUARDED - 2) * PAGE, "---", "");
	mprotect(striped_mem, GUARDED * PAGE, PROT_READ | PROT_WRITE);
	check_all("striped", striped_mem, GUARDED, 6 << 20, 1);
	for (size_t i = 0; i < GUARDED; i += 2)
		mprotect(striped_mem + i * PAGE, PAGE, PROT_NONE);
}

const struct feature feature_protected = {
	.name = "protected", .help = "written pages behind PROT_NONE, PROT_READ, PROT_READ|PROT_EXEC, and every second page PROT_NONE",
	.setup = protect_setup, .check = protect_check,
};

/* ---- reserved ---- */

static char *reserved_mem, *reserved_none;
static size_t reserved_bytes;
#define SPARSE 200

static size_t sparse_page(size_t i)
{
	return mix(i) % (reserved_bytes / PAGE);
}

static void reserved_setup(struct args *a)
{
	reserved_bytes = arg_num(a, "gib", 2048) << 30;
	reserved_mem = map_anon(reserved_bytes, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	reserved_none = map_anon(reserved_bytes, PROT_NONE, MAP_NORESERVE);
	/* Where transparent huge pages are always on, each touch would take 2 MiB. */
	madvise(reserved_mem, reserved_bytes, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < SPARSE; i++)
		page_fill(reserved_mem + sparse_page(i) * PAGE, sparse_page(i), 1);
}

static void reserved_check(void)
{
	struct vma v;
	for (size_t i = 0; i < SPARSE; i++) {
		const char *why = page_wrong(reserved_mem + sparse_page(i) * PAGE, sparse_page(i), 1);
		if (why)
			bad("%s", why);
	}
	/* Empty space has to stay empty, and one mapping. */
	if (!vma_of(reserved_mem, &v))
		bad("the reserved space is gone");
	else if (v.rss_kib > SPARSE * PAGE / 1024)
		bad("the reserved space holds %lu KiB, held %lu", v.rss_kib, SPARSE * PAGE / 1024);
	else if ((size_t)(v.end - (unsigned long)reserved_mem) < reserved_bytes)
		bad("the reserved space was split or cut: %#lx-%#lx", v.start, v.end);
	if (!vma_of(reserved_none, &v))
		bad("the reserved space without access is gone");
	else if (v.rss_kib)
		bad("the reserved space without access holds %lu KiB", v.rss_kib);
}

const struct feature feature_reserved = {
	.name = "reserved", .help = "two reservations of gib=2048 each, one with a few touched pages, one PROT_NONE",
	.setup = reserved_setup, .check = reserved_check,
};

/* ---- zeroread: pages that were only read are the kernel's one zero page, and must not become real memory ---- */

static char *zero_mem;
static size_t zero_pages;

static void zero_read(void)
{
	for (size_t i = 0; i < zero_pages; i++)
		if (*(volatile char *)(zero_mem + i * PAGE))
			bad("page %zu is not zero", i);
}

static void zero_setup(struct args *a)
{
	zero_pages = arg_num(a, "mib", 32) * MIB / PAGE;
	zero_mem = map_anon(zero_pages * PAGE, PROT_READ | PROT_WRITE, 0);
	madvise(zero_mem, zero_pages * PAGE, MADV_NOHUGEPAGE);
	zero_read();
}

static void zero_check(void)
{
	struct vma v;
	if (!vma_of(zero_mem, &v))
		bad("the mapping is gone");
	else if (v.anon_kib)
		bad("%lu KiB of the zero page became real memory", v.anon_kib);
	zero_read();
}

const struct feature feature_zeroread = {
	.name = "zeroread", .help = "mib=32 only ever read", .setup = zero_setup, .check = zero_check,
};

/* ---- advised: the flags that madvise leaves ---- */

static const struct advice {
	const char *name, *flag;
	int advice;
} advice[] = {
	{ "huge pages", "hg", MADV_HUGEPAGE },	   { "no huge pages", "nh", MADV_NOHUGEPAGE },
	{ "not in dumps", "dd", MADV_DONTDUMP },   { "not in children", "dc", MADV_DONTFORK },
	{ "mergeable", "mg", MADV_MERGEABLE },	   { "sequential", "sr", MADV_SEQUENTIAL },
	{ "random", "rr", MADV_RANDOM },	   { "zero in children", "wf", MADV_WIPEONFORK },
};
#define ADVICES (sizeof advice / sizeof *advice)
#define ADVISED 600 /* pages each, so that a huge page fits */
static char *advised[ADVICES];

static void advised_setup(struct args *a)
{
	const char *without = arg_text(a, "without", "");
	for (size_t i = 0; i < ADVICES; i++) {
		if (!strcmp(without, advice[i].flag))
			continue;
		/* A page without access between them, so that mappings never merge. */
		char *p = map_anon((ADVISED + 1) * PAGE, PROT_READ | PROT_WRITE, 0);
		mprotect(p + ADVISED * PAGE, PAGE, PROT_NONE);
		/* EINVAL: this kernel was built without it. */
		if (madvise(p, ADVISED * PAGE, advice[i].advice))
			continue;
		advised[i] = p;
		fill_all(p, ADVISED, (7 + i) << 20, 1);
	}
}

static void advised_check(void)
{
	for (size_t i = 0; i < ADVICES; i++)
		if (advised[i]) {
			expect_vma(advice[i].name, advised[i], "rw-", advice[i].flag);
			check_all(advice[i].name, advised[i], ADVISED, (7 + i) << 20, 1);
		}
}

const struct feature feature_advised = {
	.name = "advised", .help = "one mapping for each madvise flag (without=FLAG leaves one out)",
	.setup = advised_setup, .check = advised_check,
};

/* ---- hugetlb ---- */

static char *huge_mem;
static long huge_pages;

static void huge_setup(struct args *a)
{
	huge_pages = arg_num(a, "pages", 2);
	huge_mem = mmap(NULL, huge_pages * 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (huge_mem == MAP_FAILED)
		need("%ld free huge pages of 2 MiB (vm.nr_hugepages)", huge_pages);
	fill_all(huge_mem, huge_pages * 512, 20 << 20, 1);
}

static void huge_check(void)
{
	check_all("hugetlb", huge_mem, huge_pages * 512, 20 << 20, 1);
	expect_vma("hugetlb", huge_mem, "rw-", "ht");
}

const struct feature feature_hugetlb = {
	.name = "hugetlb", .help = "pages=2 private huge pages of 2 MiB", .setup = huge_setup, .check = huge_check,
};

/* ---- deepstack: content far down the main thread's stack ---- */

#define FRAME (64 * 1024UL)
size_t deep_stack_bytes;
static char *frames[4096];
static size_t frames_used;

/* Each call holds one frame below the last; the innermost runs the program's loop. */
static void descend(size_t left, void (*then)(void))
{
	volatile char frame[FRAME];
	size_t n = frames_used++;
	frames[n] = (char *)frame;
	bytes_fill((void *)frame, FRAME, n);
	if (left > FRAME && frames_used < sizeof frames / sizeof *frames)
		descend(left - FRAME, then);
	else
		then();
	frame[0] = 0; /* keeps this call from becoming a jump */
}

void deep_stack_run(void (*then)(void))
{
	if (deep_stack_bytes)
		descend(deep_stack_bytes, then);
	else
		then();
}

static void deep_setup(struct args *a)
{
	struct rlimit r;
	deep_stack_bytes = arg_num(a, "kib", 6144) * 1024;
	getrlimit(RLIMIT_STACK, &r);
	if (deep_stack_bytes + MIB > r.rlim_cur)
		need("RLIMIT_STACK of %zu KiB", deep_stack_bytes / 1024 + 1024);
}

static void deep_check(void)
{
	if (frames_used != (deep_stack_bytes + FRAME - 1) / FRAME)
		bad("%zu frames, should be %zu", frames_used, (deep_stack_bytes + FRAME - 1) / FRAME);
	for (size_t i = 0; i < frames_used; i++)
		if (bytes_wrong(frames[i], FRAME, i))
			bad("frame %zu at %p is wrong", i, frames[i]);
}

const struct feature feature_deepstack = {
	.name = "deepstack", .help = "kib=6144 of content on the main thread's stack", .setup = deep_setup, .check = deep_check,
};
