/*
 * churn: mappings that come, grow, move, lose their pages, change their protection and go, from several threads, with every
 * page's content known. Each thread owns its slots; a check takes all threads' locks and looks at every page.
 */
#include "churn.h"
#include <sys/uio.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define GUARD_INSTALL 102 /* MADV_GUARD_INSTALL, Linux 6.13 */
#define GUARD_REMOVE 103
#define TLB_PAGES 512UL

uint64_t churner_roll(struct churner *c, uint64_t n)
{
	return (c->seed = mix(c->seed)) % n;
}

/* unit is how many pages of a mapping go together. */
static size_t unit(const struct churner *c)
{
	return c->kind == TLB ? TLB_PAGES : 1;
}

/* some_pages is a length of chance. */
static size_t some_pages(struct churner *c, size_t most)
{
	return (1 + churner_roll(c, most / unit(c))) * unit(c);
}

/* guard_wrong looks at a guarded page without touching it: the kernel refuses to read it for anybody. */
static const char *guard_wrong(char *p)
{
	char byte;
	struct iovec to = { &byte, 1 }, from = { p, 1 };
	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) < 0 ? NULL : "a guarded page can be read";
}

static const char *empty_wrong(const char *p)
{
	for (size_t k = 0; k < PAGE; k += 8)
		if (*(const uint64_t *)(p + k))
			return "an empty page is not zero";
	return NULL;
}

static const char *slot_page_wrong(const struct slot *s, size_t i)
{
	char *p = s->addr + i * PAGE;
	uint32_t v = s->version[i];
	if (v == GUARDED)
		return guard_wrong(p);
	if (v == 0 || (v & MAYBE && !empty_wrong(p)))
		return empty_wrong(p);
	return page_wrong(p, s->key + i, v & ~MAYBE);
}

static void slot_check(const struct slot *s)
{
	if (!s->addr)
		return;
	if (s->prot == PROT_NONE)
		mprotect(s->addr, s->pages * PAGE, PROT_READ);
	for (size_t i = 0; i < s->pages; i++) {
		const char *why = slot_page_wrong(s, i);
		if (why) {
			bad("mapping %p+%zu%s: page %zu: %s", s->addr, s->pages, s->shared ? " shared" : "", i, why);
			break;
		}
	}
	if (s->prot == PROT_NONE)
		mprotect(s->addr, s->pages * PAGE, PROT_NONE);
}

static void slot_write(struct churner *c, struct slot *s)
{
	if (s->prot != (PROT_READ | PROT_WRITE))
		return;
	for (int i = 0; i < 4; i++) {
		size_t n = churner_roll(c, s->pages);
		if (s->version[n] == GUARDED)
			continue;
		uint32_t version = (s->version[n] & ~MAYBE) + 1;
		/* Until it is written whole, a page that may go may still go. */
		page_fill(s->addr + n * PAGE, s->key + n, version);
		s->version[n] = version;
	}
}

static void slot_clear(struct churner *c, struct slot *s)
{
	uint32_t *version = s->version;
	memset(version, 0, c->most * sizeof *version);
	*s = (struct slot){ .version = version };
}

static void slot_map(struct churner *c, struct slot *s)
{
	slot_clear(c, s);
	s->pages = some_pages(c, c->most);
	s->shared = c->kind == SMALL && churner_roll(c, 8) == 0;
	s->prot = PROT_READ | PROT_WRITE;
	s->key = c->next_key;
	c->next_key += c->most;
	int flags = MAP_ANONYMOUS | (s->shared ? MAP_SHARED : MAP_PRIVATE) | (c->kind == TLB ? MAP_HUGETLB : 0);
	void *p = mmap(NULL, s->pages * PAGE, s->prot, flags, -1, 0);
	if (p == MAP_FAILED && c->kind == TLB && errno == ENOMEM)
		return; /* all are in use */
	if (p == MAP_FAILED)
		return bad("mmap: %s", strerror(errno));
	s->addr = p;
	if (c->kind == HUGE)
		madvise(p, s->pages * PAGE, MADV_HUGEPAGE);
	slot_write(c, s);
}

static void slot_remap(struct churner *c, struct slot *s)
{
	/* Shared anonymous memory can't grow past its file's size, huge pages of their own not at all. */
	size_t pages = some_pages(c, s->shared || c->kind == TLB ? s->pages : c->most);
	/* mremap works on one mapping: pages of another protection are never in a slot. */
	void *p = mremap(s->addr, s->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
	if (p == MAP_FAILED)
		return bad("mremap: %s", strerror(errno));
	for (size_t i = s->pages; i < pages; i++)
		s->version[i] = 0;
	for (size_t i = pages; i < s->pages; i++)
		s->version[i] = 0;
	s->addr = p;
	s->pages = pages;
}

/* slot_move moves a mapping of the same size to a place that the kernel picks. */
static void slot_move(struct churner *c, struct slot *s)
{
	char *to = mmap(NULL, s->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | (c->kind == TLB ? MAP_HUGETLB | MAP_NORESERVE : 0), -1, 0);
	if (to == MAP_FAILED)
		return bad("mmap: %s", strerror(errno));
	if (mremap(s->addr, s->pages * PAGE, s->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		return bad("mremap to a place: %s", strerror(errno));
	s->addr = to;
}

/* slot_leave moves the pages away and stays with an empty mapping where they were; these pages go. */
static void slot_leave(struct churner *c, struct slot *s)
{
	if (s->shared || c->kind == TLB)
		return;
	char *to = mremap(s->addr, s->pages * PAGE, s->pages * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	if (to == MAP_FAILED)
		return bad("mremap that leaves the mapping: %s", strerror(errno));
	struct slot moved = *s;
	moved.addr = to;
	slot_check(&moved);
	/* Which of the two stays is of chance. */
	if (churner_roll(c, 2)) {
		munmap(to, s->pages * PAGE);
		memset(s->version, 0, s->pages * sizeof *s->version);
	} else {
		munmap(s->addr, s->pages * PAGE);
		s->addr = to;
	}
}

static void slot_drop(struct churner *c, struct slot *s)
{
	size_t from = churner_roll(c, s->pages / unit(c)) * unit(c), n = some_pages(c, s->pages - from);
	bool later = !s->shared && c->kind != TLB && churner_roll(c, 3) == 0;
	if (madvise(s->addr + from * PAGE, n * PAGE, later ? MADV_FREE : MADV_DONTNEED))
		return bad("madvise: %s", strerror(errno));
	/* Shared pages stay in their file, guards where they are. */
	for (size_t i = from; i < from + n && !s->shared; i++)
		if (s->version[i] != GUARDED)
			s->version[i] = later && s->version[i] ? s->version[i] | MAYBE : 0;
}

/* slot_advise says of a part of a mapping what changes none of its content. */
static void slot_advise(struct churner *c, struct slot *s)
{
	static const int advices[] = { MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE, MADV_POPULATE_WRITE, MADV_COLD, MADV_PAGEOUT,
				       MADV_WILLNEED, MADV_SEQUENTIAL, MADV_RANDOM, MADV_NORMAL, MADV_MERGEABLE, MADV_UNMERGEABLE };
	int advice = advices[churner_roll(c, sizeof advices / sizeof *advices)];
	if (c->kind == TLB)
		return;
	/* Whether the kernel can is not the point here. */
	madvise(s->addr, s->pages * PAGE, advice);
	if (!s->shared && churner_roll(c, 8) == 0) {
		s->wiped = !s->wiped;
		if (madvise(s->addr, s->pages * PAGE, s->wiped ? MADV_WIPEONFORK : MADV_KEEPONFORK))
			bad("madvise for forks: %s", strerror(errno));
	}
	/* Never a part: what is two mappings at a dump stays two after CRIU's restore, and mremap works on one. */
	if (mlock2(s->addr, s->pages * PAGE, MLOCK_ONFAULT) == 0)
		munlock(s->addr, s->pages * PAGE);
}

static void slot_guard(struct churner *c, struct slot *s)
{
	if (s->shared || c->kind == TLB || !c->guards)
		return;
	size_t n = churner_roll(c, s->pages);
	bool there = s->version[n] == GUARDED;
	if (madvise(s->addr + n * PAGE, PAGE, there ? GUARD_REMOVE : GUARD_INSTALL)) {
		c->guards = false; /* an older kernel */
		return;
	}
	s->version[n] = there ? 0 : GUARDED;
}

static void slot_protect(struct churner *c, struct slot *s)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE };
	s->prot = prots[churner_roll(c, 4)];
	if (mprotect(s->addr, s->pages * PAGE, s->prot))
		bad("mprotect: %s", strerror(errno));
}

/* Only the first thread grows and shrinks the heap; nobody else calls malloc while it works. */
static void brk_step(struct churner *c)
{
	size_t pages = churner_roll(c, 512);
	if (sbrk(0) != c->brk_base + c->brk_pages * PAGE)
		return; /* the C library took the next piece: leave the heap alone from now on */
	if (brk(c->brk_base + pages * PAGE))
		return bad("brk: %s", strerror(errno));
	if (pages > c->brk_pages)
		fill_all(c->brk_base + c->brk_pages * PAGE, pages - c->brk_pages, (9ULL << 40) + c->brk_pages, 1);
	c->brk_pages = pages;
}

void churner_step(struct churner *c)
{
	struct slot *s = &c->slot[churner_roll(c, c->slots)];
	uint64_t what = churner_roll(c, 20);
	c->ops++;
	if (c->owns_brk && what == 0 && churner_roll(c, 4) == 0)
		return brk_step(c);
	if (!s->addr)
		return slot_map(c, s);
	if (what < 5)
		slot_write(c, s);
	else if (what < 7)
		slot_check(s);
	else if (what < 9)
		slot_remap(c, s);
	else if (what < 10)
		slot_move(c, s);
	else if (what < 12)
		slot_drop(c, s);
	else if (what < 14)
		slot_protect(c, s);
	else if (what < 16)
		slot_advise(c, s);
	else if (what < 17)
		slot_leave(c, s);
	else if (what < 18)
		slot_guard(c, s);
	else {
		munmap(s->addr, s->pages * PAGE);
		s->addr = NULL;
	}
}

void churner_check(struct churner *c)
{
	for (size_t k = 0; k < c->slots; k++)
		slot_check(&c->slot[k]);
	if (c->owns_brk && c->brk_pages)
		check_all("heap", c->brk_base, c->brk_pages, 9ULL << 40, 1);
}

void churner_init(struct churner *c, enum kind kind, uint64_t seed, size_t slots, size_t most)
{
	memset(c, 0, sizeof *c);
	pthread_mutex_init(&c->lock, NULL);
	c->kind = kind;
	c->slots = slots;
	c->most = most;
	c->seed = mix(seed + 76);
	c->next_key = seed << 32;
	c->slot = map_anon(slots * sizeof *c->slot, PROT_READ | PROT_WRITE, 0);
	uint32_t *versions = map_anon(slots * most * sizeof *versions, PROT_READ | PROT_WRITE, 0);
	for (size_t k = 0; k < slots; k++)
		c->slot[k].version = versions + k * most;
	for (size_t k = 0; k < slots / 2; k++)
		slot_map(c, &c->slot[k]);
}

void churner_forked(struct churner *c)
{
	for (size_t k = 0; k < c->slots; k++) {
		struct slot *s = &c->slot[k];
		if (s->addr && s->shared) {
			munmap(s->addr, s->pages * PAGE);
			s->addr = NULL;
		} else if (s->addr && s->wiped) {
			for (size_t i = 0; i < s->pages; i++)
				s->version[i] = 0;
		}
	}
}

/* ---- the feature ---- */

static struct churner *churners;
static int threads;
static long rate;
static atomic_bool check_waits;

static void *churn(void *arg)
{
	struct churner *c = arg;
	double due = 0;
	for (int64_t last = now_us();;) {
		int64_t now = now_us();
		due += (now - last) * (rate / 1e6);
		last = now;
		if (due > 100)
			due = 100;
		if (due < 1 || atomic_load(&check_waits)) {
			nap_us(300);
			continue;
		}
		pthread_mutex_lock(&c->lock);
		for (; due >= 1; due--)
			churner_step(c);
		pthread_mutex_unlock(&c->lock);
	}
	return NULL;
}

static void setup(struct args *a)
{
	threads = arg_num(a, "threads", 4);
	rate = arg_num(a, "rate", 500);
	const char *of = arg_text(a, "of", "small");
	bool guards = !strcmp(arg_text(a, "guards", "no"), "yes");
	if (threads < 1 || threads > 64)
		die("threads must be 1 to 64");
	enum kind kind = !strcmp(of, "huge") ? HUGE : !strcmp(of, "hugetlb") ? TLB : SMALL;
	if (kind == SMALL && strcmp(of, "small"))
		die("of is small, huge or hugetlb");
	churners = map_anon(threads * sizeof *churners, PROT_READ | PROT_WRITE, 0);
	for (int i = 0; i < threads; i++) {
		switch (kind) {
		case SMALL: churner_init(&churners[i], kind, i + 1, 48, 96); break;
		case HUGE: churner_init(&churners[i], kind, i + 1, 6, 3 * TLB_PAGES); break;
		case TLB: churner_init(&churners[i], kind, i + 1, 4, TLB_PAGES); break;
		}
		churners[i].guards = guards;
	}
}

static void start(void)
{
	/* After all other features took their memory: the heap above this belongs to the first thread. */
	struct churner *c = &churners[0];
	char *top = sbrk(0);
	char *base = (char *)(((uintptr_t)top + PAGE - 1) & ~(PAGE - 1));
	if (brk(base) == 0) {
		c->brk_base = base;
		c->owns_brk = true;
	}
	for (int i = 0; i < threads; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, churn, &churners[i]))
			die("thread");
	}
}

static void check(void)
{
	atomic_store(&check_waits, true);
	for (int i = 0; i < threads; i++) {
		pthread_mutex_lock(&churners[i].lock);
		churner_check(&churners[i]);
		pthread_mutex_unlock(&churners[i].lock);
	}
	atomic_store(&check_waits, false);
}

static void report(FILE *f)
{
	unsigned long ops = 0;
	for (int i = 0; i < threads; i++)
		ops += churners[i].ops;
	fprintf(f, " churned=%lu", ops);
}

const struct feature feature_churn = {
	.name = "churn",
	.help = "mappings that come, grow, move, drop pages, change and go: threads=4 rate=500 (steps/s each) of=small|huge|hugetlb pages, guards=yes "
		"with MADV_GUARD_INSTALL; reports churned",
	.setup = setup,
	.start = start,
	.check = check,
	.report = report,
};
