/* Signals: handlers, the signal stack, and blocked signals that wait. */
#include "subject.h"

/* ---- handlers ---- */

static char *alt_stack;
static atomic_int on_alt, caught;

static void on_signal(int s, siginfo_t *si, void *context)
{
	char here;
	(void)si, (void)context;
	caught = s;
	on_alt = &here >= alt_stack && &here < alt_stack + 65536;
}

static void plain_handler(int s)
{
	caught = s;
}

#define FLAGS (SA_SIGINFO | SA_RESTART | SA_ONSTACK)

static void handlers_setup(struct args *a)
{
	(void)a;
	alt_stack = map_anon(65536, PROT_READ | PROT_WRITE, 0);
	stack_t alt = { .ss_sp = alt_stack, .ss_size = 65536 };
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = FLAGS }, once = { .sa_handler = plain_handler },
			 ignore = { .sa_handler = SIG_IGN };
	sigaddset(&sa.sa_mask, SIGINT);
	sigaddset(&sa.sa_mask, SIGRTMAX);
	once.sa_flags = SA_NODEFER;
	if (sigaltstack(&alt, NULL) || sigaction(SIGHUP, &sa, NULL) || sigaction(SIGRTMAX - 1, &once, NULL) ||
	    sigaction(SIGTSTP, &ignore, NULL) || sigaction(SIGTRAP, &once, NULL))
		die_errno("sigaction");
}

static void handlers_check(void)
{
	struct sigaction sa;
	caught = on_alt = 0;
	raise(SIGHUP);
	want("signal caught", caught, SIGHUP);
	want("handler ran on the signal stack", on_alt, 1);
	sigaction(SIGHUP, NULL, &sa);
	want("flags", sa.sa_flags & (FLAGS | SA_NODEFER), FLAGS);
	want("mask holds SIGINT", sigismember(&sa.sa_mask, SIGINT), 1);
	want("mask holds SIGRTMAX", sigismember(&sa.sa_mask, SIGRTMAX), 1);
	want("mask holds SIGXFSZ", sigismember(&sa.sa_mask, SIGXFSZ), 0);
	sigaction(SIGRTMAX - 1, NULL, &sa);
	if (sa.sa_handler != plain_handler || !(sa.sa_flags & SA_NODEFER))
		bad("the handler of a real-time signal is another");
	sigaction(SIGTRAP, NULL, &sa);
	if (sa.sa_handler != plain_handler)
		bad("the handler of SIGTRAP is gone, as it goes when somebody traces without care");
	sigaction(SIGTSTP, NULL, &sa);
	if (sa.sa_handler != SIG_IGN)
		bad("SIGTSTP is not ignored any more");
	sigaction(SIGXFSZ, NULL, &sa);
	if (sa.sa_handler != SIG_DFL)
		bad("SIGXFSZ got a handler");
}

const struct feature feature_handlers = {
	.name = "handlers", .help = "handlers with flags and masks, ignored ones, the signal stack", .setup = handlers_setup,
	.check = handlers_check,
};

/* ---- pending: to the process, several with values, and to one thread ---- */

#define QUEUED (SIGRTMIN + 10)
#define TO_THREAD (SIGRTMIN + 11)
#define TO_MAIN (SIGRTMIN + 12)

static pthread_t holder;
static atomic_uint asked, answered;
static atomic_bool holder_ready;

static void queue_them(void)
{
	for (int i = 0; i < 3; i++)
		if (sigqueue(getpid(), QUEUED, (union sigval){ .sival_int = 100 + i }))
			bad("sigqueue: %s", strerror(errno));
	kill(getpid(), SIGWINCH);
}

/* take_pending takes one waiting signal and compares it. */
static void take_pending(const char *what, int signal, int code, int value)
{
	sigset_t set;
	siginfo_t si;
	struct timespec zero = { 0, 0 };
	sigemptyset(&set);
	sigaddset(&set, signal);
	if (sigtimedwait(&set, &si, &zero) != signal) {
		bad("%s does not wait any more", what);
		return;
	}
	want(what, si.si_code, code);
	if (code == SI_QUEUE)
		want(what, si.si_value.sival_int, value);
	if (si.si_pid != getpid())
		bad("%s: its sender is %d", what, si.si_pid);
}

/* The thread holds a signal that was sent to it alone. */
static void *hold(void *arg)
{
	(void)arg;
	pthread_sigqueue(pthread_self(), TO_THREAD, (union sigval){ .sival_int = 55 });
	atomic_store(&holder_ready, true);
	for (;;) {
		while (atomic_load(&asked) == atomic_load(&answered))
			nap_us(1000);
		take_pending("signal of the thread", TO_THREAD, SI_QUEUE, 55);
		pthread_sigqueue(pthread_self(), TO_THREAD, (union sigval){ .sival_int = 55 });
		atomic_fetch_add(&answered, 1);
	}
	return NULL;
}

static bool holds(void *arg)
{
	(void)arg;
	return holder_ready;
}

static void pending_setup(struct args *a)
{
	(void)a;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, QUEUED);
	sigaddset(&set, TO_THREAD);
	sigaddset(&set, TO_MAIN);
	sigaddset(&set, SIGWINCH);
	/* Ignored by default, it would be dropped even while blocked. */
	signal(SIGWINCH, plain_handler);
	sigprocmask(SIG_BLOCK, &set, NULL);
	queue_them();
	raise(TO_MAIN);
	if (pthread_create(&holder, NULL, hold, NULL) || !within(5000, holds, NULL))
		die("thread");
}

static bool holder_answered(void *arg)
{
	(void)arg;
	return atomic_load(&asked) == atomic_load(&answered);
}

static void pending_check(void)
{
	for (int i = 0; i < 3; i++)
		take_pending("queued signal", QUEUED, SI_QUEUE, 100 + i);
	sigset_t waiting;
	sigpending(&waiting);
	if (sigismember(&waiting, QUEUED))
		bad("more than three queued signals wait");
	take_pending("SIGWINCH", SIGWINCH, SI_USER, 0);
	queue_them();
	take_pending("signal of the main thread", TO_MAIN, SI_USER, 0);
	raise(TO_MAIN);
	atomic_fetch_add(&asked, 1);
	if (!within(3000, holder_answered, NULL))
		bad("the thread does not answer");
}

const struct feature feature_pending = {
	.name = "pending", .help = "blocked signals waiting: queued with values, plain, of one thread", .setup = pending_setup,
	.check = pending_check,
};
