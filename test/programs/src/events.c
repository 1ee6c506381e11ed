/* Descriptors that stand for events: epoll, eventfd, signalfd, timerfd, inotify. */
#include "subject.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

/* ---- epoll: three descriptors of different modes, and a thread that waits in it ---- */

static int epfd, level[2], edge[2], once;
static atomic_ulong seen_by_thread;
static int thread_ep, thread_event;

static void watch(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev))
		die_errno("epoll_ctl");
}

static void *epoll_thread(void *arg)
{
	(void)arg;
	for (;;) {
		struct epoll_event ev;
		uint64_t v;
		if (epoll_wait(thread_ep, &ev, 1, -1) == 1 && ev.data.u64 == 0xabcdef0123456789 &&
		    read(thread_event, &v, sizeof v) == sizeof v)
			atomic_fetch_add(&seen_by_thread, v);
	}
	return NULL;
}

static void epoll_setup(struct args *a)
{
	(void)a;
	epfd = epoll_create1(EPOLL_CLOEXEC);
	thread_ep = epoll_create1(0);
	thread_event = eventfd(0, EFD_NONBLOCK);
	once = eventfd(0, EFD_NONBLOCK);
	if (pipe(level) || pipe2(edge, O_NONBLOCK) || epfd < 0 || thread_ep < 0 || thread_event < 0 || once < 0)
		die_errno("epoll");
	watch(epfd, level[0], EPOLLIN, 0x1111222233334444);
	watch(epfd, edge[0], EPOLLIN | EPOLLET, 0x5555666677778888);
	watch(epfd, once, EPOLLIN | EPOLLONESHOT, 0x9999aaaabbbbcccc);
	watch(thread_ep, thread_event, EPOLLIN, 0xabcdef0123456789);
	/* One epoll watches the other. */
	watch(epfd, thread_ep, EPOLLPRI, 0x42);
}

static void epoll_start(void)
{
	pthread_t t;
	if (pthread_create(&t, NULL, epoll_thread, NULL))
		die("thread");
}

static bool thread_saw(void *arg)
{
	return atomic_load(&seen_by_thread) == *(unsigned long *)arg;
}

/* expect_event wants exactly one event, of this descriptor, or none when data is 0. */
static void expect_event(const char *what, uint64_t data)
{
	struct epoll_event ev[4];
	int n = epoll_wait(epfd, ev, 4, data ? 1000 : 0);
	if (n != (data ? 1 : 0))
		bad("%s: %d events", what, n);
	else if (data && ev[0].data.u64 != data)
		bad("%s: the event's data is %lx, was %lx", what, (long)ev[0].data.u64, (long)data);
}

static void epoll_check(void)
{
	char c;
	uint64_t v = 1;
	expect_event("at rest", 0);
	write_full(level[1], "l", 1);
	expect_event("level", 0x1111222233334444);
	expect_event("level, again", 0x1111222233334444);
	read_full("level", level[0], &c, 1);
	write_full(edge[1], "e", 1);
	expect_event("edge", 0x5555666677778888);
	expect_event("edge, again", 0);
	read_full("edge", edge[0], &c, 1);
	write_full(once, &v, sizeof v);
	expect_event("one-shot", 0x9999aaaabbbbcccc);
	expect_event("one-shot, again", 0);
	read_full("one-shot", once, &v, sizeof v);
	struct epoll_event ev = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 0x9999aaaabbbbcccc };
	if (epoll_ctl(epfd, EPOLL_CTL_MOD, once, &ev))
		bad("one-shot is not registered: %s", strerror(errno));

	unsigned long expected = atomic_load(&seen_by_thread) + 5;
	v = 5;
	write_full(thread_event, &v, sizeof v);
	if (!within(3000, thread_saw, &expected))
		bad("the thread in epoll_wait saw %lu, should be %lu", atomic_load(&seen_by_thread), expected);
}

const struct feature feature_epoll = {
	.name = "epoll", .help = "level, edge, one-shot and nested epoll, and a thread waiting in one", .setup = epoll_setup,
	.start = epoll_start, .check = epoll_check,
};

/* ---- eventfd ---- */

static int counter, semaphore;
static uint64_t count;
static bool with_semaphore;

static void eventfd_setup(struct args *a)
{
	/* CRIU 4.2 keeps the lower 32 bits of a counter, and forgets that an eventfd is a semaphore. */
	count = arg_num(a, "count", 0x12345678);
	with_semaphore = arg_num(a, "semaphore", 0);
	counter = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	semaphore = eventfd(3, (with_semaphore ? EFD_SEMAPHORE : 0) | EFD_NONBLOCK);
	if (counter < 0 || semaphore < 0 || write(counter, &count, sizeof count) != sizeof count)
		die_errno("eventfd");
}

static void semaphore_check(void)
{
	int steps = with_semaphore ? 3 : 1;
	uint64_t v;
	for (int i = 0; i < steps; i++) {
		v = 0;
		if (read(semaphore, &v, sizeof v) != sizeof v || v != (uint64_t)(3 / steps))
			bad("semaphore: step %d gives %ld, should be %d", i, (long)v, 3 / steps);
	}
	if (read(semaphore, &v, sizeof v) >= 0 || errno != EAGAIN)
		bad("semaphore: it has more than 3");
	v = 3;
	write_full(semaphore, &v, sizeof v);
}

static void eventfd_check(void)
{
	uint64_t v = 0;
	if (read(counter, &v, sizeof v) != sizeof v)
		bad("the counter is 0");
	want("counter", v, count);
	write_full(counter, &count, sizeof count);
	want("close-on-exec", fcntl(counter, F_GETFD), FD_CLOEXEC);
	semaphore_check();
}

const struct feature feature_eventfd = {
	.name = "eventfd", .help = "count=0x12345678 semaphore=0: two eventfds", .setup = eventfd_setup, .check = eventfd_check,
};

/* ---- signalfd ---- */

static int sigfd;
#define SIGNALFD_SIGNAL (SIGRTMIN + 7)

static void signalfd_send(void)
{
	union sigval v = { .sival_int = 0x7777 };
	if (sigqueue(getpid(), SIGNALFD_SIGNAL, v))
		bad("sigqueue: %s", strerror(errno));
}

static void signalfd_setup(struct args *a)
{
	(void)a;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGNALFD_SIGNAL);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigfd = signalfd(-1, &set, SFD_NONBLOCK);
	if (sigfd < 0)
		die_errno("signalfd");
	signalfd_send();
}

static void signalfd_check(void)
{
	struct signalfd_siginfo si;
	if (read(sigfd, &si, sizeof si) != sizeof si)
		bad("no signal waits: %s", strerror(errno));
	else {
		want("signal", si.ssi_signo, SIGNALFD_SIGNAL);
		want("its value", si.ssi_int, 0x7777);
	}
	if (read(sigfd, &si, sizeof si) >= 0)
		bad("a second signal waits");
	signalfd_send();
}

const struct feature feature_signalfd = {
	.name = "signalfd", .help = "a signalfd with a signal waiting", .setup = signalfd_setup, .check = signalfd_check,
};

/* ---- timerfd ---- */

static int far_timer, late_timer, fast_timer = -1, past_timer = -1;
static int64_t far_last;

static struct itimerspec timer_of(int64_t first_us, int64_t every_us)
{
	return (struct itimerspec){
		.it_value = { first_us / 1000000, first_us % 1000000 * 1000 },
		.it_interval = { every_us / 1000000, every_us % 1000000 * 1000 },
	};
}

static void timerfd_setup(struct args *a)
{
	struct itimerspec hour = timer_of(3600 * 1000000LL, 7000000), soon = timer_of(1, 0);
	/*
	 * A periodic timer whose tick was not read yet at the time of a checkpoint shows no time left. CRIU 4.2 restores that as
	 * a timer that is switched off: it never ticks again. So the fast one is only there on request. So is one that was set to a
	 * time of day, went off and was read: CRIU 4.2 lets it go off again.
	 */
	long period = arg_num(a, "period", 0);
	if (arg_num(a, "past", 0)) {
		struct itimerspec second = timer_of(1000000, 0); /* of 1970 */
		uint64_t v;
		past_timer = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
		if (timerfd_settime(past_timer, TFD_TIMER_ABSTIME, &second, NULL))
			die_errno("timerfd");
		read_full("timer that went off", past_timer, &v, sizeof v);
	}
	far_timer = timerfd_create(CLOCK_MONOTONIC, 0);
	late_timer = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
	if (timerfd_settime(far_timer, 0, &hour, NULL) || timerfd_settime(late_timer, 0, &soon, NULL))
		die_errno("timerfd");
	far_last = 3600 * 1000000LL;
	if (period) {
		struct itimerspec fast = timer_of(period * 1000, period * 1000);
		fast_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
		if (timerfd_settime(fast_timer, 0, &fast, NULL))
			die_errno("timerfd");
	}
}

static void fast_check(void)
{
	struct pollfd p = { .fd = fast_timer, .events = POLLIN };
	uint64_t v;
	for (int i = 0; i < 3; i++) {
		if (poll(&p, 1, 2000) != 1) {
			bad("the periodic timer does not tick");
			return;
		}
		read_full("periodic timer", fast_timer, &v, sizeof v);
	}
}

static void timerfd_check(void)
{
	struct itimerspec t;
	struct pollfd p = { .fd = late_timer, .events = POLLIN };
	timerfd_gettime(far_timer, &t);
	want("interval", t.it_interval.tv_sec, 7);
	/* What is left only ever gets less, and a checkpoint takes no minutes off. */
	int64_t left = t.it_value.tv_sec * 1000000LL + t.it_value.tv_nsec / 1000;
	if (left > far_last || left < far_last - 120 * 1000000LL)
		bad("%ld ms are left of an hour, were %ld", left / 1000, far_last / 1000);
	far_last = left;
	if (poll(&p, 1, 1000) != 1)
		bad("a timer that expired before, and was not read, is forgotten");
	if (fast_timer >= 0)
		fast_check();
	struct pollfd past = { .fd = past_timer, .events = POLLIN };
	if (past_timer >= 0 && poll(&past, 1, 100) != 0)
		bad("a timer that went off long ago, and was read, goes off again");
}

const struct feature feature_timerfd = {
	.name = "timerfd", .help = "one far away, one expired and unread, every period=0 ms (0: none), and past=0: one read after it went off",
	.setup = timerfd_setup, .check = timerfd_check,
};

/* ---- inotify ---- */

static int inotify, folder_wd, file_wd;
static const char *watched_file, *watched_new;

static void inotify_setup(struct args *a)
{
	(void)a;
	const char *folder = in_dir("watched");
	mkdir(folder, 0777);
	watched_file = in_dir("watched-file");
	watched_new = in_dir("watched/new");
	close(open(watched_file, O_CREAT | O_RDWR, 0666));
	inotify = inotify_init1(IN_NONBLOCK);
	folder_wd = inotify_add_watch(inotify, folder, IN_CREATE | IN_DELETE);
	file_wd = inotify_add_watch(inotify, watched_file, IN_ATTRIB);
	if (inotify < 0 || folder_wd < 0 || file_wd < 0)
		die_errno("inotify");
}

static void expect_change(const char *what, int wd, uint32_t mask, const char *name)
{
	union {
		struct inotify_event ev;
		char room[4096];
	} u;
	ssize_t n = read(inotify, &u, sizeof u);
	if (n < (ssize_t)sizeof u.ev)
		bad("%s: no event", what);
	else if (u.ev.wd != wd || u.ev.mask != mask || (*name && strcmp(u.ev.name, name)))
		bad("%s: watch %d mask %x name %s, should be watch %d mask %x name %s", what, u.ev.wd, u.ev.mask,
		    u.ev.len ? u.ev.name : "none", wd, mask, *name ? name : "none");
	else if (n > (ssize_t)(sizeof u.ev + u.ev.len))
		bad("%s: more than one event", what);
}

static void inotify_check(void)
{
	int fd = open(watched_new, O_CREAT | O_RDWR, 0666);
	expect_change("creating", folder_wd, IN_CREATE, "new");
	close(fd);
	unlink(watched_new);
	expect_change("deleting", folder_wd, IN_DELETE, "new");
	chmod(watched_file, 0640);
	expect_change("changing a mode", file_wd, IN_ATTRIB, "");
}

const struct feature feature_inotify = {
	.name = "inotify", .help = "watches on a folder and a file", .setup = inotify_setup, .check = inotify_check,
};
