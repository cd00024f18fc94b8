/*
 * What the shim and its helper share inside one process: the first page of the
 * area. It is wiped in forked children, so that a child never takes its
 * parent's helper for its own.
 */
#ifndef FARPAGE_STATE_H
#define FARPAGE_STATE_H

#include "protocol.h"

enum fp_ready {
	FP_NOT_READY = 0,
	FP_IS_READY = 1, /* armed: the agent has registered what was mapped */
	FP_GAVE_UP = 2,	 /* no hand-off will come: the process stays unmanaged */
};

/* A thread's request to register a new mapping before its mmap returns. */
enum fp_mail {
	FP_MAIL_FREE = 0,
	FP_MAIL_CLAIMED = 1,
	FP_MAIL_POSTED = 2,
	FP_MAIL_DONE = 3,
	FP_MAIL_ABANDONED = 4, /* the thread waited too long; the helper frees it */
};

struct fp_mailbox {
	uint32_t state; /* enum fp_mail, a futex */
	uint32_t spare;
	uint64_t addr;
	uint64_t bytes;
};

#define FP_MAILBOXES 64

struct fp_state {
	uint32_t ready; /* enum fp_ready, a futex */
	uint32_t spare;
	uint64_t mode; /* UFFDIO_REGISTER mode for mmaps, 0: none */
	struct fp_mailbox mail[FP_MAILBOXES];
};
_Static_assert(sizeof(struct fp_state) <= FP_PAGE, "fp_state fits its page");

/* The folder that holds libfarpage.so, the bell and the socket. The agent
 * writes the path of a private agent's folder into its copy of the file. */
#define FP_DIR_MARK "FARPAGE-DIR="
extern const volatile char fp_dir[120];

/* Address of the area, 0 before the constructor. In .data, never in anonymous
 * memory: pages of the helper's own must never be far. */
extern unsigned char *fp_area;

static inline struct fp_state *fp_state(void)
{
	return (struct fp_state *)(fp_area + FP_AREA_STATE);
}

/* Runs the helper; never returns. */
__attribute__((noreturn)) void fp_helper(void);

/* Joins fp_dir and name into out (108 bytes); returns its length, 0: too long. */
int fp_path(char *out, const char *name);

#endif
