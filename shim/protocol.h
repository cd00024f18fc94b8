/*
 * What crosses the boundary between the shim and its helper (in the container)
 * and the agent (on the host). Mirrored in Go by handler/handoff; both sides
 * assert sizes and offsets.
 *
 * To the agent everything here is data from an attacker: it says what a process
 * claims about itself and decides nothing about who it is (that comes from the
 * socket's peer credentials) nor about any other process.
 *
 * Hand-off, over the container's SOCK_SEQPACKET socket:
 *
 *   new process                        forked from an armed one
 *   helper HELLO nonce=0   ->          helper HELLO nonce=N        ->
 *   <- DEVICE  fd: /dev/userfaultfd    <- DEVICE fds: /dev/userfaultfd, uffd
 *   helper UFFD fd: uffd   ->
 *   <- CHANNEL fd: memfd               <- CHANNEL fd: memfd
 *   helper READY           ->          helper READY                ->
 *   <- ARMED                           <- ARMED
 *   NOTICE whenever a command is done or the agent waits for in_ioctl
 */
#ifndef FARPAGE_PROTOCOL_H
#define FARPAGE_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define FP_PAGE 4096UL
#define FP_MAGIC 0x46504731u /* "FPG1" */
#define FP_VERSION 1

/* The last page that a program can map; never registered. */
#define FP_PROBE 0x7fffffffe000UL

enum fp_type {
	FP_HELLO = 1,
	FP_DEVICE = 2,
	FP_UFFD = 3,
	FP_CHANNEL = 4,
	FP_READY = 5,
	FP_ARMED = 6,
	FP_NOTICE = 7,
};

/* Every message, in both directions. Unused fields are zero. */
struct fp_message {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint64_t nonce; /* HELLO: what the anchor page said; 0: not forked */
	uint64_t area;  /* HELLO: address of the area, see below */
	uint32_t tid;   /* HELLO: the helper's, in its own pid namespace */
	int32_t error;  /* READY: 0 or an errno of the set-up that failed */
	uint64_t mode;  /* CHANNEL: UFFDIO_REGISTER mode for the shim's own mmaps,
			   0: the shim registers nothing */
};

/*
 * The area: one private anonymous mapping, MADV_WIPEONFORK, made once in the
 * constructor. Offsets in bytes. The channel part is mapped over by the helper
 * with the memfd that the agent sends.
 */
#define FP_STAGING_PAGES 64UL
#define FP_STACK_PAGES 8UL
#define FP_BATCH_PAGES 128UL
#define FP_AREA_STATE 0UL
#define FP_AREA_ANCHOR (FP_AREA_STATE + FP_PAGE)
#define FP_AREA_STACK (FP_AREA_ANCHOR + FP_PAGE)
#define FP_AREA_STAGING (FP_AREA_STACK + FP_STACK_PAGES * FP_PAGE)
#define FP_AREA_DROP (FP_AREA_STAGING + FP_STAGING_PAGES * FP_PAGE)
#define FP_AREA_CHANNEL (FP_AREA_DROP + FP_STAGING_PAGES * FP_PAGE)
#define FP_CHANNEL_BYTES (FP_PAGE + FP_BATCH_PAGES * FP_PAGE)
#define FP_AREA_BYTES (FP_AREA_CHANNEL + FP_CHANNEL_BYTES)

/* The bell: first word of the file "bell", written by the agent only. */
enum fp_bell {
	FP_BELL_SILENT = 0,
	FP_BELL_RUNG = 1,	/* start helpers; the constructor waits 100 ms */
	FP_BELL_RUNG_WAIT = 2,	/* on-failure=closed: it waits until armed */
};

enum fp_result {
	FP_PENDING = 0,
	FP_DONE = 1,	/* all pages moved, their bytes are in the channel */
	FP_STALE = 2,	/* an event came between: nothing was moved */
	FP_PARTIAL = 3, /* `moved` pages went, `error` stopped the next one */
};

/* One run of a command: `pages` pages from `addr` on, at most FP_STAGING_PAGES. */
struct fp_run {
	uint64_t addr;
	uint32_t pages;	 /* agent; 0 is skipped */
	uint32_t first;	 /* agent: index of its first page in the data part */
	uint32_t result; /* helper: enum fp_result, stored last */
	uint32_t moved;	 /* helper */
	uint32_t error;	 /* helper: errno of UFFDIO_MOVE */
	uint32_t spare;
};

#define FP_RUNS_MAX 64
#define FP_STOP 0x100u

/*
 * The channel's first page; the data pages follow. Reading events and moving
 * pages exclude each other by `epoch` and `in_ioctl`: the helper sets in_ioctl,
 * looks whether epoch still equals command_epoch, moves, copies out, stores the
 * result and clears in_ioctl. The agent raises epoch and reads no event while
 * in_ioctl is set.
 */
struct fp_channel {
	uint32_t wake;		/* futex the helper sleeps on; bumped with each call */
	uint32_t command;	/* agent: number of the newest command */
	uint32_t done;		/* helper: number of the newest command it ended */
	uint32_t epoch;		/* agent */
	uint32_t in_ioctl;	/* helper */
	uint32_t want;		/* agent: send NOTICE when in_ioctl is cleared */
	uint32_t command_epoch; /* agent */
	uint32_t run_count;	/* agent */
	uint32_t stop;		/* agent: FP_STOP | status: the helper shall exit so */
	uint32_t unsettled;	/* agent: 1 from before it reads an event until all that it has
				   read are applied; the helper registers nothing then */
	uint32_t spare[20];
	struct fp_run runs[FP_RUNS_MAX];
};

#ifdef __cplusplus
#define FP_ASSERT static_assert
#else
#define FP_ASSERT _Static_assert
#endif
FP_ASSERT(sizeof(struct fp_message) == 40, "fp_message");
FP_ASSERT(offsetof(struct fp_message, nonce) == 8, "fp_message.nonce");
FP_ASSERT(offsetof(struct fp_message, area) == 16, "fp_message.area");
FP_ASSERT(offsetof(struct fp_message, tid) == 24, "fp_message.tid");
FP_ASSERT(offsetof(struct fp_message, error) == 28, "fp_message.error");
FP_ASSERT(offsetof(struct fp_message, mode) == 32, "fp_message.mode");
FP_ASSERT(sizeof(struct fp_run) == 32, "fp_run");
FP_ASSERT(offsetof(struct fp_run, result) == 16, "fp_run.result");
FP_ASSERT(offsetof(struct fp_channel, stop) == 32, "fp_channel.stop");
FP_ASSERT(offsetof(struct fp_channel, runs) == 120, "fp_channel.runs");
FP_ASSERT(sizeof(struct fp_channel) <= FP_PAGE, "fp_channel");

#endif
