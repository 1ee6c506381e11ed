/* Threads that take harm when somebody else's system call is run in them without care. */
#include "subject.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/auxv.h>
#include <sys/rseq.h>

/* ---- rseq ---- */

/*
 * A thread is in a restartable sequence nearly all the time. The kernel promises that a sequence that is interrupted goes on at
 * its abort handler. It forgets the sequence (rseq_cs) then and only then, so at the end of one it must not be forgotten.
 */
static atomic_ulong commits, aborts, broken;
static atomic_int spinner;

static void sequence(struct rseq *area)
{
	__asm__ goto(
		".pushsection sequence_list, \"aw\"\n"
		".balign 32\n"
		"70: .long 0, 0\n"
		".quad 71f, 72f - 71f, 74f\n"
		".popsection\n"
		"leaq 70b(%%rip), %%rax\n"
		"movq %%rax, 8(%[area])\n"
		"71:\n"
		"movl $200000, %%ecx\n"
		"75: decl %%ecx\n"
		"jnz 75b\n"
		"cmpq $0, 8(%[area])\n"
		"je %l[forgotten]\n"
		"72:\n"
		".pushsection abort_handlers, \"ax\"\n"
		".byte 0x0f, 0xb9, 0x3d\n" /* the signature is an operand of ud1 */
		".long 0x53053053\n"
		"74: jmp %l[aborted]\n"
		".popsection\n"
		: : [area] "r"(area) : "rax", "rcx", "memory", "cc" : aborted, forgotten);
	commits++;
	return;
aborted:
	aborts++;
	return;
forgotten:
	broken++;
}

static void *spin(void *arg)
{
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	(void)arg;
	spinner = syscall(SYS_gettid);
	for (;;)
		sequence(area);
	return NULL;
}

static void rseq_setup(struct args *a)
{
	(void)a;
	if (!__rseq_size)
		need("restartable sequences (rseq) in the C library");
}

static void rseq_start(void)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, spin, NULL))
		die("no thread for rseq");
	while (!spinner)
		nap_us(1000);
}

static void rseq_check(void)
{
	if (broken)
		bad("%lu restartable sequences went on as if nobody had interrupted them", broken);
}

static void rseq_report(FILE *out)
{
	fprintf(out, " spinner=%d commits=%lu aborts=%lu", spinner, commits, aborts);
}

const struct feature feature_rseq = {
	.name = "rseq", .help = "a thread that is always in a restartable sequence",
	.setup = rseq_setup, .start = rseq_start, .check = rseq_check, .report = rseq_report,
};

/* ---- filtered ---- */

static void filtered_setup(struct args *a)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof rules / sizeof *rules, rules };
	(void)a;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		need("seccomp filters (%s)", strerror(errno));
}

static void filtered_check(void)
{
	if (prctl(PR_GET_SECCOMP) != SECCOMP_MODE_FILTER)
		bad("the seccomp filter is gone");
}

const struct feature feature_filtered = {
	.name = "filtered", .help = "a seccomp filter that kills the process for a call of userfaultfd",
	.setup = filtered_setup, .check = filtered_check,
};

/* ---- dispatched ---- */

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

/* A SIGSYS comes for each system call that is made behind the C library, as it comes to Wine for those of Windows programs. */
static atomic_uint dispatched;
static unsigned char selector = 1; /* SYSCALL_DISPATCH_FILTER_BLOCK */

static void on_dispatch(int signal)
{
	(void)signal;
	dispatched++;
}

static void dispatched_setup(struct args *a)
{
	(void)a;
	signal(SIGSYS, on_dispatch);
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, PAGE, getauxval(AT_SYSINFO_EHDR) - PAGE, &selector))
		need("dispatched system calls (%s)", strerror(errno));
}

static void dispatched_check(void)
{
	if (dispatched)
		bad("%u system calls came from elsewhere", dispatched);
}

const struct feature feature_dispatched = {
	.name = "dispatched", .help = "system calls that are not the C library's are dispatched to a handler of SIGSYS",
	.setup = dispatched_setup, .check = dispatched_check,
};

/* ---- heir ---- */

/* A child has a copy of the program's userfaultfd, as one has that is born while a tracker is put into the program. */
static int handed_down = -1;
static pid_t heir;

static void heir_setup(struct args *a)
{
	(void)a;
	handed_down = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (handed_down < 0)
		need("userfaultfd (%s)", strerror(errno));
	heir = fork();
	if (heir < 0)
		die_errno("fork");
	if (!heir) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	child_note(heir);
}

static void heir_check(void)
{
	if (fcntl(handed_down, F_GETFD) < 0)
		bad("the program's own descriptor is closed");
	if (proc_state(heir) != 'S')
		bad("the child is in state %c", proc_state(heir));
}

static void heir_report(FILE *out)
{
	fprintf(out, " fd=%d child=%d", handed_down, heir);
}

const struct feature feature_heir = {
	.name = "heir", .help = "a child with a copy of a userfaultfd", .setup = heir_setup, .check = heir_check, .report = heir_report,
};
