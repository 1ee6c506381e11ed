/*
 * mem: much memory, written at random places all the time, and a thread that measures how long the program stood still.
 *
 * Versions live in a table of their own, in another mapping: a page that comes back old, zero, torn or from elsewhere
 * disagrees with it. Page number n has key n; version 0 is a page that nobody wrote yet, and has to be zero.
 */
#include "subject.h"

static struct {
	char *base;
	uint32_t *version;
	size_t pages, hot; /* hot: the writers stay below this page number */
	long rate;	   /* MB/s of all writers, 0: nobody writes */
	int writers;
	bool spin, watch, list_gaps;
} m;

/* The writers write under this lock, a batch at a time; a check holds it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool check_waits;
static atomic_ullong written;
static atomic_long gap_max, slow_max;
/*
 * The longest jump of the wall clock and when it ended. A restored program can tell by it when it went on: for its
 * CLOCK_MONOTONIC no time has passed since the dump.
 */
static atomic_llong jump_max, jump_end;
/* The longest gaps since the last report, longest first, with the wall clock's time at their ends. */
static struct gap {
	int64_t us, end;
} gaps[32];
static pthread_mutex_t gaps_lock = PTHREAD_MUTEX_INITIALIZER;

static void note_gap(int64_t us, int64_t end)
{
	enum { N = sizeof gaps / sizeof *gaps };
	pthread_mutex_lock(&gaps_lock);
	size_t i = us > gaps[N - 1].us ? N - 1 : N;
	for (; i < N && i > 0 && gaps[i - 1].us < us; i--)
		gaps[i] = gaps[i - 1];
	if (i < N)
		gaps[i] = (struct gap){ us, end };
	pthread_mutex_unlock(&gaps_lock);
}

/* As gaps=US@END,US@END and so on. */
static void report_gaps(FILE *f)
{
	pthread_mutex_lock(&gaps_lock);
	fprintf(f, " gaps=");
	for (size_t i = 0; i < sizeof gaps / sizeof *gaps && gaps[i].us; i++)
		fprintf(f, "%s%lld@%lld", i ? "," : "", (long long)gaps[i].us, (long long)gaps[i].end);
	memset(gaps, 0, sizeof gaps);
	pthread_mutex_unlock(&gaps_lock);
}

static void raise_to(atomic_long *a, long v)
{
	long old = atomic_load(a);
	while (v > old && !atomic_compare_exchange_weak(a, &old, v))
		;
}

static void write_page(size_t n)
{
	int64_t t = now_us();
	page_fill(m.base + n * PAGE, n, m.version[n] + 1);
	m.version[n]++;
	raise_to(&slow_max, now_us() - t);
}

static void *writer(void *arg)
{
	size_t me = (size_t)arg;
	uint64_t seed = mix(me + 1);
	double per_us = m.rate * 1e6 / PAGE / m.writers / 1e6, due = 0;
	int64_t last = now_us();
	for (;;) {
		int64_t now = now_us();
		due += (now - last) * per_us;
		last = now;
		/* After a standstill, go on at the rate: what was missed is not made up for. */
		if (due > 64 + 10000 * per_us)
			due = 64;
		if (atomic_load(&check_waits) || due < 1) {
			nap_us(200);
			continue;
		}
		pthread_mutex_lock(&lock);
		for (int i = 0; i < 64 && due >= 1; i++, due--) {
			size_t n = (seed = mix(seed)) % m.hot;
			/* Each page has one writer, so that its version needs no lock of its own. */
			n = n - n % m.writers + me;
			if (n < m.hot)
				write_page(n);
			atomic_fetch_add(&written, 1);
		}
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

static int64_t wall_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

enum { LISTED_GAP = 500 }; /* µs; less is what any thread waits for a CPU */

static void *watcher(void *arg)
{
	(void)arg;
	prctl(PR_SET_TIMERSLACK, 1); /* else each nap is 50 µs longer than asked */
	for (int64_t last = now_us(), wall_last = wall_us();;) {
		if (!m.spin)
			nap_us(50);
		int64_t now = now_us(), wall = wall_us();
		raise_to(&gap_max, now - last);
		if (m.list_gaps && now - last >= LISTED_GAP)
			note_gap(now - last, wall);
		if (wall - wall_last > jump_max) {
			jump_end = wall;
			jump_max = wall - wall_last;
		}
		last = now;
		wall_last = wall;
	}
	return NULL;
}

/* ---- all pages, with a few threads, since a check of 4 GiB would take a while with one ---- */

static void (*each_page)(size_t n);

static void *part_main(void *arg)
{
	for (size_t n = (size_t)arg; n < m.pages; n += 4)
		each_page(n);
	return NULL;
}

static void all_pages(void (*fn)(size_t))
{
	pthread_t t[4];
	each_page = fn;
	if (m.pages < 16384) {
		for (size_t n = 0; n < m.pages; n++)
			fn(n);
		return;
	}
	for (size_t i = 0; i < 4; i++)
		if (pthread_create(&t[i], NULL, part_main, (void *)i))
			die("thread");
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

static long touched;
static atomic_size_t wrong;

static void touch_page(size_t n)
{
	if ((long)(mix(n) % 100) < touched) {
		m.version[n] = 1;
		page_fill(m.base + n * PAGE, n, 1);
	}
}

static void check_page(size_t n)
{
	static const char zero[PAGE];
	const char *p = m.base + n * PAGE, *why;
	if (m.version[n] == 0)
		why = memcmp(p, zero, PAGE) ? "a page that was never written is not zero" : NULL;
	else
		why = page_wrong(p, n, m.version[n]);
	if (why && atomic_fetch_add(&wrong, 1) < 3)
		bad("%s", why);
}

/* ---- the feature ---- */

/* Far from all other memory, and not where a huge page begins. */
static void *map_alone(size_t bytes)
{
	void *p = mmap((void *)(0x200000000000 + MIB / 2), bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static void setup(struct args *a)
{
	m.pages = arg_num(a, "mib", 16) * MIB / PAGE;
	m.rate = arg_num(a, "rate", 10);
	m.writers = arg_num(a, "writers", 1);
	m.hot = m.pages * arg_num(a, "hot", 100) / 100;
	touched = arg_num(a, "touched", 100);
	pages_compress = !strcmp(arg_text(a, "fill", "noise"), "text");
	const char *thp = arg_text(a, "thp", "unset");
	const char *watch = arg_text(a, "watch", "nap");
	m.watch = strcmp(watch, "no");
	m.spin = !strcmp(watch, "spin");
	m.list_gaps = !strcmp(arg_text(a, "gaps", "no"), "list");
	if (!m.pages || !m.hot || m.writers < 1)
		die("mib, hot and writers must be at least 1");

	if (!strcmp(arg_text(a, "alone", "no"), "yes"))
		m.base = map_alone(m.pages * PAGE);
	else
		m.base = map_anon(m.pages * PAGE, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	m.version = map_anon(m.pages * sizeof *m.version, PROT_READ | PROT_WRITE, 0);
	if (!strcmp(thp, "yes") && madvise(m.base, m.pages * PAGE, MADV_HUGEPAGE))
		need("transparent huge pages");
	if (!strcmp(thp, "no"))
		madvise(m.base, m.pages * PAGE, MADV_NOHUGEPAGE);
	all_pages(touch_page);
}

static void start(void)
{
	pthread_t t;
	if (m.watch && pthread_create(&t, NULL, watcher, NULL))
		die("thread");
	for (int i = 0; m.rate && i < m.writers; i++)
		if (pthread_create(&t, NULL, writer, (void *)(size_t)i))
			die("thread");
}

static void check(void)
{
	atomic_store(&check_waits, true);
	pthread_mutex_lock(&lock);
	atomic_store(&wrong, 0);
	all_pages(check_page);
	if (wrong > 1)
		bad("%zu of %zu pages are wrong", wrong, m.pages);
	pthread_mutex_unlock(&lock);
	atomic_store(&check_waits, false);
}

/* The longest times are since the last report; pages is the number written since the start. */
static void report(FILE *f)
{
	if (m.watch) {
		atomic_store(&jump_max, 0);
		fprintf(f, " gap_us=%ld jump_end_us=%lld", atomic_exchange(&gap_max, 0), (long long)jump_end);
		if (m.list_gaps)
			report_gaps(f);
	}
	if (m.rate)
		fprintf(f, " slow_us=%ld written=%llu", atomic_exchange(&slow_max, 0), (unsigned long long)written);
}

const struct feature feature_mem = {
	.name = "mem",
	.help = "mib=16 rate=10 (MB/s) writers=1 hot=100 (%) touched=100 (%) fill=noise|text thp=yes|no watch=nap|spin|no gaps=list alone=yes|no; "
		"reports gap_us, jump_end_us, slow_us, written, gaps",
	.setup = setup,
	.start = start,
	.check = check,
	.report = report,
};
