/*
 * family: processes that come and go all the time, each with memory of its own that it was born with and goes on to change:
 * by fork, by vfork and exec, by exec of one that was forked. Short-lived ones are born in between, prove what they inherited,
 * and end.
 */
#include "churn.h"
#include <poll.h>

#define MEMBERS 4
#define ANSWER 512

static struct {
	struct member {
		pid_t pid; /* 0: none */
		int to, from;
	} member[MEMBERS];
	struct churner own; /* of the root; a child is born with a copy */
	long rate;
	unsigned long births;
	pthread_mutex_t lock;
} f = { .lock = PTHREAD_MUTEX_INITIALIZER };

static atomic_bool check_waits;

/* ---- in a member ---- */

/* live changes the member's memory until it is asked: '?' is for a check, 'x' for an exec. Its memory must be its own alone. */
static void live(struct churner *c, int in, int out)
{
	char text[ANSWER];
	for (;;) {
		struct pollfd p = { .fd = in, .events = POLLIN };
		char question;
		if (poll(&p, 1, 2) != 1) {
			churner_step(c);
			continue;
		}
		ssize_t n = read(in, &question, 1);
		if (n == 0)
			_exit(0);
		if (n < 0)
			continue;
		if (question == 'x') {
			char to[16], from[16];
			snprintf(to, sizeof to, "%d", in);
			snprintf(from, sizeof from, "%d", out);
			execl("/proc/self/exe", "subject", "--member", to, from, NULL);
			_exit(7);
		}
		churner_check(c);
		memset(text, 0, sizeof text);
		bad_take(text, sizeof text);
		write_full(out, text, sizeof text);
	}
}

int member_main(int in, int out)
{
	static struct churner c;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	churner_init(&c, SMALL, getpid(), 12, 96);
	live(&c, in, out);
	return 0;
}

static void born(int in, int out)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < MEMBERS; i++)
		if (f.member[i].pid) {
			close(f.member[i].to);
			close(f.member[i].from);
		}
	churner_forked(&f.own);
	f.own.seed += getpid();
	live(&f.own, in, out);
}

/* ---- in the root ---- */

static void give_birth(struct member *m, bool by_vfork)
{
	int to[2], from[2];
	char in[16], out[16];
	if (pipe(to) || pipe(from))
		return bad("pipe: %s", strerror(errno));
	fcntl(to[1], F_SETFD, FD_CLOEXEC);
	fcntl(from[0], F_SETFD, FD_CLOEXEC);
	snprintf(in, sizeof in, "%d", to[0]);
	snprintf(out, sizeof out, "%d", from[1]);
	m->pid = by_vfork ? vfork() : fork();
	if (m->pid == 0) {
		if (by_vfork) {
			execl("/proc/self/exe", "subject", "--member", in, out, NULL);
			_exit(7);
		}
		close(to[1]);
		close(from[0]);
		m->pid = 0;
		born(to[0], from[1]);
	}
	close(to[0]);
	close(from[1]);
	m->to = to[1];
	m->from = from[0];
	if (m->pid < 0) {
		bad("fork: %s", strerror(errno));
		m->pid = 0;
	}
	f.births++;
}

static void bury(struct member *m)
{
	kill(m->pid, SIGKILL);
	while (waitpid(m->pid, NULL, 0) < 0 && errno == EINTR)
		;
	close(m->to);
	close(m->from);
	m->pid = 0;
}

/* short_life is a child that proves what it was born with, and says so by how it ends. */
static void short_life(void)
{
	int status = -1;
	pid_t pid = fork();
	if (pid == 0) {
		char text[ANSWER];
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		churner_forked(&f.own);
		churner_check(&f.own);
		_exit(bad_take(text, sizeof text) ? 1 : 0);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (status)
		bad("a short-lived child ends with status %#x", status);
	f.births++;
}

static void family_step(void)
{
	struct member *m = &f.member[churner_roll(&f.own, MEMBERS)];
	uint64_t what = churner_roll(&f.own, 8);
	if (what == 0)
		return short_life();
	if (!m->pid)
		return give_birth(m, what < 3);
	if (what < 3)
		bury(m);
	else if (what < 4 && write(m->to, "x", 1) != 1)
		bad("member %d: %s", m->pid, strerror(errno));
}

static void *lead(void *arg)
{
	(void)arg;
	for (;;) {
		nap_us(1000000 / f.rate);
		if (atomic_load(&check_waits))
			continue;
		pthread_mutex_lock(&f.lock);
		for (int i = 0; i < 20; i++)
			churner_step(&f.own);
		family_step();
		pthread_mutex_unlock(&f.lock);
	}
	return NULL;
}

static void setup(struct args *a)
{
	f.rate = arg_num(a, "rate", 20);
	if (f.rate < 1)
		die("rate must be at least 1");
	churner_init(&f.own, SMALL, 200, 12, 96);
}

static void start(void)
{
	pthread_t t;
	if (pthread_create(&t, NULL, lead, NULL))
		die("thread");
}

static void check(void)
{
	atomic_store(&check_waits, true);
	pthread_mutex_lock(&f.lock);
	churner_check(&f.own);
	for (int i = 0; i < MEMBERS; i++)
		if (f.member[i].pid) {
			struct helper h = { .pid = f.member[i].pid, .to = f.member[i].to, .from = f.member[i].from };
			ask(&h, "a member", '?');
		}
	pthread_mutex_unlock(&f.lock);
	atomic_store(&check_waits, false);
}

static void report(FILE *out)
{
	fprintf(out, " births=%lu", f.births);
}

const struct feature feature_family = {
	.name = "family",
	.help = "up to 4 processes that come by fork, vfork and exec, change their memory and go: rate=20 (births and ends/s); reports births",
	.setup = setup,
	.start = start,
	.check = check,
	.report = report,
};
