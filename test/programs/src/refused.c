/* What CRIU can't take: for tests of messages that name it. */
#include "subject.h"
#include <netinet/in.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/socket.h>

static int ring = -1;

static void iouring_setup(struct args *a)
{
	char params[120] = { 0 }; /* struct io_uring_params */
	(void)a;
	ring = syscall(SYS_io_uring_setup, 4, params);
	if (ring < 0)
		need("io_uring (%s)", strerror(errno));
}

static void iouring_check(void)
{
	if (fcntl(ring, F_GETFD) < 0)
		bad("the ring is gone");
}

const struct feature feature_iouring = {
	.name = "iouring", .help = "an io_uring, which CRIU refuses", .setup = iouring_setup, .check = iouring_check,
};

/* The main thread is traced by a child, as by a debugger. */
static struct helper tracer;

static void trace_parent(void *arg)
{
	(void)arg;
	if (ptrace(PTRACE_SEIZE, getppid(), NULL, NULL))
		_exit(1);
}

static void tracer_work(void *arg, char question, char *answer, size_t size)
{
	(void)arg, (void)question, (void)size;
	answer[0] = 0;
}

static void traced_setup(struct args *a)
{
	(void)a;
	helper_start(&tracer, trace_parent, tracer_work, NULL);
	if (!ask(&tracer, "tracer", '?'))
		need("the right to trace");
}

static void traced_check(void)
{
	ask(&tracer, "tracer", '?');
}

const struct feature feature_traced = {
	.name = "traced", .help = "traced by a child, which CRIU refuses", .setup = traced_setup, .check = traced_check,
};

/* Go 1.24 and newer listen with multipath TCP unless told otherwise. */
static int multipath;

static void mptcp_setup(struct args *a)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	(void)a;
	multipath = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
	if (multipath < 0)
		need("multipath TCP (%s)", strerror(errno));
	if (bind(multipath, (void *)&at, sizeof at) || listen(multipath, 1))
		die_errno("listen");
}

static void mptcp_check(void)
{
	int on = 0;
	socklen_t len = sizeof on;
	if (getsockopt(multipath, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) || !on)
		bad("it does not listen any more");
}

const struct feature feature_mptcp = {
	.name = "mptcp", .help = "a multipath TCP listener, which CRIU refuses", .setup = mptcp_setup, .check = mptcp_check,
};

/* A child whose first thread has ended while another works. */
static atomic_ulong *turns;

static void *go_on(void *arg)
{
	(void)arg;
	for (;; nap_us(1000))
		++*turns;
	return NULL;
}

static void headless_setup(struct args *a)
{
	(void)a;
	turns = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (turns == MAP_FAILED)
		die_errno("mmap");
	pid_t child = fork();
	if (child < 0)
		die_errno("fork");
	if (!child) {
		pthread_t thread;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (pthread_create(&thread, NULL, go_on, NULL))
			_exit(1);
		pthread_exit(NULL);
	}
	child_note(child);
	while (!*turns || proc_state(child) != 'Z')
		nap_us(1000);
}

static bool turned(void *before)
{
	return *turns != *(unsigned long *)before;
}

static void headless_check(void)
{
	unsigned long before = *turns;
	if (!within(5000, turned, &before))
		bad("the other thread stands still");
}

const struct feature feature_headless = {
	.name = "headless", .help = "a child whose first thread has ended while another works, which CRIU takes for a zombie",
	.setup = headless_setup, .check = headless_check,
};

/* A child that shares the memory of the program, but is a process of its own. */
static int share(void *arg)
{
	go_on(arg);
	return 0;
}

static void sharing_setup(struct args *a)
{
	(void)a;
	turns = map_anon(PAGE, PROT_READ | PROT_WRITE, 0);
	char *stack = map_anon(MIB, PROT_READ | PROT_WRITE, 0);
	pid_t child = clone(share, stack + MIB, CLONE_VM | SIGCHLD, NULL);
	if (child < 0)
		die_errno("clone");
	child_note(child);
	while (!*turns)
		nap_us(1000);
}

const struct feature feature_sharing = {
	.name = "sharing", .help = "a child with the same memory (CLONE_VM), which CRIU refuses",
	.setup = sharing_setup, .check = headless_check,
};
