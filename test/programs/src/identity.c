/* What a process is: limits, priorities, rights, names, places. Each is set to something unusual and compared later. */
#include "subject.h"
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/resource.h>

extern char **environ;

/* ---- umask ---- */

static void umask_setup(struct args *a)
{
	umask(arg_num(a, "mask", 0137));
}

static void umask_check(void)
{
	mode_t m = umask(0);
	umask(m);
	want("umask", m, 0137);
}

const struct feature feature_umask = {
	.name = "umask", .help = "umask 0137", .setup = umask_setup, .check = umask_check,
};

/* ---- rlimits ---- */

static struct rlimit limits[RLIM_NLIMITS];

static void limit(int which, rlim_t soft, rlim_t hard)
{
	struct rlimit r = { soft, hard };
	if (setrlimit(which, &r))
		die_errno("setrlimit %d", which);
}

static void rlimits_setup(struct args *a)
{
	(void)a;
	/* Only downwards: raising a hard limit needs CAP_SYS_RESOURCE. */
	limit(RLIMIT_NOFILE, 777, 1500);
	limit(RLIMIT_CORE, 0, 0);
	limit(RLIMIT_FSIZE, 1ULL << 40, 1ULL << 41);
	limit(RLIMIT_CPU, 100000, 200000);
	limit(RLIMIT_DATA, 1ULL << 42, RLIM_INFINITY);
	limit(RLIMIT_MSGQUEUE, 4096, 8192);
	for (int i = 0; i < (int)RLIM_NLIMITS; i++)
		getrlimit(i, &limits[i]);
}

static void rlimits_check(void)
{
	for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
		struct rlimit r;
		getrlimit(i, &r);
		if (r.rlim_cur != limits[i].rlim_cur || r.rlim_max != limits[i].rlim_max)
			bad("limit %d is %ld/%ld, was %ld/%ld", i, (long)r.rlim_cur, (long)r.rlim_max, (long)limits[i].rlim_cur,
			    (long)limits[i].rlim_max);
	}
}

const struct feature feature_rlimits = {
	.name = "rlimits", .help = "soft and hard limits, lowered", .setup = rlimits_setup, .check = rlimits_check,
};

/* ---- sched: nice, policy, and a thread that differs from the main one ---- */

static atomic_int thread_tid;
static int main_policy, main_nice;

static void *idle_thread(void *arg)
{
	struct sched_param p = { 0 };
	(void)arg;
	int tid = syscall(SYS_gettid);
	if (sched_setscheduler(tid, SCHED_IDLE, &p) || setpriority(PRIO_PROCESS, tid, 11))
		tid = -1;
	atomic_store(&thread_tid, tid);
	for (;;)
		pause();
	return NULL;
}

static bool has_tid(void *arg)
{
	(void)arg;
	return atomic_load(&thread_tid) != 0;
}

static void sched_setup(struct args *a)
{
	struct sched_param p = { 0 };
	main_nice = arg_num(a, "nice", 4);
	const char *policy = arg_text(a, "policy", "batch");
	main_policy = !strcmp(policy, "rr") ? SCHED_RR : SCHED_BATCH;
	p.sched_priority = main_policy == SCHED_RR ? 3 : 0;
	if (setpriority(PRIO_PROCESS, 0, main_nice))
		die_errno("nice");
	if (sched_setscheduler(0, main_policy, &p))
		need("the right to use scheduling policy %s", policy);
	pthread_t t;
	if (pthread_create(&t, NULL, idle_thread, NULL) || !within(5000, has_tid, NULL) || thread_tid < 0)
		die("thread");
}

static void sched_check(void)
{
	struct sched_param p;
	want("nice", getpriority(PRIO_PROCESS, 0), main_nice);
	want("policy", sched_getscheduler(0), main_policy);
	sched_getparam(0, &p);
	want("priority", p.sched_priority, main_policy == SCHED_RR ? 3 : 0);
	want("thread's nice", getpriority(PRIO_PROCESS, thread_tid), 11);
	want("thread's policy", sched_getscheduler(thread_tid), SCHED_IDLE);
}

const struct feature feature_sched = {
	.name = "sched", .help = "nice=4 policy=batch|rr, and a thread of policy idle", .setup = sched_setup, .check = sched_check,
};

/* ---- affinity ---- */

static cpu_set_t cpus;

static void affinity_setup(struct args *a)
{
	(void)a;
	cpu_set_t have;
	sched_getaffinity(0, sizeof have, &have);
	if (CPU_COUNT(&have) < 2)
		need("two CPUs");
	int last = CPU_SETSIZE - 1;
	while (!CPU_ISSET(last, &have))
		last--;
	CPU_ZERO(&cpus);
	CPU_SET(last, &cpus);
	if (sched_setaffinity(0, sizeof cpus, &cpus))
		die_errno("sched_setaffinity");
}

static void affinity_check(void)
{
	cpu_set_t now;
	sched_getaffinity(0, sizeof now, &now);
	if (!CPU_EQUAL(&now, &cpus))
		bad("it may run on %d CPUs, was bound to one", CPU_COUNT(&now));
}

const struct feature feature_affinity = {
	.name = "affinity", .help = "bound to the last CPU", .setup = affinity_setup, .check = affinity_check,
};

/* ---- caps ---- */

static struct __user_cap_data_struct caps[2];

static void caps_get(struct __user_cap_data_struct *to)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	if (syscall(SYS_capget, &h, to))
		bad("capget: %s", strerror(errno));
}

static void caps_setup(struct args *a)
{
	(void)a;
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	caps_get(caps);
	prctl(PR_CAPBSET_DROP, CAP_SYS_TIME);
	prctl(PR_CAPBSET_DROP, CAP_MKNOD);
	/* Gone from all sets, only from the effective one, and one that is inherited and ambient. */
	caps[0].effective &= ~(1U << CAP_SYS_TIME | 1U << CAP_NET_RAW | 1U << CAP_SYS_NICE);
	caps[0].permitted &= ~(1U << CAP_SYS_TIME | 1U << CAP_NET_RAW);
	caps[0].inheritable = 1U << CAP_NET_BIND_SERVICE;
	if (syscall(SYS_capset, &h, caps) || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0))
		die_errno("capset");
	caps_get(caps);
}

static void caps_check(void)
{
	struct __user_cap_data_struct now[2];
	caps_get(now);
	for (int i = 0; i < 2; i++) {
		want("effective capabilities", now[i].effective, caps[i].effective);
		want("permitted capabilities", now[i].permitted, caps[i].permitted);
		want("inheritable capabilities", now[i].inheritable, caps[i].inheritable);
	}
	want("CAP_SYS_TIME in the bounding set", prctl(PR_CAPBSET_READ, CAP_SYS_TIME), 0);
	want("CAP_MKNOD in the bounding set", prctl(PR_CAPBSET_READ, CAP_MKNOD), 0);
	want("CAP_CHOWN in the bounding set", prctl(PR_CAPBSET_READ, CAP_CHOWN), 1);
	want("CAP_NET_BIND_SERVICE ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_BIND_SERVICE, 0, 0), 1);
}

const struct feature feature_caps = {
	.name = "caps", .help = "capabilities dropped from some sets, one ambient", .setup = caps_setup, .check = caps_check,
};

/* ---- groups, user ---- */

static gid_t groups[3] = { 4, 20, 12345 };

static void groups_look(void)
{
	gid_t now[64];
	int n = getgroups(64, now);
	want("number of groups", n, 3);
	for (int i = 0; i < 3 && n == 3; i++)
		want("group", now[i], groups[i]);
}

static void groups_setup(struct args *a)
{
	(void)a;
	if (setgroups(3, groups))
		need("the right to set groups");
}

const struct feature feature_groups = {
	.name = "groups", .help = "three supplementary groups", .setup = groups_setup, .check = groups_look,
};

static uid_t user;

static void user_setup(struct args *a)
{
	user = arg_num(a, "uid", 65534);
	if (setgroups(3, groups) || setresgid(user, user, user) || setresuid(user, user, user))
		need("the right to become another user");
}

static void user_check(void)
{
	uid_t r, e, s;
	getresuid(&r, &e, &s);
	want("user", r, user);
	want("effective user", e, user);
	want("saved user", s, user);
	getresgid(&r, &e, &s);
	want("group", r, user);
	want("effective group", e, user);
	groups_look();
}

const struct feature feature_user = {
	.name = "user", .help = "uid=65534 for user and group; must be the last feature", .setup = user_setup, .check = user_check,
};

/* ---- cwd, env, name ---- */

static const char *cwd;

static void cwd_setup(struct args *a)
{
	(void)a;
	cwd = in_dir("a folder with spaces");
	mkdir(cwd, 0777);
	if (chdir(cwd))
		die_errno("%s", cwd);
}

static void cwd_check(void)
{
	char now[PATH_MAX] = "";
	if (!getcwd(now, sizeof now) || strcmp(now, cwd))
		bad("working folder is %s, was %s", now, cwd);
}

const struct feature feature_cwd = {
	.name = "cwd", .help = "works in a folder of its own", .setup = cwd_setup, .check = cwd_check,
};

/* The kernel shows the command line, environment and program from addresses that a checkpoint has to keep. */
static struct proc_text {
	const char *path;
	char text[16384];
	ssize_t len;
} proc_text[] = { { .path = "/proc/self/cmdline" }, { .path = "/proc/self/environ" }, { .path = "/proc/self/auxv" } };
static char exe[PATH_MAX], env_now[16384];
static size_t env_len;

static ssize_t slurp(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, size);
	if (fd >= 0)
		close(fd);
	return n;
}

static size_t env_join(char *buf, size_t size)
{
	size_t n = 0;
	for (char **e = environ; *e && n + strlen(*e) + 1 < size; e++) {
		strcpy(buf + n, *e);
		n += strlen(*e) + 1;
	}
	return n;
}

static void env_setup(struct args *a)
{
	(void)a;
	setenv("STASIS_SUBJECT", "a value with spaces, and \xc3\xa4", 1);
	env_len = env_join(env_now, sizeof env_now);
	for (size_t i = 0; i < 3; i++)
		proc_text[i].len = slurp(proc_text[i].path, proc_text[i].text, sizeof proc_text[i].text);
	if (readlink("/proc/self/exe", exe, sizeof exe - 1) < 0)
		die_errno("/proc/self/exe");
}

static void env_check(void)
{
	static char buf[16384];
	char now[PATH_MAX] = "";
	for (size_t i = 0; i < 3; i++) {
		ssize_t n = slurp(proc_text[i].path, buf, sizeof buf);
		/* The auxiliary vector names the vDSO, which may lie elsewhere after a restore: only its size is compared. */
		if (n != proc_text[i].len || (i < 2 && memcmp(buf, proc_text[i].text, n)))
			bad("%s differs", proc_text[i].path);
	}
	if (env_join(buf, sizeof buf) != env_len || memcmp(buf, env_now, env_len))
		bad("the environment in memory differs");
	if (readlink("/proc/self/exe", now, sizeof now - 1) < 0 || strcmp(now, exe))
		bad("the program is %s, was %s", now, exe);
}

const struct feature feature_env = {
	.name = "env", .help = "environment, command line, program", .setup = env_setup, .check = env_check,
};

/* ---- prctls: settings of the process, each read back ---- */

static struct setting {
	const char *name;
	int set, get;
	long value;
	bool by_pointer; /* the getter writes an int */
	bool on;
} setting[] = {
	{ "no_new_privs", PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, 1, false, false },
	{ "pdeathsig", PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, SIGWINCH, true, false },
	{ "dumpable", PR_SET_DUMPABLE, PR_GET_DUMPABLE, 0, false, false },
	{ "subreaper", PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, 1, true, false },
	{ "keepcaps", PR_SET_KEEPCAPS, PR_GET_KEEPCAPS, 1, false, false },
	{ "timerslack", PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, 123456, false, false },
	{ "thp_disable", PR_SET_THP_DISABLE, PR_GET_THP_DISABLE, 1, false, false },
	{ "name", 0, 0, 0, false, false },
};
#define SETTINGS (sizeof setting / sizeof *setting)

static long setting_get(const struct setting *s)
{
	int v = -1;
	if (!s->set) {
		char name[16];
		prctl(PR_GET_NAME, name);
		return strcmp(name, "odd ) name (");
	}
	if (!s->by_pointer)
		return prctl(s->get, 0, 0, 0, 0);
	prctl(s->get, &v, 0, 0, 0);
	return v;
}

static void prctls_setup(struct args *a)
{
	for (size_t i = 0; i < SETTINGS; i++) {
		struct setting *s = &setting[i];
		s->on = arg_num(a, s->name, 0);
		if (s->on && (s->set ? prctl(s->set, s->value, 0, 0, 0) : prctl(PR_SET_NAME, "odd ) name (")))
			die_errno("prctl %s", s->name);
	}
}

static void prctls_check(void)
{
	for (size_t i = 0; i < SETTINGS; i++)
		if (setting[i].on)
			want(setting[i].name, setting_get(&setting[i]), setting[i].value);
}

const struct feature feature_prctls = {
	.name = "prctls",
	.help = "those =1 of no_new_privs pdeathsig dumpable subreaper keepcaps timerslack thp_disable name (one with brackets)",
	.setup = prctls_setup, .check = prctls_check,
};
