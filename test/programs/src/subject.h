/*
 * subject: one program that holds, on request, every kind of state that a checkpoint must bring back.
 *
 *	subject DIR FEATURE[:key=value,...] ...
 *
 * Each feature sets something up and can tell later, by content, whether it is all still there. The program is spoken to
 * with signals and it answers in files, because those two survive a checkpoint with nothing of their own to be restored:
 *
 *	DIR/status	"ready PID", renamed into place when everything is set up
 *	DIR/answers	one line for each signal, appended; opened by name each time and closed again
 *	SIGUSR1		check everything: "ok SEQ key=value ..." or "bad SEQ feature: what | feature: what"
 *	SIGUSR2		only report figures, without a check: "note SEQ key=value ..."
 *	SIGPWR		execute the same program anew, with the same arguments; only without children
 *	SIGTERM		leave, and end the children
 *
 * SEQ counts answers in memory. It therefore goes back when an older checkpoint is restored, and that is a check of its own.
 * A check leaves everything as it found it (a pipe's data is read, compared and written back), so it may be asked any number
 * of times, before and after a checkpoint.
 *
 * To add a feature: write its setup and check in a C file, and name it in table.c.
 */
#ifndef SUBJECT_H
#define SUBJECT_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

/* ---- features ---- */

struct args; /* the text after the colon */

struct feature {
	const char *name;
	const char *help; /* one line: what it holds, and its keys with their defaults */
	void (*setup)(struct args *);
	void (*start)(void);	    /* optional: begins to work, called when all features are set up */
	void (*check)(void);	    /* calls bad() for each difference; never changes what the next check sees */
	void (*report)(FILE *);	    /* optional: writes " key=value" */
};

extern const struct feature *const features[]; /* ends with NULL */

/* arg_num and arg_text give the value of a key, or otherwise. A key that nobody asks for is an error. */
long arg_num(struct args *, const char *key, long otherwise);
const char *arg_text(struct args *, const char *key, const char *otherwise);

/* ---- saying what is wrong ---- */

/* die ends the program during setup. It writes "failed WHY" to the status file. */
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
/* die_errno is die with the error of the last call added. */
void die_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
/* need ends the program with "missing WHAT": the machine lacks something, and the test should skip. */
void need(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
/* bad notes a difference that a check found. May be called from any thread. */
void bad(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* bad_take gives away what was noted so far, for a child to tell it in another way; false: nothing was. */
bool bad_take(char *text, size_t size);
/* want notes a difference between two numbers. */
void want(const char *what, long long got, long long expected);

/* ---- pages whose content says where they belong and how old they are ---- */

/* page_fill writes the page of (key, version); page_wrong says how p differs from it, or returns NULL. */
void page_fill(void *p, uint64_t key, uint32_t version);
const char *page_wrong(const void *p, uint64_t key, uint32_t version);
/* pages_proven is how many page_wrong has found right since the last answer; checks report it as proven. */
extern atomic_ullong pages_proven;
/* fill_all and check_all do it for n pages, whose keys are key, key+1, ... */
void fill_all(void *p, size_t n, uint64_t key, uint32_t version);
void check_all(const char *what, const void *p, size_t n, uint64_t key, uint32_t version);
/* pages_compress makes later page_fill calls write pages of which about a quarter is noise, not all. */
extern bool pages_compress;

/* bytes_fill and bytes_wrong: the same for a buffer of any length. */
void bytes_fill(void *p, size_t n, uint64_t key);
bool bytes_wrong(const void *p, size_t n, uint64_t key);

uint64_t mix(uint64_t); /* a good hash of one number */

/* ---- mappings ---- */

/* map_anon maps n bytes of private memory with more flags, or dies. */
void *map_anon(size_t n, int prot, int flags);

struct vma {
	char perms[5];
	unsigned long start, end, rss_kib, anon_kib;
	char flags[256]; /* the VmFlags line: " rd wr mr ..." */
};
/* vma_of reads the mapping that holds addr from /proc/self/smaps. */
bool vma_of(const void *addr, struct vma *);
bool vma_has(const struct vma *, const char *flag);

/* ---- time ---- */

int64_t now_us(void); /* CLOCK_MONOTONIC */
void nap_us(long);
/* within waits until cond(arg) is true, for at most ms milliseconds, and returns whether it became so. */
bool within(int ms, bool (*cond)(void *), void *arg);

/* ---- children ---- */

/*
 * A helper is a child process that waits for a question on a pipe. ask returns what it answered: empty when all is well.
 * work runs in the child for each question, and writes what is wrong into its buffer.
 */
struct helper {
	pid_t pid;
	int to, from;
};
typedef void (*helper_fn)(void *arg, char question, char *answer, size_t size);
void helper_start(struct helper *, void (*first)(void *), helper_fn work, void *arg);
/* ask sends a question and gives back false, and calls bad, when the child does not answer or finds something wrong. */
bool ask(const struct helper *, const char *who, char question);

/* child_note remembers a child, so that SIGTERM ends it too. */
void child_note(pid_t);

/* member_main is the life of a process that a family (family.c) has executed. */
int member_main(int in, int out);

/* proc_state gives the letter of a process in /proc (R S T Z ...), or 0. */
char proc_state(pid_t);

/* ---- files ---- */

/* in_dir gives DIR/name in storage that stays. */
const char *in_dir(const char *name);
void read_full(const char *what, int fd, void *p, size_t n);
void write_full(int fd, const void *p, size_t n);

/* ---- the main thread's stack ---- */

extern size_t deep_stack_bytes; /* how far the main thread goes down its stack before it begins to listen */
void deep_stack_run(void (*then)(void));

#endif
