/*
 * direct: threads that read a file into private memory past the page cache (O_DIRECT). The device writes the pages, not the
 * program: a write protection does not see it.
 */
#include "subject.h"

#define PIECE (128 * PAGE) /* of one read */
#define THREADS_MAX 16

static struct {
	char *base;
	uint32_t *has; /* of each piece of memory: the piece of the file that it holds, and 1 */
	size_t pieces, blocks;
	int fd, threads;
	long nap;
	pthread_mutex_t lock[THREADS_MAX];
	atomic_ullong reads;
} d;

static atomic_bool check_waits;

static void *reader(void *arg)
{
	size_t me = (size_t)arg;
	uint64_t seed = mix(me + 500);
	for (;;) {
		if (d.nap || atomic_load(&check_waits))
			nap_us(d.nap ? d.nap : 200);
		pthread_mutex_lock(&d.lock[me]);
		size_t n = (seed = mix(seed)) % (d.pieces / d.threads) * d.threads + me;
		uint32_t block = (seed = mix(seed)) % d.blocks;
		if (pread(d.fd, d.base + n * PIECE, PIECE, block * PIECE) != (ssize_t)PIECE)
			bad("pread: %s", strerror(errno));
		d.has[n] = block + 1;
		atomic_fetch_add(&d.reads, 1);
		pthread_mutex_unlock(&d.lock[me]);
	}
	return NULL;
}

static void setup(struct args *a)
{
	d.pieces = arg_num(a, "mib", 8) * MIB / PIECE;
	d.blocks = arg_num(a, "file", 8) * MIB / PIECE;
	d.threads = arg_num(a, "threads", 4);
	d.nap = arg_num(a, "nap", 0);
	if (d.threads < 1 || d.threads > THREADS_MAX)
		die("threads must be 1 to %d", THREADS_MAX);
	const char *name = in_dir("direct");
	int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	struct stat st;
	if (fd < 0 || fstat(fd, &st))
		die_errno("open %s", name);
	/* The program may have executed itself: earlier checkpoints want the file as it was. */
	bool there = st.st_size == (off_t)(d.blocks * PIECE);
	char *page = map_anon(PAGE, PROT_READ | PROT_WRITE, 0);
	for (size_t n = 0; n < d.blocks * (PIECE / PAGE) && !there; n++) {
		page_fill(page, (30ULL << 20) + n, 1);
		write_full(fd, page, PAGE);
	}
	fsync(fd);
	close(fd);
	d.fd = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (d.fd < 0)
		need("a file system with O_DIRECT");
	d.base = map_anon(d.pieces * PIECE, PROT_READ | PROT_WRITE, 0);
	d.has = map_anon(d.pieces * sizeof *d.has, PROT_READ | PROT_WRITE, 0);
	for (int i = 0; i < d.threads; i++)
		pthread_mutex_init(&d.lock[i], NULL);
}

static void start(void)
{
	pthread_t t;
	for (int i = 0; i < d.threads; i++)
		if (pthread_create(&t, NULL, reader, (void *)(size_t)i))
			die("thread");
}

static void check(void)
{
	size_t wrong = 0;
	atomic_store(&check_waits, true);
	for (int i = 0; i < d.threads; i++)
		pthread_mutex_lock(&d.lock[i]);
	for (size_t n = 0; n < d.pieces; n++)
		for (size_t i = 0; d.has[n] && i < PIECE / PAGE; i++) {
			const char *why = page_wrong(d.base + n * PIECE + i * PAGE, (30ULL << 20) + (d.has[n] - 1) * (PIECE / PAGE) + i, 1);
			if (why && wrong++ < 3)
				bad("%s", why);
		}
	if (wrong > 1)
		bad("%zu pages are wrong", wrong);
	for (int i = 0; i < d.threads; i++)
		pthread_mutex_unlock(&d.lock[i]);
	atomic_store(&check_waits, false);
}

static void report(FILE *f)
{
	fprintf(f, " reads=%llu", (unsigned long long)d.reads);
}

const struct feature feature_direct = {
	.name = "direct",
	.help = "mib=8 filled by threads=4 with O_DIRECT from a file of file=8 MiB, nap=0 µs between two reads; reports reads",
	.setup = setup,
	.start = start,
	.check = check,
	.report = report,
};
