// A process like those that CRIU restores: its memory is armed with a
// userfaultfd that it has sent to lazy-pages.socket and closed. It then does
// what it is told, one command a line, and answers each with one line.
//
//   tenant DIR BASE PAGES [huge]
//
//   s            tell the socket that all is restored
//   v A N S      do the pages A..A+N have the content of the checkpoint's pages S..?
//   d A N        MADV_DONTNEED
//   k A N        MADV_WIPEONFORK; K takes it back
//   u A N        munmap
//   m A N B      mremap to B, an index that may lie behind PAGES
//   p A N        mprotect to read-only, which splits the mapping
//   W A N        write own content
//   o A N        do the pages have that own content?
//   F A N S      fork a child that answers v A N S; w tells its answer
//   e            fork a child that exits at once, and wait for it
//   g A N        a thread that grows the mapping A..A+N page by page and shrinks it, again and again; G ends it
//   t A N S      a thread that asks v A N S; j waits for all of them
//   x T K SEED   T threads do K random things each and check everything all the time
//   P T          time to populate PAGES of small pages with T threads, in microseconds
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)

static char *base;
static long pages;
static int conn;

static void die(const char *what)
{
	dprintf(2, "tenant: %s: %s\n", what, strerror(errno));
	_exit(3);
}

// The checkpoint's page i: every 16th is zero, another 16th is not in it.
static uint64_t word(long i, unsigned j)
{
	if (i % 16 == 3 || i % 16 == 7)
		return 0;
	uint64_t x = (uint64_t)i * WORDS + j + 1;
	x *= 0x9e3779b97f4a7c15ull;
	return x ^ x >> 29;
}

enum { ZERO = -1 }; // below: own content

static uint64_t expect(long what, unsigned j)
{
	return what >= 0 ? word(what, j) : what == ZERO ? 0 : (uint64_t)what * 1000003 + j;
}

static int same(const char *at, long what)
{
	const volatile uint64_t *p = (const volatile uint64_t *)at;
	for (unsigned j = 0; j < WORDS; j++)
		if (p[j] != expect(what, j)) {
			dprintf(2, "tenant: at %p, word %u: %#lx instead of %#lx (page %ld)\n", at, j, (long)p[j], (long)expect(what, j), what);
			return 0;
		}
	return 1;
}

static void own(char *at, long what)
{
	uint64_t *p = (uint64_t *)at;
	for (unsigned j = 0; j < WORDS; j++)
		p[j] = expect(what, j);
}

static int verify(long a, long n, long s)
{
	for (long i = 0; i < n; i++)
		if (!same(base + (a + i) * PAGE, s == ZERO ? ZERO : s + i))
			return 0;
	return 1;
}

// What a stress thread has: mappings, and what each of their pages must hold.
#define MAXCHUNKS 256
#define CHUNKPAGES 512
struct chunk {
	char *at;
	long n;
	long what[CHUNKPAGES];
};
struct stress {
	struct chunk c[MAXCHUNKS];
	int n;
	long ops, stamp;
	uint64_t rng;
	int ok;
};

static uint64_t rnd(struct stress *s, uint64_t below)
{
	s->rng ^= s->rng << 13;
	s->rng ^= s->rng >> 7;
	s->rng ^= s->rng << 17;
	return s->rng % below;
}

static int all_same(struct stress *s)
{
	for (int i = 0; i < s->n; i++)
		for (long k = 0; k < s->c[i].n; k++)
			if (!same(s->c[i].at + k * PAGE, s->c[i].what[k]))
				return 0;
	return 1;
}

// Takes pages [k, k+n) out of chunk i; what stands behind them becomes a chunk of its own.
static void take(struct stress *s, int i, long k, long n)
{
	struct chunk *c = &s->c[i], *rest = &s->c[s->n];
	if (k + n < c->n) {
		rest->at = c->at + (k + n) * PAGE;
		rest->n = c->n - k - n;
		memcpy(rest->what, c->what + k + n, rest->n * sizeof(long));
		s->n++;
	}
	c->n = k;
}

static void forget_empty(struct stress *s)
{
	for (int i = 0; i < s->n;)
		if (s->c[i].n)
			i++;
		else
			s->c[i] = s->c[--s->n];
}

static int random_things(struct stress *s, int depth);

// Held for writing by a thread that forks: the kernel does not tell in which
// order a fork and another thread's changes at the same instant were.
#define CALM PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
static pthread_rwlock_t calm = CALM;

static int do_fork(struct stress *s, int depth)
{
	pthread_rwlock_wrlock(&calm);
	pid_t pid = fork();
	if (!pid)
		calm = (pthread_rwlock_t)CALM;
	else
		pthread_rwlock_unlock(&calm);
	if (pid < 0)
		return 0;
	if (!pid) {
		s->ops = 10;
		s->rng ^= 0x5555;
		int ok = all_same(s) && random_things(s, depth + 1) && all_same(s);
		_exit(ok ? 0 : 1);
	}
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 0;
	if (status)
		dprintf(2, "tenant: child at depth %d ended with status %#x\n", depth + 1, status);
	return status == 0;
}

static int move(struct stress *s, int i, long k, long n, int flags)
{
	struct chunk *c = &s->c[i];
	char *from = c->at + k * PAGE, *to;
	long more = 0;
	if (flags & MREMAP_FIXED) {
		to = mmap(0, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (to == MAP_FAILED)
			return 0;
		to = mremap(from, n * PAGE, n * PAGE, flags, to);
	} else if (flags & MREMAP_DONTUNMAP) {
		to = mremap(from, n * PAGE, n * PAGE, flags, 0);
	} else { // the kernel finds a place, in the hole that another thread has just left
		more = n < CHUNKPAGES;
		to = mremap(from, n * PAGE, (n + more) * PAGE, flags);
	}
	if (to == MAP_FAILED)
		return errno == EFAULT || errno == ENOMEM ? 1 : 0; // read-only parts, several mappings
	long what[CHUNKPAGES];
	memcpy(what, c->what + k, n * sizeof(long));
	if (flags & MREMAP_DONTUNMAP) {
		for (long j = 0; j < n; j++)
			c->what[k + j] = ZERO;
	} else {
		take(s, i, k, n);
	}
	struct chunk *d = &s->c[s->n++];
	d->at = to;
	d->n = n + more;
	memcpy(d->what, what, n * sizeof(long));
	if (more)
		d->what[n] = ZERO;
	return 1;
}

static int one_thing(struct stress *s)
{
	int i = rnd(s, s->n);
	struct chunk *c = &s->c[i];
	long k = rnd(s, c->n), n = 1 + rnd(s, c->n - k < 24 ? c->n - k : 24);
	switch (rnd(s, 15)) {
	case 0: case 1: case 2:
		return same(c->at + k * PAGE, c->what[k]);
	case 3: case 4:
		own(c->at + k * PAGE, c->what[k] = -2 - s->stamp++);
		return 1;
	case 5: case 6: case 7:
		if (madvise(c->at + k * PAGE, n * PAGE, MADV_DONTNEED))
			return 0;
		for (long j = 0; j < n; j++)
			c->what[k + j] = ZERO;
		return same(c->at + k * PAGE, ZERO);
	case 8:
		if (n > 4)
			n = 4;
		if (munmap(c->at + k * PAGE, n * PAGE))
			return 0;
		take(s, i, k, n);
		return 1;
	case 9: case 10: case 11:
		return move(s, i, k, n, MREMAP_MAYMOVE);
	case 12:
		return move(s, i, k, n, MREMAP_MAYMOVE | MREMAP_FIXED);
	case 13:
		return move(s, i, k, n, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
	case 14:
		if (mprotect(c->at + k * PAGE, n * PAGE, PROT_READ) || mprotect(c->at + k * PAGE, n * PAGE, PROT_READ | PROT_WRITE))
			return 0;
		return 1;
	default:
		return 0;
	}
}

static int random_things(struct stress *s, int depth)
{
	for (long k = 0; k < s->ops && s->n; k++) {
		int ok;
		if (depth < 2 && rnd(s, 64) == 0) {
			ok = do_fork(s, depth);
		} else {
			pthread_rwlock_rdlock(&calm);
			ok = one_thing(s);
			pthread_rwlock_unlock(&calm);
		}
		if (!ok) {
			dprintf(2, "tenant: thing %ld at depth %d failed (%s)\n", k, depth, strerror(errno));
			return 0;
		}
		forget_empty(s);
		if (s->n > MAXCHUNKS - 4)
			break;
	}
	return 1;
}

static void *stress_thread(void *a)
{
	struct stress *s = a;
	s->ok = random_things(s, 0) && all_same(s);
	return 0;
}

static int stress(int threads, long ops, uint64_t seed)
{
	struct stress *s = mmap(0, threads * sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t t[64];
	long each = pages / threads;
	for (int i = 0; i < threads; i++) {
		s[i].ops = ops;
		s[i].rng = seed * 64 + i + 88172645463325252ull;
		for (long k = 0; k < each; k += CHUNKPAGES) {
			struct chunk *c = &s[i].c[s[i].n++];
			c->at = base + (i * each + k) * PAGE;
			c->n = each - k < CHUNKPAGES ? each - k : CHUNKPAGES;
			for (long j = 0; j < c->n; j++)
				c->what[j] = i * each + k + j;
		}
	}
	for (int i = 0; i < threads; i++)
		pthread_create(&t[i], 0, stress_thread, &s[i]);
	int ok = 1;
	for (int i = 0; i < threads; i++) {
		pthread_join(t[i], 0);
		ok &= s[i].ok;
	}
	return ok;
}

static struct grower {
	char *at;
	long n;
	volatile int stop, ok;
	pthread_t t;
} grower;

static void *grow(void *p)
{
	struct grower *g = p;
	const long most = g->n + 4096;
	for (g->ok = 1; g->ok && !g->stop;)
		for (long from = g->n, to; from <= most; from++) {
			to = from < most ? from + 1 : g->n;
			if (mremap(g->at, from * PAGE, to * PAGE, 0) == MAP_FAILED) {
				dprintf(2, "tenant: a mapping of %ld pages can't have %ld: %s\n", from, to, strerror(errno));
				g->ok = 0;
				break;
			}
		}
	return 0;
}

struct ask {
	long a, n, s;
	pthread_t t;
	int ok;
};

static void *asker(void *p)
{
	struct ask *q = p;
	q->ok = verify(q->a, q->n, q->s);
	return 0;
}

static void tell(int fd, const void *data, size_t n, int pass)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { (void *)data, n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (pass >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof control;
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(h), &pass, sizeof(int));
	}
	if (sendmsg(fd, &m, 0) != (ssize_t)n)
		die("send");
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)context;
	char maps[4096];
	ssize_t n;
	int fd = open("/proc/self/maps", O_RDONLY);
	dprintf(2, "tenant: signal %d, code %d, at %p\n", sig, info->si_code, info->si_addr);
	while ((n = read(fd, maps, sizeof maps)) > 0)
		if (write(2, maps, n) != n)
			break;
	_exit(4);
}

static void arm(const char *dir, int huge)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "lazy-pages.socket" };
	if (chdir(dir))
		die(dir);
	conn = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(conn, (struct sockaddr *)&to, sizeof to))
		die("connect");
	if (mmap(base, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != base)
		die("mmap");
	if (madvise(base, pages * PAGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die("madvise");
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
							       UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP };
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		die("userfaultfd");
	int32_t pid = -1; // a zombie first: no descriptor follows
	tell(conn, &pid, sizeof pid, -1);
	pid = 4711; // what it was when the checkpoint was made
	tell(conn, &pid, sizeof pid, -1);
	tell(conn, "", 1, fd);
	struct uffdio_register r = { .range = { (unsigned long)base, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	if (ioctl(fd, UFFDIO_REGISTER, &r))
		die("register");
	close(fd);
}

struct part {
	char *at;
	size_t n;
	pthread_t t;
};

static void *populate_part(void *a)
{
	struct part *p = a;
	if (madvise(p->at, p->n, MADV_POPULATE_WRITE))
		die("populate");
	return 0;
}

static long populate(long threads)
{
	struct timespec a, b;
	struct part part[64];
	char *p = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	madvise(p, pages * PAGE, MADV_NOHUGEPAGE);
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (long i = 0; i < threads; i++) {
		part[i].n = pages / threads * PAGE;
		part[i].at = p + i * part[i].n;
		pthread_create(&part[i].t, 0, populate_part, &part[i]);
	}
	for (long i = 0; i < threads; i++)
		pthread_join(part[i].t, 0);
	clock_gettime(CLOCK_MONOTONIC, &b);
	munmap(p, pages * PAGE);
	return (b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000;
}

int main(int argc, char **argv)
{
	static struct ask asks[64];
	int asked = 0;
	pid_t child = 0;
	char line[256], op;
	setvbuf(stdout, 0, _IOLBF, 0);
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &sa, 0);
	sigaction(SIGBUS, &sa, 0);
	if (argc < 4)
		return 2;
	base = (char *)strtoul(argv[2], 0, 0);
	pages = atol(argv[3]);
	arm(argv[1], argc > 4);
	puts("armed");
	while (fgets(line, sizeof line, stdin)) {
		long a = 0, n = 0, b = 0;
		int ok = 1, status;
		if (sscanf(line, "%c %ld %ld %ld", &op, &a, &n, &b) < 1)
			return 2;
		char *at = base + a * PAGE;
		switch (op) {
		case 's': {
			uint32_t last = 0x52535446;
			tell(conn, &last, sizeof last, -1);
			break;
		}
		case 'v': ok = verify(a, n, b); break;
		case 'd': ok = !madvise(at, n * PAGE, MADV_DONTNEED); break;
		case 'k': ok = !madvise(at, n * PAGE, MADV_WIPEONFORK); break;
		case 'K': ok = !madvise(at, n * PAGE, MADV_KEEPONFORK); break;
		case 'u': ok = !munmap(at, n * PAGE); break;
		case 'm': ok = mremap(at, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base + b * PAGE) != MAP_FAILED; break;
		case 'p': ok = !mprotect(at, n * PAGE, PROT_READ); break;
		case 'W':
			for (long i = 0; i < n; i++)
				own(at + i * PAGE, -2 - a - i);
			break;
		case 'o':
			for (long i = 0; ok && i < n; i++)
				ok = same(at + i * PAGE, -2 - a - i);
			break;
		case 'F':
			fflush(stdout);
			child = fork();
			if (!child)
				_exit(!verify(a, n, b));
			break;
		case 'w': ok = waitpid(child, &status, 0) == child && !status; break;
		case 'e':
			child = fork();
			if (!child)
				_exit(0);
			ok = waitpid(child, &status, 0) == child && !status;
			break;
		case 'g':
			grower = (struct grower){ .at = at, .n = n };
			ok = !pthread_create(&grower.t, 0, grow, &grower);
			break;
		case 'G':
			grower.stop = 1;
			pthread_join(grower.t, 0);
			ok = grower.ok;
			break;
		case 't':
			asks[asked] = (struct ask){ .a = a, .n = n, .s = b };
			ok = !pthread_create(&asks[asked].t, 0, asker, &asks[asked]);
			asked++;
			break;
		case 'j':
			while (asked) {
				pthread_join(asks[--asked].t, 0);
				ok &= asks[asked].ok;
			}
			break;
		case 'x': ok = stress(a, n, b); break;
		case 'P': printf("%ld\n", populate(a)); continue;
		default: return 2;
		}
		puts(ok ? "ok" : "bad");
	}
	return 0;
}
