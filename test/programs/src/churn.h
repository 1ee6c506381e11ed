/* churn.h: one churner, which is a set of mappings whose every page is known, and what can be done to it. See churn.c. */
#ifndef CHURN_H
#define CHURN_H

#include "subject.h"

struct slot {
	char *addr; /* NULL: empty */
	size_t pages;
	int prot;
	bool shared;
	bool wiped;	   /* MADV_WIPEONFORK: a child finds it empty */
	uint64_t key;	   /* page i has key + i: it keeps it when the mapping moves */
	uint32_t *version; /* of each page; 0: zero page, or one of the marks below */
};

enum {
	MAYBE = 1u << 31, /* with a version: MADV_FREE, so that it may also be zero */
	GUARDED = 1u << 30, /* MADV_GUARD_INSTALL: no access at all */
};

enum kind { SMALL, HUGE, TLB };

struct churner {
	pthread_mutex_t lock;
	struct slot *slot;
	size_t slots, most; /* pages of a slot at most */
	enum kind kind;
	uint64_t seed, next_key;
	unsigned long ops;
	bool owns_brk, guards;
	char *brk_base;
	size_t brk_pages;
};

/* churner_init makes one, half full. */
void churner_init(struct churner *, enum kind, uint64_t seed, size_t slots, size_t most);
/* churner_step does one thing; the caller has the lock, or is alone. What is wrong goes to bad(). */
void churner_step(struct churner *);
void churner_check(struct churner *);
/* churner_forked makes one fit for the child after a fork: what is shared with the parent goes, what a fork wipes is empty. */
void churner_forked(struct churner *);
uint64_t churner_roll(struct churner *, uint64_t n);

#endif
