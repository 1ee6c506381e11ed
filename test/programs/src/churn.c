/*
 * churn: mappings that come, grow, move, lose their pages, change their protection and go, from several threads, with every
 * page's content known. Each thread owns its slots; a check takes all threads' locks and looks at every page.
 */
#include "subject.h"

#define SLOTS 48
#define MAXPAGES 96

struct slot {
	char *addr; /* NULL: empty */
	size_t pages;
	int prot;
	bool shared;
	uint64_t key;		    /* page i has key + i: it keeps it when the mapping moves */
	uint32_t version[MAXPAGES]; /* 0: zero page */
};

struct churner {
	pthread_mutex_t lock;
	struct slot slot[SLOTS];
	uint64_t seed, next_key;
	unsigned long ops;
	bool owns_brk;
	char *brk_base;
	size_t brk_pages;
};

static struct churner *churners;
static int threads;
static long rate;
static atomic_bool check_waits;

static uint64_t roll(struct churner *c, uint64_t n)
{
	return (c->seed = mix(c->seed)) % n;
}

static void slot_check(const struct slot *s)
{
	if (!s->addr)
		return;
	if (s->prot == PROT_NONE)
		mprotect(s->addr, s->pages * PAGE, PROT_READ);
	for (size_t i = 0; i < s->pages; i++) {
		const char *p = s->addr + i * PAGE, *why = NULL;
		if (s->version[i])
			why = page_wrong(p, s->key + i, s->version[i]);
		else
			for (size_t k = 0; k < PAGE && !why; k += 8)
				if (*(const uint64_t *)(p + k))
					why = "an empty page is not zero";
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
		size_t n = roll(c, s->pages);
		page_fill(s->addr + n * PAGE, s->key + n, s->version[n] + 1);
		s->version[n]++;
	}
}

static void slot_map(struct churner *c, struct slot *s)
{
	memset(s, 0, sizeof *s);
	s->pages = 1 + roll(c, MAXPAGES);
	s->shared = roll(c, 8) == 0;
	s->prot = PROT_READ | PROT_WRITE;
	s->key = c->next_key;
	c->next_key += MAXPAGES;
	void *p = mmap(NULL, s->pages * PAGE, s->prot, MAP_ANONYMOUS | (s->shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);
	if (p == MAP_FAILED)
		return bad("mmap: %s", strerror(errno));
	s->addr = p;
	slot_write(c, s);
}

static void slot_remap(struct churner *c, struct slot *s)
{
	/* Shared anonymous memory can't grow past its file's size. */
	size_t pages = s->shared ? 1 + roll(c, s->pages) : 1 + roll(c, MAXPAGES);
	/* mremap works on one mapping: pages of another protection are never in a slot. */
	void *p = mremap(s->addr, s->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
	if (p == MAP_FAILED)
		return bad("mremap: %s", strerror(errno));
	for (size_t i = s->pages; i < pages; i++)
		s->version[i] = 0;
	s->addr = p;
	s->pages = pages;
}

/* slot_move moves a mapping of the same size to a place that the kernel picks. */
static void slot_move(struct slot *s)
{
	char *to = mmap(NULL, s->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (to == MAP_FAILED)
		return bad("mmap: %s", strerror(errno));
	if (mremap(s->addr, s->pages * PAGE, s->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		return bad("mremap to a place: %s", strerror(errno));
	s->addr = to;
}

static void slot_drop(struct churner *c, struct slot *s)
{
	size_t from = roll(c, s->pages), n = 1 + roll(c, s->pages - from);
	if (madvise(s->addr + from * PAGE, n * PAGE, MADV_DONTNEED))
		return bad("madvise: %s", strerror(errno));
	/* Shared pages stay in their file. */
	for (size_t i = from; i < from + n && !s->shared; i++)
		s->version[i] = 0;
}

static void slot_protect(struct churner *c, struct slot *s)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE };
	s->prot = prots[roll(c, 4)];
	if (mprotect(s->addr, s->pages * PAGE, s->prot))
		bad("mprotect: %s", strerror(errno));
}

/* Only the first thread grows and shrinks the heap; nobody else calls malloc while it works. */
static void brk_step(struct churner *c)
{
	size_t pages = roll(c, 512);
	if (sbrk(0) != c->brk_base + c->brk_pages * PAGE)
		return; /* the C library took the next piece: leave the heap alone from now on */
	if (brk(c->brk_base + pages * PAGE))
		return bad("brk: %s", strerror(errno));
	if (pages > c->brk_pages)
		fill_all(c->brk_base + c->brk_pages * PAGE, pages - c->brk_pages, (9ULL << 40) + c->brk_pages, 1);
	c->brk_pages = pages;
}

static void step(struct churner *c)
{
	struct slot *s = &c->slot[roll(c, SLOTS)];
	uint64_t what = roll(c, 16);
	c->ops++;
	if (c->owns_brk && what == 0 && roll(c, 4) == 0)
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
		slot_move(s);
	else if (what < 12)
		slot_drop(c, s);
	else if (what < 14)
		slot_protect(c, s);
	else {
		munmap(s->addr, s->pages * PAGE);
		s->addr = NULL;
	}
}

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
			step(c);
		pthread_mutex_unlock(&c->lock);
	}
	return NULL;
}

static void setup(struct args *a)
{
	threads = arg_num(a, "threads", 4);
	rate = arg_num(a, "rate", 500);
	if (threads < 1 || threads > 64)
		die("threads must be 1 to 64");
	churners = map_anon(threads * sizeof *churners, PROT_READ | PROT_WRITE, 0);
	for (int i = 0; i < threads; i++) {
		struct churner *c = &churners[i];
		pthread_mutex_init(&c->lock, NULL);
		c->seed = mix(i + 77);
		c->next_key = (uint64_t)(i + 1) << 32;
		/* Begin half full. */
		for (int k = 0; k < SLOTS / 2; k++)
			slot_map(c, &c->slot[k]);
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
		struct churner *c = &churners[i];
		pthread_mutex_lock(&c->lock);
		for (int k = 0; k < SLOTS; k++)
			slot_check(&c->slot[k]);
		if (c->owns_brk && c->brk_pages)
			check_all("heap", c->brk_base, c->brk_pages, 9ULL << 40, 1);
		pthread_mutex_unlock(&c->lock);
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
	.help = "mappings that come, grow, move, drop pages, change and go: threads=4 rate=500 (steps/s each); reports churned",
	.setup = setup,
	.start = start,
	.check = check,
	.report = report,
};
