/*
 * threads: many threads in different kinds of waits, each with its own name, signal mask, thread-local memory, stack content
 * and counter. A check wakes them all; each looks at what is its own.
 */
#include "subject.h"
#include <poll.h>
#include <sys/epoll.h>

#define TLS_BYTES 3000

enum waits { ON_FUTEX, ON_PIPE, ON_POLL, ON_EPOLL, ON_SLEEP, BUSY, WAITS };

struct thread {
	pthread_t handle;
	int number;
	pid_t tid;
	int pipe[2], epoll;
	atomic_uint asked, answered;
	atomic_ulong count;
	void *robust, *altstack;
	sigset_t mask;
};

static struct thread *all;
static int count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static __thread unsigned char tls[TLS_BYTES];
static __thread struct thread *self;

static void *robust_head(void)
{
	void *head = NULL;
	size_t len;
	syscall(SYS_get_robust_list, 0, &head, &len);
	return head;
}

static void look(struct thread *t, const unsigned char *local)
{
	char name[16], expected[16];
	sigset_t mask;
	stack_t alt;
	if (self != t)
		bad("thread %d: its thread-local pointer is %p", t->number, (void *)self);
	if (bytes_wrong(tls, TLS_BYTES, t->number))
		bad("thread %d: its thread-local memory is wrong", t->number);
	if (bytes_wrong(local, 20000, t->number + 1000))
		bad("thread %d: its stack is wrong", t->number);
	if (syscall(SYS_gettid) != t->tid)
		bad("thread %d: its id is %ld, was %d", t->number, syscall(SYS_gettid), t->tid);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (int s = 1; s < 65; s++)
		if (sigismember(&mask, s) != sigismember(&t->mask, s))
			bad("thread %d: signal %d is %sblocked", t->number, s, sigismember(&mask, s) ? "" : "not ");
	snprintf(expected, sizeof expected, "worker-%d", t->number);
	prctl(PR_GET_NAME, name);
	if (strcmp(name, expected))
		bad("thread %d: its name is %s", t->number, name);
	if (robust_head() != t->robust)
		bad("thread %d: its robust list moved", t->number);
	sigaltstack(NULL, &alt);
	if (alt.ss_sp != t->altstack || (t->altstack && alt.ss_size != 32768))
		bad("thread %d: its signal stack is %p, was %p", t->number, alt.ss_sp, t->altstack);
}

/* Waits until the check's question is there, in this thread's own way. */
static void wait_for_question(struct thread *t, unsigned seen)
{
	char c;
	struct epoll_event ev;
	struct pollfd p = { .fd = t->pipe[0], .events = POLLIN };
	switch (t->number % WAITS) {
	case ON_FUTEX:
		pthread_mutex_lock(&lock);
		while (atomic_load(&t->asked) == seen)
			pthread_cond_wait(&cond, &lock);
		pthread_mutex_unlock(&lock);
		return;
	case ON_POLL:
		while (poll(&p, 1, -1) < 0)
			;
		break;
	case ON_EPOLL:
		while (epoll_wait(t->epoll, &ev, 1, -1) < 1)
			;
		if (ev.data.u64 != mix(t->number))
			bad("thread %d: epoll gave %lx", t->number, (long)ev.data.u64);
		break;
	case ON_SLEEP:
		while (atomic_load(&t->asked) == seen) {
			nap_us(5000);
			t->count++;
		}
		break;
	case BUSY:
		/* Not every one may spin: the machine can be small. */
		while (atomic_load(&t->asked) == seen) {
			t->count++;
			if (t->number > WAITS || t->count % 4096 == 0)
				nap_us(1000);
		}
	}
	while (read(t->pipe[0], &c, 1) != 1)
		;
}

static void *worker(void *arg)
{
	struct thread *t = arg;
	unsigned char local[20000];
	unsigned seen = 0;
	self = t;
	t->tid = syscall(SYS_gettid);
	t->robust = robust_head();
	bytes_fill(tls, TLS_BYTES, t->number);
	bytes_fill(local, sizeof local, t->number + 1000);
	sigemptyset(&t->mask);
	sigaddset(&t->mask, SIGUSR1);
	sigaddset(&t->mask, SIGUSR2);
	sigaddset(&t->mask, SIGTERM);
	sigaddset(&t->mask, SIGRTMIN + t->number % 28);
	pthread_sigmask(SIG_SETMASK, &t->mask, NULL);
	if (t->number % 2) {
		stack_t alt = { .ss_sp = map_anon(32768, PROT_READ | PROT_WRITE, 0), .ss_size = 32768 };
		sigaltstack(&alt, NULL);
		t->altstack = alt.ss_sp;
	}
	char name[16];
	snprintf(name, sizeof name, "worker-%d", t->number);
	prctl(PR_SET_NAME, name);
	atomic_store(&t->answered, 1);
	for (;; seen++) {
		wait_for_question(t, seen);
		look(t, local);
		atomic_fetch_add(&t->answered, 1);
	}
	return NULL;
}

static void setup(struct args *a)
{
	count = arg_num(a, "count", 64);
	all = calloc(count, sizeof *all);
	for (int i = 0; i < count; i++) {
		struct thread *t = &all[i];
		struct epoll_event ev = { .events = EPOLLIN, .data.u64 = mix(i) };
		t->number = i;
		if (pipe(t->pipe))
			die_errno("pipe");
		t->epoll = epoll_create1(0);
		epoll_ctl(t->epoll, EPOLL_CTL_ADD, t->pipe[0], &ev);
		pthread_attr_t attr;
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, 256 * 1024);
		if (pthread_create(&t->handle, &attr, worker, t))
			die("thread %d", i);
	}
}

static bool all_answered(void *arg)
{
	for (int i = 0; i < count; i++)
		if (atomic_load(&all[i].answered) != *(unsigned *)arg)
			return false;
	return true;
}

static unsigned rounds = 1;

static void start(void)
{
	if (!within(10000, all_answered, &rounds))
		die("not all threads started");
}

static void check(void)
{
	pthread_mutex_lock(&lock);
	for (int i = 0; i < count; i++)
		atomic_fetch_add(&all[i].asked, 1);
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < count; i++)
		if (i % WAITS != ON_FUTEX)
			write_full(all[i].pipe[1], "?", 1);
	rounds++;
	if (!within(10000, all_answered, &rounds))
		for (int i = 0; i < count; i++)
			if (atomic_load(&all[i].answered) != rounds) {
				bad("thread %d (%d) does not answer", i, all[i].tid);
				break;
			}
}

const struct feature feature_threads = {
	.name = "threads", .help = "count=64 threads in futex, pipe, poll, epoll and sleep waits, with all that is per thread",
	.setup = setup, .start = start, .check = check,
};
