/*
 * pinned: memory that is registered with an io_uring. What is read into it goes to the pages themselves, past every protection
 * of the addresses. The first report reads once more, and closes the ring, so that the program can be dumped.
 */
#include "subject.h"
#include <linux/io_uring.h>
#include <sys/uio.h>

#define PAGES 16
#define KEY (31ULL << 20)

static struct {
	char *memory, *rings;
	struct io_uring_sqe *calls;
	struct io_uring_params p;
	int ring, file;
	uint32_t version;
} u = { .ring = -1 };

static void pinned_setup(struct args *a)
{
	(void)a;
	u.memory = map_anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	const char *name = in_dir("pinned");
	u.file = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (u.file < 0)
		die_errno("open %s", name);
	fill_all(u.memory, PAGES, KEY, 2);
	write_full(u.file, u.memory, PAGES * PAGE);
	fill_all(u.memory, PAGES, KEY, u.version = 1);

	struct iovec v = { u.memory, PAGES * PAGE };
	u.ring = syscall(SYS_io_uring_setup, 4, &u.p);
	if (u.ring < 0)
		need("io_uring (%s)", strerror(errno));
	if (syscall(SYS_io_uring_register, u.ring, IORING_REGISTER_BUFFERS, &v, 1))
		need("memory for an io_uring (%s)", strerror(errno));
	u.rings = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, u.ring, IORING_OFF_SQ_RING);
	u.calls = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, u.ring, IORING_OFF_SQES);
	if (u.rings == MAP_FAILED || u.calls == MAP_FAILED)
		die_errno("mmap of an io_uring");
}

static void pinned_report(FILE *f)
{
	if (u.ring >= 0) {
		u.calls[0] = (struct io_uring_sqe){
			.opcode = IORING_OP_READ_FIXED, .fd = u.file, .addr = (uintptr_t)u.memory, .len = PAGES * PAGE,
		};
		uint32_t *tail = (uint32_t *)(u.rings + u.p.sq_off.tail);
		((uint32_t *)(u.rings + u.p.sq_off.array))[0] = 0;
		__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
		if (syscall(SYS_io_uring_enter, u.ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
			bad("io_uring_enter: %s", strerror(errno));
		munmap(u.rings, PAGE);
		munmap(u.calls, PAGE);
		close(u.ring);
		u.ring = -1;
		u.version = 2;
	}
	fprintf(f, " version=%u", u.version);
}

static void pinned_check(void)
{
	check_all("registered memory", u.memory, PAGES, KEY, u.version);
}

const struct feature feature_pinned = {
	.name = "pinned", .help = "memory that an io_uring reads into; with the first report it does so, and the ring is closed",
	.setup = pinned_setup, .check = pinned_check, .report = pinned_report,
};
