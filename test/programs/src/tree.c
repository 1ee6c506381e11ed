/* Trees of processes: what they share since the fork, their sessions and groups, stopped and zombie children. */
#include "subject.h"

/* ---- tree: children and grandchildren over memory that was written before the fork ---- */

#define MAXCHILDREN 64

struct child {
	int number; /* from 1; a grandchild has 100 times its parent's number more */
	pid_t parent;
	struct helper self, grandchild;
	bool has_grandchild;
};

static struct {
	char *base;
	size_t pages;
	int children, grandchildren;
	int own, parent; /* per cent of the pages that each child, and the parent, wrote after the fork */
	struct child child[MAXCHILDREN];
} t;

#define PARENT 99

/* After the fork a process writes some pages: which ones follows from the page's and the process's number. */
static bool writes(size_t n, int who)
{
	return (int)(mix(n * 1000 + who) % 100) < (who == PARENT ? t.parent : t.own);
}

/* Any other page is the parent's from before the fork. */
static uint32_t page_version(size_t n, int who)
{
	if (writes(n, who))
		return 1000 + who;
	return who > 100 ? page_version(n, who - 100) : 1;
}

static void write_own(int who)
{
	for (size_t n = 0; n < t.pages; n++)
		if (writes(n, who))
			page_fill(t.base + n * PAGE, n, 1000 + who);
}

static const char *pages_wrong(int who)
{
	for (size_t n = 0; n < t.pages; n++) {
		const char *why = page_wrong(t.base + n * PAGE, n, page_version(n, who));
		if (why)
			return why;
	}
	return NULL;
}

static void child_work(void *arg, char question, char *answer, size_t size);

static void grandchild_first(void *arg)
{
	struct child *c = arg;
	c->number += 100;
	c->parent = getppid();
	c->has_grandchild = false;
	write_own(c->number);
}

static void child_first(void *arg)
{
	struct child *c = arg;
	c->parent = getppid();
	write_own(c->number);
	if (c->number <= t.grandchildren) {
		helper_start(&c->grandchild, grandchild_first, child_work, c);
		c->has_grandchild = true;
	}
}

/* One byte back and forth: a child that can't use bad() says it in its answer. */
static void child_work(void *arg, char question, char *answer, size_t size)
{
	struct child *c = arg;
	(void)question;
	const char *why = pages_wrong(c->number);
	if (why)
		snprintf(answer, size, "child %d: %s", c->number, why);
	else if (getppid() != c->parent)
		snprintf(answer, size, "child %d: its parent is %d, was %d", c->number, getppid(), c->parent);
	else if (c->has_grandchild) {
		char q = question;
		if (write(c->grandchild.to, &q, 1) != 1)
			snprintf(answer, size, "child %d: its child is gone", c->number);
		else
			read_full("grandchild", c->grandchild.from, answer, 512);
	}
}

static void tree_setup(struct args *a)
{
	t.pages = arg_num(a, "mib", 16) * MIB / PAGE;
	t.children = arg_num(a, "children", 4);
	t.grandchildren = arg_num(a, "grandchildren", 2);
	t.own = arg_num(a, "own", 10);
	/* CRIU's restore lets a child share what its parent has now, not what it had when it forked. */
	t.parent = arg_num(a, "parent", 2);
	if (t.children > MAXCHILDREN)
		die("at most %d children", MAXCHILDREN);
	t.base = map_anon(t.pages * PAGE, PROT_READ | PROT_WRITE, 0);
	/* With huge pages one write after the fork would copy 2 MiB, and PSS would depend on it. */
	madvise(t.base, t.pages * PAGE, MADV_NOHUGEPAGE);
	fill_all(t.base, t.pages, 0, 1);
	for (int i = 0; i < t.children; i++) {
		t.child[i].number = i + 1;
		helper_start(&t.child[i].self, child_first, child_work, &t.child[i]);
	}
	/* The parent writes last, so that its children keep the pages from before. */
	write_own(PARENT);
}

static void tree_start(void)
{
	/* A first answer means that the child has written its own pages. */
	for (int i = 0; i < t.children; i++)
		if (!ask(&t.child[i].self, "child", '?'))
			die("child %d did not start well", i + 1);
}

static void tree_check(void)
{
	const char *why = pages_wrong(PARENT);
	if (why)
		bad("parent: %s", why);
	for (int i = 0; i < t.children; i++)
		ask(&t.child[i].self, "child", '?');
}

const struct feature feature_tree = {
	.name = "tree",
	.help = "children=4 grandchildren=2 over mib=16 written before the fork, of which each child rewrites own=10 % after it, the parent parent=2 %",
	.setup = tree_setup,
	.start = tree_start,
	.check = tree_check,
};

/* ---- zombie ---- */

static pid_t zombie_exited, zombie_killed;

static bool is_zombie(void *arg)
{
	return proc_state(*(pid_t *)arg) == 'Z';
}

static void zombie_setup(struct args *a)
{
	(void)a;
	zombie_exited = fork();
	if (!zombie_exited)
		_exit(42);
	zombie_killed = fork();
	if (!zombie_killed)
		for (;;)
			pause();
	kill(zombie_killed, SIGKILL);
	if (!within(5000, is_zombie, &zombie_exited) || !within(5000, is_zombie, &zombie_killed))
		die("a child did not become a zombie");
}

/* WNOWAIT leaves the zombie in place for the next check. */
static void zombie_look(const char *what, pid_t pid, int code, int status)
{
	siginfo_t si = { .si_pid = 0 };
	if (waitid(P_PID, pid, &si, WEXITED | WNOHANG | WNOWAIT))
		bad("%s %d: %s", what, pid, strerror(errno));
	else if (si.si_pid != pid)
		bad("%s %d is not a zombie any more: %c", what, pid, proc_state(pid) ?: '?');
	else if (si.si_code != code || si.si_status != status)
		bad("%s %d: code %d status %d, was %d %d", what, pid, si.si_code, si.si_status, code, status);
}

static void zombie_check(void)
{
	zombie_look("exited child", zombie_exited, CLD_EXITED, 42);
	zombie_look("killed child", zombie_killed, CLD_KILLED, SIGKILL);
}

const struct feature feature_zombie = {
	.name = "zombie", .help = "one child that exited and one that was killed, both unwaited", .setup = zombie_setup,
	.check = zombie_check,
};

/* ---- stopped: a child that was stopped, and goes on only for the time of a check ---- */

static struct helper stopped;
static char *stopped_mem;

static void stopped_work(void *arg, char question, char *answer, size_t size)
{
	(void)arg, (void)question;
	for (size_t i = 0; i < 64; i++) {
		const char *why = page_wrong(stopped_mem + i * PAGE, i, 7);
		if (why)
			snprintf(answer, size, "%s", why);
	}
}

static bool is_stopped(void *arg)
{
	(void)arg;
	return proc_state(stopped.pid) == 'T';
}

static void stopped_setup(struct args *a)
{
	(void)a;
	stopped_mem = map_anon(64 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill_all(stopped_mem, 64, 0, 7);
	helper_start(&stopped, NULL, stopped_work, NULL);
	kill(stopped.pid, SIGSTOP);
	if (!within(5000, is_stopped, NULL))
		die("the child did not stop");
}

static void stopped_check(void)
{
	if (!within(2000, is_stopped, NULL)) {
		bad("the stopped child is in state %c", proc_state(stopped.pid) ?: '?');
		return;
	}
	kill(stopped.pid, SIGCONT);
	ask(&stopped, "the stopped child", '?');
	kill(stopped.pid, SIGSTOP);
	if (!within(5000, is_stopped, NULL))
		bad("the child did not stop again");
}

const struct feature feature_stopped = {
	.name = "stopped", .help = "a child stopped by SIGSTOP", .setup = stopped_setup, .check = stopped_check,
};

/* ---- sessions: children in sessions and process groups of their own ---- */

static struct member {
	const char *what;
	struct helper h;
	pid_t sid, pgid;
} member[] = { { .what = "session leader" }, { .what = "group leader" }, { .what = "member of that group" } };
#define MEMBERS 3

static void lead_session(void *arg)
{
	(void)arg;
	setsid();
}

static void member_work(void *arg, char question, char *answer, size_t size)
{
	(void)question;
	pid_t want_sid = question == '!' ? 0 : ((struct member *)arg)->sid;
	if (want_sid && getsid(0) != want_sid)
		snprintf(answer, size, "session %d, was %d", getsid(0), want_sid);
}

static void sessions_setup(struct args *a)
{
	(void)a;
	helper_start(&member[0].h, lead_session, member_work, &member[0]);
	helper_start(&member[1].h, NULL, member_work, &member[1]);
	helper_start(&member[2].h, NULL, member_work, &member[2]);
	setpgid(member[1].h.pid, member[1].h.pid);
	setpgid(member[2].h.pid, member[1].h.pid);
	for (int i = 0; i < MEMBERS; i++) {
		if (!ask(&member[i].h, member[i].what, '!')) /* after this, lead_session has run */
			die("child %d does not answer", i);
		member[i].sid = getsid(member[i].h.pid);
		member[i].pgid = getpgid(member[i].h.pid);
	}
	if (member[0].sid != member[0].h.pid || member[2].pgid != member[1].h.pid)
		die("sessions and groups are not as asked for");
}

static void sessions_check(void)
{
	for (int i = 0; i < MEMBERS; i++) {
		ask(&member[i].h, member[i].what, '?');
		want(member[i].what, getsid(member[i].h.pid), member[i].sid);
		want(member[i].what, getpgid(member[i].h.pid), member[i].pgid);
	}
}

const struct feature feature_sessions = {
	.name = "sessions", .help = "children in their own session, group, and another's group", .setup = sessions_setup,
	.check = sessions_check,
};
