/* What features share: pages that know themselves, mappings, children that answer. */
#include "subject.h"
#include <poll.h>

/* ---- pages ---- */

bool pages_compress;
atomic_ullong pages_proven;

uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

#define WORDS (PAGE / 8)
#define MAGIC 0x5354415349530000ULL /* no address, and no zero page, looks like this */
#define NOISE(s) ((s) = (s) * 6364136223846793005ULL + 1442695040888963407ULL)

/*
 * A page is: key ^ MAGIC, version, then words that only this key and version give. The style is a property of the program,
 * not of the page: it is chosen before the first page is written.
 */
static uint64_t page_seed(uint64_t key, uint32_t version)
{
	return mix(key * 0x100000001b3ULL + mix(version));
}

/* Runs as long as these compress as fast and as far as the memory of real programs does (lz4: to 0.29). */
static bool page_constant(size_t i)
{
	return pages_compress && (i & 63) >= 18;
}

void page_fill(void *p, uint64_t key, uint32_t version)
{
	uint64_t *w = p, s = page_seed(key, version);
	w[0] = key ^ MAGIC;
	w[1] = version;
	if (!pages_compress) {
		for (size_t i = 2; i < WORDS; i++)
			w[i] = NOISE(s);
		return;
	}
	for (size_t i = 2; i < WORDS; i++)
		w[i] = page_constant(i) ? 0x2020202020202020ULL : NOISE(s);
}

const char *page_wrong(const void *p, uint64_t key, uint32_t version)
{
	static __thread char text[160];
	const uint64_t *w = p;
	uint64_t s = page_seed(key, version);
	size_t i = 0;
	if (w[0] == (key ^ MAGIC) && w[1] == version)
		for (i = 2; i < WORDS; i++)
			if (w[i] != (page_constant(i) ? 0x2020202020202020ULL : NOISE(s)))
				break;
	if (i == WORDS) {
		atomic_fetch_add_explicit(&pages_proven, 1, memory_order_relaxed);
		return NULL;
	}

	size_t zero = 0;
	while (zero < WORDS && !w[zero])
		zero++;
	if (zero == WORDS)
		snprintf(text, sizeof text, "page %#lx is zero, should be version %u", (long)key, version);
	else if (i < 2)
		snprintf(text, sizeof text, "page %#lx version %u expected, holds page %#lx version %lu", (long)key, version,
			 (long)(w[0] ^ MAGIC), (long)w[1]);
	else
		snprintf(text, sizeof text, "page %#lx version %u differs from byte %zu on", (long)key, version, i * 8);
	return text;
}

void fill_all(void *p, size_t n, uint64_t key, uint32_t version)
{
	for (size_t i = 0; i < n; i++)
		page_fill((char *)p + i * PAGE, key + i, version);
}

void check_all(const char *what, const void *p, size_t n, uint64_t key, uint32_t version)
{
	size_t wrong = 0;
	for (size_t i = 0; i < n; i++) {
		const char *why = page_wrong((const char *)p + i * PAGE, key + i, version);
		if (why && !wrong++)
			bad("%s: %s", what, why);
	}
	if (wrong > 1)
		bad("%s: %zu of %zu pages are wrong", what, wrong, n);
}

void bytes_fill(void *p, size_t n, uint64_t key)
{
	uint64_t s = mix(key);
	for (size_t i = 0; i < n; i++)
		((unsigned char *)p)[i] = NOISE(s) >> 56;
}

bool bytes_wrong(const void *p, size_t n, uint64_t key)
{
	uint64_t s = mix(key);
	for (size_t i = 0; i < n; i++)
		if (((const unsigned char *)p)[i] != (unsigned char)(NOISE(s) >> 56))
			return true;
	return false;
}

/* ---- mappings ---- */

void *map_anon(size_t n, int prot, int flags)
{
	void *p = mmap(NULL, n, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	if (p == MAP_FAILED)
		die_errno("map %zu bytes", n);
	return p;
}

bool vma_of(const void *addr, struct vma *v)
{
	char line[512];
	bool in = false, got = false;
	FILE *f = fopen("/proc/self/smaps", "re");
	if (!f)
		return false;
	while (!got && fgets(line, sizeof line, f)) {
		unsigned long start, end;
		char perms[5];
		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) == 3) {
			in = start <= (unsigned long)addr && (unsigned long)addr < end;
			if (in) {
				memset(v, 0, sizeof *v);
				v->start = start;
				v->end = end;
				strcpy(v->perms, perms);
			}
		} else if (in && sscanf(line, "Rss: %lu", &v->rss_kib) == 1) {
		} else if (in && sscanf(line, "Anonymous: %lu", &v->anon_kib) == 1) {
		} else if (in && !strncmp(line, "VmFlags:", 8)) {
			snprintf(v->flags, sizeof v->flags, "%.250s", line + 8);
			got = true;
		}
	}
	fclose(f);
	return got;
}

bool vma_has(const struct vma *v, const char *flag)
{
	for (const char *p = v->flags; (p = strstr(p, flag)); p++)
		if (p > v->flags && p[-1] == ' ' && (p[2] == ' ' || p[2] == '\n' || !p[2]))
			return true;
	return false;
}

/* ---- time ---- */

int64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

void nap_us(long us)
{
	struct timespec t = { us / 1000000, us % 1000000 * 1000 };
	nanosleep(&t, NULL);
}

bool within(int ms, bool (*cond)(void *), void *arg)
{
	for (int64_t end = now_us() + ms * 1000LL; !cond(arg);) {
		if (now_us() > end)
			return false;
		nap_us(500);
	}
	return true;
}

/* ---- children ---- */

/* A helper's answer has a fixed size, so that no framing is needed on the pipe. */
#define ANSWER 512

static void helper_loop(int in, int out, helper_fn work, void *arg)
{
	for (;;) {
		char question, text[ANSWER] = "";
		ssize_t n = read(in, &question, 1);
		if (n == 0)
			_exit(0);
		if (n < 0)
			continue;
		work(arg, question, text, sizeof text);
		write_full(out, text, sizeof text);
	}
}

void helper_start(struct helper *h, void (*first)(void *), helper_fn work, void *arg)
{
	int to[2], from[2];
	if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
		die_errno("pipe");
	h->pid = fork();
	if (h->pid < 0)
		die_errno("fork");
	if (h->pid == 0) {
		close(to[1]);
		close(from[0]);
		/* Whatever happens to the parent, no child is left behind. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (first)
			first(arg);
		helper_loop(to[0], from[1], work, arg);
	}
	close(to[0]);
	close(from[1]);
	h->to = to[1];
	h->from = from[0];
	child_note(h->pid);
}

bool ask(const struct helper *h, const char *who, char question)
{
	char text[ANSWER];
	struct pollfd p = { .fd = h->from, .events = POLLIN };
	int n;
	if (write(h->to, &question, 1) != 1) {
		bad("%s (pid %d): its pipe is gone: %s", who, h->pid, strerror(errno));
		return false;
	}
	do
		n = poll(&p, 1, 10000);
	while (n < 0 && errno == EINTR);
	if (n <= 0) {
		bad("%s (pid %d) does not answer", who, h->pid);
		return false;
	}
	read_full(who, h->from, text, sizeof text);
	text[sizeof text - 1] = 0;
	if (text[0])
		bad("%s (pid %d): %s", who, h->pid, text);
	return !text[0];
}

char proc_state(pid_t pid)
{
	char path[64], line[512];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return 0;
	char *end = fgets(line, sizeof line, f) ? strrchr(line, ')') : NULL;
	fclose(f);
	return end ? end[2] : 0;
}

/* ---- files ---- */

void read_full(const char *what, int fd, void *p, size_t n)
{
	for (size_t got = 0; got < n;) {
		ssize_t r = read(fd, (char *)p + got, n - got);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0) {
			bad("%s: read %zu of %zu bytes: %s", what, got, n, r ? strerror(errno) : "end of file");
			memset((char *)p + got, 0, n - got);
			return;
		}
		got += r;
	}
}

void write_full(int fd, const void *p, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t r = write(fd, (const char *)p + done, n - done);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0) {
			bad("write: %s", strerror(errno));
			return;
		}
		done += r;
	}
}
