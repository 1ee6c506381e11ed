/* The frame of the program: arguments, the loop that waits for signals, and the answers. */
#include "subject.h"
#include <stdarg.h>
#include <ucontext.h>

static const char *dir;
static char **arguments;
static char answers_path[PATH_MAX];
static int chosen_count;
static const struct feature *chosen[64];
static unsigned sequence;

/* ---- saying what is wrong ---- */

static pthread_mutex_t bad_lock = PTHREAD_MUTEX_INITIALIZER;
static char bad_text[8192];
static size_t bad_len;
static const char working[] = "while working"; /* not in a check */
static const char *bad_who = "subject";

void bad(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	pthread_mutex_lock(&bad_lock);
	size_t left = sizeof bad_text - bad_len;
	int n = snprintf(bad_text + bad_len, left, "%s%s: ", bad_len ? " | " : "", bad_who);
	if (n > 0 && (size_t)n < left)
		n += vsnprintf(bad_text + bad_len + n, left - n, fmt, ap);
	/* When the buffer is full the rest is dropped: the first differences say enough. */
	bad_len = (size_t)n < left ? bad_len + n : sizeof bad_text - 1;
	pthread_mutex_unlock(&bad_lock);
	va_end(ap);
}

bool bad_take(char *text, size_t size)
{
	pthread_mutex_lock(&bad_lock);
	bool any = bad_len > 0;
	snprintf(text, size, "%s", bad_text);
	bad_len = 0;
	bad_text[0] = 0;
	pthread_mutex_unlock(&bad_lock);
	return any;
}

/* A child that is forked beside working threads may find things wrong as well. */
static void before_fork(void)
{
	pthread_mutex_lock(&bad_lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&bad_lock);
}

static void after_fork_child(void)
{
	bad_len = 0;
	bad_text[0] = 0;
	pthread_mutex_unlock(&bad_lock);
}

void want(const char *what, long long got, long long expected)
{
	if (got != expected)
		bad("%s is %lld, was %lld", what, got, expected);
}

/* publish puts one line into the status file by a rename, so that a reader never sees half of it. */
static void publish(const char *line)
{
	char tmp[PATH_MAX], path[PATH_MAX];
	snprintf(tmp, sizeof tmp, "%s/status.new", dir);
	snprintf(path, sizeof path, "%s/status", dir);
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, line, strlen(line)) < 0 || close(fd) || rename(tmp, path))
		_exit(3);
}

static void vfail(const char *word, const char *fmt, va_list ap, int err)
{
	char *line = NULL;
	size_t size;
	FILE *f = open_memstream(&line, &size);
	if (!f)
		_exit(3);
	fprintf(f, "%s %s: ", word, bad_who);
	vfprintf(f, fmt, ap);
	if (err)
		fprintf(f, ": %s", strerror(err));
	if (bad_len) /* what was found before may be the reason */
		fprintf(f, ": %s", bad_text);
	fputc('\n', f);
	fclose(f);
	publish(line);
}

void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vfail("failed", fmt, ap, 0);
	_exit(2);
}

void die_errno(const char *fmt, ...)
{
	int err = errno;
	va_list ap;
	va_start(ap, fmt);
	vfail("failed", fmt, ap, err);
	_exit(2);
}

void need(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vfail("missing", fmt, ap, 0);
	_exit(4);
}

/* ---- arguments ---- */

struct args {
	char text[256];
	struct {
		char *key, *value;
		bool used;
	} item[16];
	int n;
};

static void args_parse(struct args *a, const char *text)
{
	a->n = 0;
	if (strlen(text) >= sizeof a->text)
		die("arguments longer than %zu characters", sizeof a->text - 1);
	strcpy(a->text, text);
	char *save = NULL;
	for (char *p = strtok_r(a->text, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		char *eq = strchr(p, '=');
		if (!eq || a->n == 16)
			die("argument %s is not key=value, or is the 17th", p);
		*eq = 0;
		a->item[a->n].key = p;
		a->item[a->n].used = false;
		a->item[a->n++].value = eq + 1;
	}
}

const char *arg_text(struct args *a, const char *key, const char *otherwise)
{
	for (int i = 0; i < a->n; i++)
		if (!strcmp(a->item[i].key, key)) {
			a->item[i].used = true;
			return a->item[i].value;
		}
	return otherwise;
}

long arg_num(struct args *a, const char *key, long otherwise)
{
	const char *v = arg_text(a, key, NULL);
	char *end;
	if (!v)
		return otherwise;
	long n = strtol(v, &end, 0);
	if (*end || end == v)
		die("%s=%s is not a number", key, v);
	return n;
}

static void setup_one(const char *text)
{
	char name[64];
	size_t n = strcspn(text, ":");
	if (n >= sizeof name)
		die("no feature %s", text);
	memcpy(name, text, n);
	name[n] = 0;
	const struct feature *f = NULL;
	for (int i = 0; features[i]; i++)
		if (!strcmp(features[i]->name, name))
			f = features[i];
	if (!f)
		die("no feature %s", name);
	for (int i = 0; i < chosen_count; i++)
		if (chosen[i] == f)
			die("feature %s is named twice", name);
	if (chosen_count == (int)(sizeof chosen / sizeof *chosen))
		die("too many features");
	bad_who = f->name;
	/* setup may keep what arg_text returned. */
	struct args *a = malloc(sizeof *a);
	args_parse(a, text[n] ? text + n + 1 : "");
	f->setup(a);
	for (int i = 0; i < a->n; i++)
		if (!a->item[i].used)
			die("no argument %s", a->item[i].key);
	bad_who = "subject";
	chosen[chosen_count++] = f;
}

const char *in_dir(const char *name)
{
	char *p;
	if (asprintf(&p, "%s/%s", dir, name) < 0)
		die("no memory");
	return p;
}

/* ---- children that SIGTERM must end ---- */

static pid_t children[512];
static int children_count;

void child_note(pid_t pid)
{
	if (children_count == (int)(sizeof children / sizeof *children))
		die("too many children");
	children[children_count++] = pid;
}

/* ---- answers ---- */

static void answer(bool check)
{
	char *text = NULL;
	size_t size = 0;
	sequence++;
	if (check)
		for (int i = 0; i < chosen_count; i++) {
			bad_who = chosen[i]->name;
			chosen[i]->check();
		}
	FILE *f = open_memstream(&text, &size);
	if (!f)
		_exit(5);
	/* What working threads found since the last answer is told too. */
	pthread_mutex_lock(&bad_lock);
	if (bad_len) {
		for (char *p = bad_text; *p; p++)
			if (*p == '\n')
				*p = ' ';
		fprintf(f, "bad %u %s", sequence, bad_text);
	} else {
		fprintf(f, "%s %u", check ? "ok" : "note", sequence);
		if (check)
			fprintf(f, " proven=%llu", atomic_exchange(&pages_proven, 0));
		for (int i = 0; i < chosen_count; i++)
			if (chosen[i]->report)
				chosen[i]->report(f);
	}
	fputc('\n', f);
	fclose(f);
	bad_who = working;
	bad_len = 0;
	bad_text[0] = 0;
	pthread_mutex_unlock(&bad_lock);

	int fd = open(answers_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	/* One write, so that a reader never sees half a line. */
	if (fd < 0 || write(fd, text, size) != (ssize_t)size)
		_exit(5);
	close(fd);
	free(text);
}

/*
 * A crash is told like an answer, with the place: whoever damaged the program (a checkpoint, for one) will want to know. Only
 * calls that are safe in a signal handler.
 */
static void on_crash(int s, siginfo_t *si, void *context)
{
	const greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
	char line[256];
	int n = snprintf(line, sizeof line, "bad %u crashed: signal %d code %d at address %p, rip %#llx rax %#llx, thread %ld\n",
			 sequence + 1, s, si->si_code, si->si_addr, r[REG_RIP], r[REG_RAX], syscall(SYS_gettid));
	int fd = open(answers_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, line, n) != n)
		_exit(6);
	signal(s, SIG_DFL);
	raise(s);
}

static void tell_crashes(void)
{
	struct sigaction sa = { .sa_sigaction = on_crash, .sa_flags = SA_SIGINFO | SA_NODEFER };
	snprintf(answers_path, sizeof answers_path, "%s/answers", dir);
	static const int crashes[] = { SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGSYS };
	for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
		sigaction(crashes[i], &sa, NULL);
}

static void listen_for_signals(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGPWR);

	char line[64];
	snprintf(line, sizeof line, "ready %d\n", getpid());
	publish(line);
	for (;;) {
		/* A freeze, or a signal for another feature's handler, interrupts the wait: simply wait again. */
		int s = sigwaitinfo(&set, NULL);
		if (s == SIGUSR1 || s == SIGUSR2)
			answer(s == SIGUSR1);
		if (s == SIGPWR) {
			execv("/proc/self/exe", arguments);
			die_errno("exec");
		}
		if (s == SIGTERM) {
			for (int i = 0; i < children_count; i++)
				kill(children[i], SIGKILL);
			_exit(0);
		}
	}
}

static void usage(FILE *f)
{
	fprintf(f, "usage: subject DIR FEATURE[:key=value,...] ...\n\n");
	for (int i = 0; features[i]; i++)
		fprintf(f, "  %-12s %s\n", features[i]->name, features[i]->help);
}

int main(int argc, char **argv)
{
	sigset_t set;
	if (argc == 4 && !strcmp(argv[1], "--member"))
		return member_main(atoi(argv[2]), atoi(argv[3]));
	if (argc < 2) {
		usage(argc == 1 ? stdout : stderr);
		return argc == 1 ? 0 : 2;
	}
	arguments = argv;
	dir = realpath(argv[1], NULL);
	if (!dir) {
		perror(argv[1]);
		return 2;
	}
	/* Before any thread exists: the main thread alone takes these, with sigwaitinfo. */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGPWR);
	sigprocmask(SIG_BLOCK, &set, NULL);
	/* A child that died is told in an answer, which the program must live to give. */
	signal(SIGPIPE, SIG_IGN);
	tell_crashes();
	pthread_atfork(before_fork, after_fork, after_fork_child);

	for (int i = 2; i < argc; i++)
		setup_one(argv[i]);
	for (int i = 0; i < chosen_count; i++)
		if (chosen[i]->start) {
			bad_who = chosen[i]->name;
			chosen[i]->start();
		}
	bad_who = working;
	deep_stack_run(listen_for_signals);
}
