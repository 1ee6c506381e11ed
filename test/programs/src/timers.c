/* Timers that send signals: timer_create, setitimer, alarm. */
#include "subject.h"
#include <sys/time.h>

#define HOUR_US (3600 * 1000000LL)

/* less says when what is left of a long timer did not just go on getting less. */
static void less(const char *what, int64_t left, int64_t *last)
{
	if (left <= 0 || left > *last || left < *last - 120 * 1000000LL)
		bad("%s: %ld ms are left, were %ld", what, left / 1000, *last / 1000);
	*last = left;
}

static int64_t spec_us(const struct timespec *t)
{
	return t->tv_sec * 1000000LL + t->tv_nsec / 1000;
}

/* ---- posixtimer ---- */

static timer_t far_timer, fast_timer, thread_timer;
static int64_t far_last = HOUR_US;
static atomic_ulong ticks, thread_ticks;
static atomic_int thread_tid, ticked_tid;
#define FAST_SIGNAL (SIGRTMIN + 8)
#define THREAD_SIGNAL (SIGRTMIN + 9)

static void on_tick(int s, siginfo_t *si, void *context)
{
	(void)s, (void)context;
	if (si->si_value.sival_int == 0x1234)
		ticks++;
}

static void on_thread_tick(int s)
{
	(void)s;
	atomic_store(&ticked_tid, syscall(SYS_gettid));
	thread_ticks++;
}

static void *timer_thread(void *arg)
{
	(void)arg;
	atomic_store(&thread_tid, syscall(SYS_gettid));
	for (;;)
		pause();
	return NULL;
}

static bool thread_runs(void *arg)
{
	(void)arg;
	return atomic_load(&thread_tid) != 0;
}

static void make_timer(timer_t *t, int signal, int value, pid_t tid, struct itimerspec spec)
{
	struct sigevent ev = { .sigev_notify = tid ? SIGEV_THREAD_ID : SIGEV_SIGNAL, .sigev_signo = signal };
	ev.sigev_value.sival_int = value;
	ev._sigev_un._tid = tid;
	if (timer_create(CLOCK_MONOTONIC, &ev, t) || timer_settime(*t, 0, &spec, NULL))
		die_errno("timer_create");
}

static void posixtimer_setup(struct args *a)
{
	(void)a;
	struct itimerspec hour = { .it_value.tv_sec = 3600, .it_interval.tv_sec = 9 };
	struct itimerspec fast = { .it_value.tv_nsec = 10000000, .it_interval.tv_nsec = 10000000 };
	struct sigaction sa = { .sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct sigaction ta = { .sa_handler = on_thread_tick, .sa_flags = SA_RESTART };
	sigaction(FAST_SIGNAL, &sa, NULL);
	sigaction(THREAD_SIGNAL, &ta, NULL);
	pthread_t th;
	if (pthread_create(&th, NULL, timer_thread, NULL) || !within(5000, thread_runs, NULL))
		die("thread");
	make_timer(&far_timer, FAST_SIGNAL, 1, 0, hour);
	make_timer(&fast_timer, FAST_SIGNAL, 0x1234, 0, fast);
	make_timer(&thread_timer, THREAD_SIGNAL, 2, thread_tid, fast);
}

static bool ticked(void *arg)
{
	unsigned long *since = arg;
	return ticks > since[0] && thread_ticks > since[1];
}

static void posixtimer_check(void)
{
	struct itimerspec t;
	if (timer_gettime(far_timer, &t)) {
		bad("timer_gettime: %s", strerror(errno));
		return;
	}
	want("interval", t.it_interval.tv_sec, 9);
	less("timer of an hour", spec_us(&t.it_value), &far_last);
	timer_gettime(fast_timer, &t);
	want("fast interval", t.it_interval.tv_nsec, 10000000);
	unsigned long since[2] = { ticks + 1, thread_ticks + 1 };
	if (!within(3000, ticked, since))
		bad("timers do not tick: %lu and %lu", ticks - since[0] + 1, thread_ticks - since[1] + 1);
	else
		want("thread that gets the tick", ticked_tid, thread_tid);
}

const struct feature feature_posixtimer = {
	.name = "posixtimer", .help = "timer_create: far away, every 10 ms to the process, and to one thread",
	.setup = posixtimer_setup, .check = posixtimer_check,
};

/* ---- itimer: the two that count CPU time ---- */

static atomic_ulong virtual_ticks, prof_ticks;

static void on_itimer(int s)
{
	if (s == SIGVTALRM)
		virtual_ticks++;
	else
		prof_ticks++;
}

static void itimer_setup(struct args *a)
{
	(void)a;
	struct itimerval v = { { 0, 20000 }, { 0, 20000 } };
	struct sigaction sa = { .sa_handler = on_itimer, .sa_flags = SA_RESTART };
	sigaction(SIGVTALRM, &sa, NULL);
	sigaction(SIGPROF, &sa, NULL);
	if (setitimer(ITIMER_VIRTUAL, &v, NULL) || setitimer(ITIMER_PROF, &v, NULL))
		die_errno("setitimer");
}

static void itimer_check(void)
{
	struct itimerval v;
	unsigned long since_v = virtual_ticks, since_p = prof_ticks;
	getitimer(ITIMER_VIRTUAL, &v);
	/* The kernel rounds to its tick. */
	if (v.it_interval.tv_sec || v.it_interval.tv_usec < 20000 || v.it_interval.tv_usec > 30000)
		bad("interval %ld µs, was 20000", v.it_interval.tv_usec);
	/* These count while the program computes. */
	volatile uint64_t x = 0;
	for (int64_t end = now_us() + 3000000; now_us() < end && (virtual_ticks == since_v || prof_ticks == since_p);)
		for (int i = 0; i < 100000; i++)
			x = mix(x);
	if (virtual_ticks == since_v || prof_ticks == since_p)
		bad("timers of CPU time do not tick: %lu %lu", virtual_ticks - since_v, prof_ticks - since_p);
}

const struct feature feature_itimer = {
	.name = "itimer", .help = "setitimer of user time and of CPU time, every 20 ms", .setup = itimer_setup,
	.check = itimer_check,
};

/* ---- alarm ---- */

static int64_t alarm_last = HOUR_US;

static void alarm_setup(struct args *a)
{
	(void)a;
	alarm(3600);
}

static void alarm_check(void)
{
	struct itimerval v;
	getitimer(ITIMER_REAL, &v);
	less("alarm", v.it_value.tv_sec * 1000000LL + v.it_value.tv_usec, &alarm_last);
}

const struct feature feature_alarm = {
	.name = "alarm", .help = "alarm in an hour", .setup = alarm_setup, .check = alarm_check,
};
