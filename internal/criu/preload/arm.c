/*
 * The part of the preloaded library for a restore: it lets Stasis run system
 * calls in the restored processes before any of them runs.
 *
 * CRIU holds all threads of a restored tree with ptrace, and lets them go at the
 * very end, thread by thread (PTRACE_DETACH). Nobody else can trace them till
 * then, so the calls have to be made by CRIU's own process: the ptrace() below
 * asks Stasis, before each detach, what to run in that thread first.
 *
 * The two talk by a box in memory that they share. `turn` says whose turn it is;
 * each waits for its turn with a futex. If Stasis does not answer in time,
 * nothing is run, and the thread is let go.
 *
 * Behind the box is a list of eventfds: CRIU makes them with 32 bits and no
 * flags. Where there is a list, CRIU's counter is a place in it, and eventfd()
 * below makes what stands there.
 */

#include "preload.h"

#define NR_WRITE 1
#define NR_RT_SIGPROCMASK 14
#define NR_WAIT4 61
#define NR_PTRACE 101
#define NR_TKILL 200
#define NR_FUTEX 202
#define NR_EVENTFD2 290

#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define SIG_BLOCK 0
#define SIG_SETMASK 2
#define WAIT_ALL 0x40000000 /* __WALL */

#define PTRACE_PEEKUSER 3
#define PTRACE_GETREGS 12
#define PTRACE_SETREGS 13
#define PTRACE_DETACH 17
#define PTRACE_SYSCALL 24
#define PTRACE_SETOPTIONS 0x4200
#define SYSGOOD 1		  /* PTRACE_O_TRACESYSGOOD: marks the stops at calls */
#define SUSPEND_SECCOMP (1 << 21) /* PTRACE_O_SUSPEND_SECCOMP */
#define PTRACE_GETSIGMASK 0x420a
#define PTRACE_SETSIGMASK 0x420b

#define SIGTRAP 5
#define CALL_STOP (SIGTRAP | 0x80)
#define ESRCH 3
#define EBUSY 16
#define MAX_STOPS 16 /* stops of another kind may come before that of the call */
#define PATIENCE 10  /* seconds that Stasis may take for an answer */

/* struct user_regs_struct of sys/user.h */
struct regs {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	u64 orig_ax, ip, cs, flags, sp, ss, fs_base, gs_base, ds, es, fs, gs;
};

#define BOX_MAGIC 0x32444e494c425453UL /* "STBLIND2" */
#define BOX_BYTES 65536
#define MAX_EVENTFDS 4000

enum turn { OURS = 0, STASIS = 1 };
enum order { LET_GO = 0, CALL = 1 };

struct box {
	u64 magic;
	u32 turn, quiet; /* quiet: nothing is to be run in any thread, and nobody is asked */
	u64 tid;
	u64 order;
	u64 gadget, number, args[3]; /* of CALL: the address of a syscall instruction, and what to call */
	long result;                 /* of CALL: what the call returned */
	long failed;                 /* of CALL: an errno if it could not be made */
	u64 eventfds;                /* how many there are in the list */
	struct {
		u64 count, flags;
	} eventfd[MAX_EVENTFDS];
};

static struct box *box;    /* 0 as well when Stasis is not to be asked, or does not answer any more */
static struct box *events; /* the same, for good */

__attribute__((constructor)) static void map_box(void)
{
	struct box *at = map_shared("STASIS_ARM_FD", BOX_BYTES, PROT_READ | PROT_WRITE);

	if (!at || at->magic != BOX_MAGIC)
		return;
	events = at;
	if (!at->quiet)
		box = at;
}

static long trace(long request, long tid, void *data)
{
	return syscall6(NR_PTRACE, request, tid, 0, (long)data, 0, 0);
}

/*
 * Lets a thread run until a system call begins or ends. SIGSTOP cannot be blocked:
 * CRIU has sent it to a process that was stopped, and it comes now. It is sent
 * again later, and so is there when the thread is let go.
 */
static long to_call_stop(long tid, int *signal)
{
	for (int i = 0; i < MAX_STOPS; i++) {
		int status = 0;
		long ret = trace(PTRACE_SYSCALL, tid, 0);

		if (!ret)
			ret = syscall6(NR_WAIT4, tid, (long)&status, WAIT_ALL, 0, 0, 0);
		if (ret < 0)
			return ret;
		if ((status & 0xff) != 0x7f)
			return -ESRCH; /* it has ended */
		if (status >> 8 == CALL_STOP)
			return 0;
		if (!(status >> 16) && status >> 8 != SIGTRAP)
			*signal = status >> 8;
	}
	return -EBUSY;
}

/*
 * Makes the call of the box in a stopped thread and puts the thread back. The
 * thread is followed from the call's begin to its end: a single step ends in a
 * SIGTRAP, and where that is blocked the kernel takes the program's handler of it.
 */
static long call(long tid)
{
	struct regs before, regs;
	u64 mask, all = ~0UL;
	long ret, put_back;
	int signal = 0;

	/* A filter of the program must not kill it for a call that is not its own. */
	ret = syscall6(NR_PTRACE, PTRACE_SETOPTIONS, tid, 0, SUSPEND_SECCOMP | SYSGOOD, 0, 0);
	if (!ret)
		ret = trace(PTRACE_GETREGS, tid, &before);
	if (!ret)
		ret = syscall6(NR_PTRACE, PTRACE_GETSIGMASK, tid, 8, (long)&mask, 0, 0);
	if (!ret)
		ret = syscall6(NR_PTRACE, PTRACE_SETSIGMASK, tid, 8, (long)&all, 0, 0);
	if (ret < 0)
		return ret;
	regs = before;
	regs.ip = box->gadget;
	regs.ax = box->number;
	regs.orig_ax = ~0UL; /* else the kernel would restart another call */
	regs.di = box->args[0];
	regs.si = box->args[1];
	regs.dx = box->args[2];
	ret = trace(PTRACE_SETREGS, tid, &regs);
	if (!ret)
		ret = to_call_stop(tid, &signal); /* the begin of the call */
	if (!ret)
		ret = to_call_stop(tid, &signal); /* and its end */
	if (!ret)
		ret = trace(PTRACE_GETREGS, tid, &regs);
	box->result = regs.ax;
	put_back = trace(PTRACE_SETREGS, tid, &before);
	if (!put_back)
		put_back = syscall6(NR_PTRACE, PTRACE_SETSIGMASK, tid, 8, (long)&mask, 0, 0);
	if (signal)
		syscall6(NR_TKILL, tid, signal, 0, 0, 0, 0);
	return ret < 0 ? ret : put_back;
}

/* Gives Stasis its turn and waits for the answer; 0 if none comes. */
static int ask(void)
{
	struct {
		long seconds, nanoseconds;
	} patience = { PATIENCE, 0 };

	__atomic_store_n(&box->turn, STASIS, __ATOMIC_RELEASE);
	syscall6(NR_FUTEX, (long)&box->turn, FUTEX_WAKE, 1, 0, 0, 0);
	while (__atomic_load_n(&box->turn, __ATOMIC_ACQUIRE) == STASIS) {
		long ret = syscall6(NR_FUTEX, (long)&box->turn, FUTEX_WAIT, STASIS, (long)&patience, 0, 0);

		if (ret == -110) /* ETIMEDOUT */
			return 0;
	}
	return 1;
}

/* Does what Stasis wants done in a thread before it is let go. */
static void before_detach(long tid)
{
	u64 all = ~0UL, mask = 0;

	/* CRIU's handler of SIGCHLD must not wait for what is waited for here. */
	syscall6(NR_RT_SIGPROCMASK, SIG_BLOCK, (long)&all, (long)&mask, 8, 0, 0);
	box->tid = tid;
	while (ask() && box->order == CALL)
		box->failed = -call(tid);
	if (box->turn == STASIS)
		box = 0; /* it does not answer any more */
	syscall6(NR_RT_SIGPROCMASK, SIG_SETMASK, (long)&mask, 0, 8, 0, 0);
}

/*
 * Lets a thread go. Those that were let go before may have ended it since, as a
 * parent that kills a child: that is their right, and CRIU would end the whole
 * tree for it.
 */
static long detach(long tid, void *signal)
{
	static int gone_on;
	long ret;

	if (box)
		before_detach(tid);
	ret = trace(PTRACE_DETACH, tid, signal);
	if (ret == -ESRCH && gone_on)
		ret = 0;
	gone_on |= !ret;
	return result(ret);
}

__attribute__((visibility("default"))) long ptrace(long request, long tid, void *addr, void *data)
{
	long word, ret;

	if (request == PTRACE_DETACH && events)
		return detach(tid, data);
	if (request > 0 && request <= PTRACE_PEEKUSER) { /* the C library returns the word */
		ret = result(syscall6(NR_PTRACE, request, tid, (long)addr, (long)&word, 0, 0));
		if (ret < 0)
			return ret;
		*__errno_location() = 0;
		return word;
	}
	return result(syscall6(NR_PTRACE, request, tid, (long)addr, (long)data, 0, 0));
}

__attribute__((visibility("default"))) int eventfd(u32 count, int flags)
{
	u64 before;
	long fd;

	if (!events || count >= events->eventfds)
		return result(syscall6(NR_EVENTFD2, count, flags, 0, 0, 0, 0));
	before = events->eventfd[count].count;
	fd = syscall6(NR_EVENTFD2, 0, flags | (int)events->eventfd[count].flags, 0, 0, 0, 0);
	if (fd >= 0 && before)
		syscall6(NR_WRITE, fd, (long)&before, 8, 0, 0, 0); /* never too much: it was a counter before */
	return result(fd);
}
