/* Settings of threads and of the process that are no part of its memory or its files, and that are easily forgotten. */
#include "subject.h"
#include <sched.h>
#include <sys/personality.h>

#define THREADS 3 /* the main one and two more, each with settings of its own */

struct attributes { /* struct sched_attr of linux/sched/types.h, in its first version */
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

/* What one thread has, as the kernel tells it. */
struct settings {
	cpu_set_t cpus;
	long slack, io, personality;
	struct attributes sched;
};

static struct settings expected[THREADS];
static atomic_int arrived, checked, check_round, no_deadline;
static char filter[32], group[64], oom[32];
static bool with_deadline;

static void look(struct settings *s)
{
	memset(s, 0, sizeof *s);
	sched_getaffinity(0, sizeof s->cpus, &s->cpus);
	s->slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
	s->io = syscall(SYS_ioprio_get, 1 /* a thread */, 0);
	s->personality = personality(0xffffffff);
	syscall(SYS_sched_getattr, 0, &s->sched, sizeof s->sched, 0);
}

static void give(int i)
{
	cpu_set_t have, one;
	int cpu = -1;
	struct attributes attributes = { .size = sizeof attributes, .policy = SCHED_OTHER, .nice = i, .runtime = 2000000 + 100000 * i };

	sched_getaffinity(0, sizeof have, &have);
	for (int n = 0; n <= i % CPU_COUNT(&have); n++)
		while (!CPU_ISSET(++cpu, &have))
			;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (with_deadline && i == 1) /* the kernel refuses deadlines to a thread that is bound */
		attributes = (struct attributes){ .size = sizeof attributes, .policy = 6, .runtime = 1000000, .deadline = 50000000, .period = 100000000 };
	else if (sched_setaffinity(0, sizeof one, &one))
		bad("sched_setaffinity: %s", strerror(errno));
	if (prctl(PR_SET_TIMERSLACK, 100000 + i, 0, 0, 0))
		bad("timer slack: %s", strerror(errno));
	if (syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (5 + i)))
		bad("ioprio_set: %s", strerror(errno));
	if (i > 0)
		personality(i == 1 ? ADDR_NO_RANDOMIZE : ADDR_NO_RANDOMIZE | UNAME26);
	if (syscall(SYS_sched_setattr, 0, &attributes, 0)) {
		if (attributes.policy == 6)
			atomic_store(&no_deadline, 1);
		else
			bad("sched_setattr: %s", strerror(errno));
	}
	look(&expected[i]);
}

static void compare(int i)
{
	struct settings now;
	look(&now);
	if (!CPU_EQUAL(&now.cpus, &expected[i].cpus))
		bad("thread %d may run on %d CPUs, was bound to %d", i, CPU_COUNT(&now.cpus), CPU_COUNT(&expected[i].cpus));
	want("timer slack", now.slack, expected[i].slack);
	want("I/O priority", now.io, expected[i].io);
	want("personality", now.personality, expected[i].personality);
	want("policy", now.sched.policy, expected[i].sched.policy);
	want("nice", now.sched.nice, expected[i].sched.nice);
	want("runtime", now.sched.runtime, expected[i].sched.runtime);
	want("deadline", now.sched.deadline, expected[i].sched.deadline);
	want("period", now.sched.period, expected[i].sched.period);
}

static void *thread(void *arg)
{
	int i = (int)(intptr_t)arg, seen = 0;
	give(i);
	atomic_fetch_add(&arrived, 1);
	for (;;) {
		int round = atomic_load(&check_round);
		if (round != seen) {
			seen = round;
			compare(i);
			atomic_fetch_add(&checked, 1);
		}
		usleep(1000);
	}
	return NULL;
}

static bool all_arrived(void *arg)
{
	(void)arg;
	return atomic_load(&arrived) == THREADS - 1;
}

static bool all_checked(void *arg)
{
	(void)arg;
	return atomic_load(&checked) == THREADS - 1;
}

static void file_read(const char *path, char *into, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, into, size - 1);
	into[n < 0 ? 0 : n] = 0;
	if (fd >= 0)
		close(fd);
}

static bool file_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) > 0;
	if (fd >= 0)
		close(fd);
	return done;
}

/* Every session has an autogroup of its own, with another number after a restore. */
static void group_read(char *into, size_t size)
{
	char text[128];
	file_read("/proc/self/autogroup", text, sizeof text);
	const char *nice = strstr(text, " nice ");
	snprintf(into, size, "%s", nice ? nice : "");
}

static void settings_setup(struct args *a)
{
	with_deadline = arg_num(a, "deadline", 0);
	/* Files of the process. The score can only be raised without CAP_SYS_RESOURCE. */
	if (!file_write("/proc/self/coredump_filter", "0x17") || !file_write("/proc/self/oom_score_adj", "321"))
		die_errno("settings in /proc");
	file_write("/proc/self/autogroup", "6"); /* not every kernel has it */
	for (intptr_t i = 1; i < THREADS; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, thread, (void *)i))
			die("thread");
	}
	if (!within(5000, all_arrived, NULL))
		die("threads");
	if (atomic_load(&no_deadline)) /* in a container with CPUs of its own, for one */
		need("the right to use scheduling policy deadline");
	give(0);
	file_read("/proc/self/coredump_filter", filter, sizeof filter);
	file_read("/proc/self/oom_score_adj", oom, sizeof oom);
	group_read(group, sizeof group);
}

static void settings_check(void)
{
	char now[128];
	atomic_store(&checked, 0);
	atomic_fetch_add(&check_round, 1);
	compare(0);
	if (!within(20000, all_checked, NULL))
		bad("the threads do not answer");
	file_read("/proc/self/coredump_filter", now, sizeof now);
	if (strcmp(now, filter))
		bad("coredump_filter is %s, was %s", now, filter);
	file_read("/proc/self/oom_score_adj", now, sizeof now);
	if (strcmp(now, oom))
		bad("oom_score_adj is %s, was %s", now, oom);
	group_read(now, sizeof now);
	if (strcmp(now, group))
		bad("the autogroup has%s, had%s", now, group);
}

const struct feature feature_settings = {
	.name = "settings",
	.help = "deadline=0: CPUs, timer slack, I/O priority, slice, personality of three threads; coredump_filter, oom_score_adj, autogroup",
	.setup = settings_setup, .check = settings_check,
};
