/*
 * The helper: one raw thread of a managed process. It hands the process's
 * userfaultfd to the agent and then moves pages out of the process when the
 * agent asks: into staging (missing from that instant), into the channel, away.
 * UFFDIO_MOVE works only from inside, which is why there is a helper at all.
 *
 * It runs with all signals blocked, on a stack of its own, without TLS, with a
 * descriptor table of its own. It makes no call that raises an event on the
 * uffd it serves: with the agent gone it would wait for ever.
 */
#include "state.h"
#include "sys.h"

struct helper {
	uint64_t nonce; /* 0: not forked from an armed process */
	int socket;
	int device;
	int uffd;  /* the process's own, which the agent serves */
	int uffd2; /* without events: the range that pages are dropped in */
};

#define FDS_MAX 3

struct control {
	uint64_t len;
	int32_t level, type;
	int32_t fds[FDS_MAX + 1];
};

static long send_message(int s, struct fp_message *m, int fd)
{
	struct iovec_ v = {m, sizeof *m};
	struct control c = {20, 1 /* SOL_SOCKET */, 1 /* SCM_RIGHTS */, {fd, 0, 0, 0}};
	struct msghdr_ h = {0, 0, &v, 1, 0, 0, 0};

	m->magic = FP_MAGIC;
	m->version = FP_VERSION;
	if (fd >= 0) {
		h.control = &c;
		h.controllen = 24;
	}
	return sys3(SYS_sendmsg, s, &h, MSG_NOSIGNAL_);
}

/* Waits for the message of this type; 0, or -1 when the agent refused. */
static int receive(int s, struct fp_message *m, uint16_t type, int *fds, int want)
{
	struct iovec_ v = {m, sizeof *m};
	struct control c;
	struct msghdr_ h = {0, 0, &v, 1, &c, sizeof c, 0};
	long r;
	int got = 0;

	do {
		h.controllen = sizeof c;
		r = sys3(SYS_recvmsg, s, &h, MSG_CMSG_CLOEXEC_);
	} while (r == -EINTR_);
	if (r != (long)sizeof *m)
		return -1;
	if (h.controllen >= 20 && c.level == 1 && c.type == 1)
		got = (int)((c.len - 16) / 4);
	for (int i = 0; i < want; i++)
		fds[i] = i < got ? c.fds[i] : -1;
	if (m->magic != FP_MAGIC || m->version != FP_VERSION || m->type != type || got != want)
		return -1;
	return 0;
}

static void notice(struct helper *h)
{
	struct fp_message m = {.magic = FP_MAGIC, .version = FP_VERSION, .type = FP_NOTICE};
	struct iovec_ v = {&m, sizeof m};
	struct msghdr_ hdr = {0, 0, &v, 1, 0, 0, 0};

	sys3(SYS_sendmsg, h->socket, &hdr, MSG_NOSIGNAL_ | MSG_DONTWAIT_);
}

static void set_ready(uint32_t value)
{
	__atomic_store_n(&fp_state()->ready, value, __ATOMIC_RELEASE);
	sys3(SYS_futex, &fp_state()->ready, FUTEX_WAKE_, 1 << 30);
}

__attribute__((noreturn)) static void leave(uint32_t status)
{
	set_ready(FP_GAVE_UP);
	for (;;)
		sys1(SYS_exit, status);
}

/* No privilege, no descriptor of the program's, nothing of its folder. */
static void become_nobody(void)
{
	struct {
		uint32_t version;
		int32_t pid;
	} head = {0x20080522, 0}; /* _LINUX_CAPABILITY_VERSION_3 */
	uint32_t none[6] = {0};

	sys3(SYS_close_range, 0, ~0u, 0);
	sys2(SYS_prctl, 15 /* PR_SET_NAME */, "farpage");
	sys1(SYS_chdir, "/");
	sys2(SYS_capset, &head, none);
	sys6(SYS_prctl, 38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0, 0, 0);
}

static int dial(struct helper *h)
{
	struct sockaddr_un_ sa = {.family = AF_UNIX_};

	if (!fp_path(sa.path, "sock"))
		return -1;
	h->socket = (int)sys3(SYS_socket, AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0);
	if (h->socket < 0)
		return -1;
	for (;;) {
		struct timespec_ pause = {0, 1000000};
		long r = sys3(SYS_connect, h->socket, &sa, sizeof sa);

		if (r == 0)
			return 0;
		/* EAGAIN: the listener's queue is full; everything else says that
		 * nobody will ever answer here. */
		if (r != -EAGAIN_ && r != -EINTR_)
			return -1;
		sys2(SYS_nanosleep, &pause, 0);
	}
}

static int hand_off(struct helper *h)
{
	struct fp_message m = {.type = FP_HELLO};
	int fds[FDS_MAX];

	m.nonce = h->nonce;
	m.area = (uint64_t)fp_area;
	m.tid = (uint32_t)sys1(SYS_gettid, 0);
	if (send_message(h->socket, &m, -1) < 0)
		return -1;
	if (h->nonce == 0) {
		/* The agent puts a page of its own here, to see that this memory is the
		 * one that the userfaultfd is of. */
		sys3(SYS_madvise, fp_area + FP_AREA_ANCHOR, FP_PAGE, MADV_DONTNEED_);
		if (receive(h->socket, &m, FP_DEVICE, fds, 1))
			return -1;
		h->device = fds[0];
		h->uffd = (int)sys3(SYS_ioctl, h->device, USERFAULTFD_IOC_NEW_, UFFD_CLOEXEC_NONBLOCK);
		if (h->uffd < 0)
			return -1;
		m = (struct fp_message){.type = FP_UFFD};
		if (send_message(h->socket, &m, h->uffd) < 0)
			return -1;
	} else {
		if (receive(h->socket, &m, FP_DEVICE, fds, 2))
			return -1;
		h->device = fds[0];
		h->uffd = fds[1];
	}
	return 0;
}

/* Maps the channel and makes the drop range; staging was registered with the
 * process's own uffd by the agent (a child inherits it so). */
static int set_up(struct helper *h)
{
	struct fp_message m;
	struct uffdio_api_ api = {UFFD_API_, 0, 0};
	struct uffdio_register_ reg = {(uint64_t)fp_area + FP_AREA_DROP, FP_STAGING_PAGES * FP_PAGE,
				       UFFDIO_REGISTER_MODE_MISSING_, 0};
	int fds[FDS_MAX];
	long r;

	if (receive(h->socket, &m, FP_CHANNEL, fds, 1))
		return -1;
	fp_state()->mode = m.mode;
	r = sys6(SYS_mmap, (long)fp_area + (long)FP_AREA_CHANNEL, FP_CHANNEL_BYTES, PROT_READ_ | PROT_WRITE_,
		 MAP_SHARED_ | MAP_FIXED_, fds[0], 0);
	sys1(SYS_close, fds[0]);
	if (!failed(r)) {
		r = sys3(SYS_ioctl, h->device, USERFAULTFD_IOC_NEW_, UFFD_CLOEXEC_NONBLOCK);
		h->uffd2 = (int)r;
	}
	if (!failed(r))
		r = sys3(SYS_ioctl, h->uffd2, UFFDIO_API_, &api);
	if (!failed(r))
		r = sys3(SYS_ioctl, h->uffd2, UFFDIO_REGISTER_, &reg);
	sys1(SYS_close, h->device);
	m = (struct fp_message){.type = FP_READY, .error = failed(r) ? (int32_t)-r : 0};
	if (send_message(h->socket, &m, -1) < 0 || m.error)
		return -1;
	return receive(h->socket, &m, FP_ARMED, fds, 0);
}

/*
 * How many pages of the run are in staging. UFFDIO_MOVE's own count is not to
 * be trusted after a failure: pages that went before an inner retry are left
 * out of it. Pages always arrive as a prefix.
 */
static uint32_t moved_pages(uint32_t pages)
{
	unsigned char present[FP_STAGING_PAGES];
	uint32_t n = 0;

	if (sys3(SYS_mincore, fp_area + FP_AREA_STAGING, pages * FP_PAGE, present))
		return 0;
	while (n < pages && (present[n] & 1))
		n++;
	return n;
}

static void copy_out(unsigned char *to, const unsigned char *from, unsigned long bytes)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

/* Index of the first page that is in staging, `pages` when it is empty. */
static uint32_t first_staged(uint32_t pages)
{
	unsigned char present[FP_STAGING_PAGES];
	uint32_t n = 0;

	if (sys3(SYS_mincore, fp_area + FP_AREA_STAGING, pages * FP_PAGE, present))
		return 0;
	while (n < pages && !(present[n] & 1))
		n++;
	return n;
}

/*
 * Staging is emptied without an event: moved on into the range of the second
 * uffd, which has none, and dropped there. What stops a move is another page's
 * lock or a fork in progress; both go by. Only pages that somebody has pinned in
 * staging itself are left, and then an event is the lesser evil.
 */
static void drop_staging(struct helper *h, uint32_t pages)
{
	uint32_t at = 0;

	for (int tries = 0; tries < 1000 && at < pages; tries++) {
		uint64_t offset = at * FP_PAGE, bytes = (pages - at) * FP_PAGE;
		struct uffdio_move_ mv = {(uint64_t)fp_area + FP_AREA_DROP + offset,
					  (uint64_t)fp_area + FP_AREA_STAGING + offset, bytes, 0, 0};
		long r = sys3(SYS_ioctl, h->uffd2, UFFDIO_MOVE_, &mv);

		if (r == 0) {
			at = pages;
			break;
		}
		if (r == -EBUSY_)
			sys3(SYS_madvise, fp_area + FP_AREA_STAGING + offset, bytes, MADV_POPULATE_WRITE_);
		at = first_staged(pages);
	}
	if (at < pages)
		sys3(SYS_madvise, fp_area + FP_AREA_STAGING, pages * FP_PAGE, MADV_DONTNEED_);
	sys3(SYS_madvise, fp_area + FP_AREA_DROP, FP_STAGING_PAGES * FP_PAGE, MADV_DONTNEED_);
}

/*
 * One run, once: 0 when its result is stored, EBUSY when it moved nothing
 * because pages are shared or pinned.
 */
static int stale(const struct fp_channel *c)
{
	return __atomic_load_n(&c->epoch, __ATOMIC_SEQ_CST) != __atomic_load_n(&c->command_epoch, __ATOMIC_SEQ_CST);
}

/* Most of what makes a command stale is a page fault being read, which makes it
 * valid again a few microseconds later: worth waiting for a moment. */
#define STALE_SPINS 2000

static uint32_t move_run(struct helper *h, struct fp_channel *c, struct fp_run *run, int last)
{
	struct uffdio_move_ mv = {(uint64_t)fp_area + FP_AREA_STAGING, 0, 0, 0, 0};
	uint32_t pages, moved = 0, error = 0;
	long r;

	for (int i = 0; i < STALE_SPINS && stale(c); i++)
		__asm__ volatile("pause");
	__atomic_store_n(&c->in_ioctl, 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	pages = run->pages; /* the agent may have taken it back */
	if (stale(c)) {
		__atomic_store_n(&run->result, FP_STALE, __ATOMIC_RELEASE);
	} else if (pages != 0 && pages <= FP_STAGING_PAGES) {
		mv.src = run->addr;
		mv.len = pages * FP_PAGE;
		r = sys3(SYS_ioctl, h->uffd, UFFDIO_MOVE_, &mv);
		if (r == 0) {
			moved = pages;
		} else {
			error = (uint32_t)-r;
			moved = moved_pages(pages);
		}
		copy_out(fp_area + FP_AREA_CHANNEL + FP_PAGE + run->first * FP_PAGE, fp_area + FP_AREA_STAGING,
			 moved * FP_PAGE);
		if (moved || error != EBUSY_ || last) {
			run->moved = moved;
			run->error = error;
			__atomic_store_n(&run->result, moved == pages ? FP_DONE : FP_PARTIAL, __ATOMIC_RELEASE);
			error = 0;
		}
	}
	__atomic_store_n(&c->in_ioctl, 0, __ATOMIC_SEQ_CST);
	if (__atomic_exchange_n(&c->want, 0, __ATOMIC_SEQ_CST))
		notice(h);
	if (moved)
		drop_staging(h, moved);
	return error;
}

/*
 * Whether the agent has applied all that happened before now: no event is under
 * way (EAGAIN comes before the kernel looks for a mapping), and none is read
 * that waits. A mapping that was registered between two events about what was
 * at its address before would be taken for what they speak of.
 */
static int settled(const struct helper *h, const struct fp_channel *c)
{
	struct uffdio_zeropage_ z = {FP_PROBE, FP_PAGE, UFFDIO_ZEROPAGE_MODE_DONTWAKE_, 0};

	return sys3(SYS_ioctl, h->uffd, UFFDIO_ZEROPAGE_, &z) != -EAGAIN_ &&
	       !__atomic_load_n(&c->unsettled, __ATOMIC_SEQ_CST);
}

/* The agent is most often done within microseconds; then about two milliseconds,
 * with the timer's slack. */
#define SETTLE_SPINS 1000
#define SETTLE_TRIES 30

/* Waits until it is settled; 0 when that took too long. tries are
 * those of all mail that is answered in one go. */
static int await_settled(const struct helper *h, const struct fp_channel *c, int *tries)
{
	for (int spins = 0; *tries < SETTLE_TRIES; spins++) {
		struct timespec_ pause = {0, 20000};

		if (!__atomic_load_n(&c->unsettled, __ATOMIC_SEQ_CST) && settled(h, c))
			return 1;
		if (spins < SETTLE_SPINS) {
			__asm__ volatile("pause");
			continue;
		}
		sys2(SYS_nanosleep, &pause, 0);
		(*tries)++;
	}
	return 0;
}

/* What is not registered here the agent finds, when it is settled. */
static void answer_mail(struct helper *h, const struct fp_channel *c)
{
	struct fp_state *st = fp_state();
	int tries = 0;

	for (int i = 0; i < FP_MAILBOXES; i++) {
		struct fp_mailbox *b = &st->mail[i];
		struct uffdio_register_ reg;
		uint32_t posted = FP_MAIL_POSTED;
		uint32_t seen = __atomic_load_n(&b->state, __ATOMIC_ACQUIRE);

		if (seen == FP_MAIL_ABANDONED)
			__atomic_store_n(&b->state, FP_MAIL_FREE, __ATOMIC_RELEASE);
		if (seen != FP_MAIL_POSTED)
			continue;
		reg = (struct uffdio_register_){b->addr, b->bytes, st->mode, 0};
		/* The last page stays out: the agent probes there. */
		if (b->addr + b->bytes < FP_PROBE && await_settled(h, c, &tries))
			sys3(SYS_ioctl, h->uffd, UFFDIO_REGISTER_, &reg);
		if (__atomic_compare_exchange_n(&b->state, &posted, FP_MAIL_DONE, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE))
			sys3(SYS_futex, &b->state, FUTEX_WAKE_, 1);
		else
			__atomic_store_n(&b->state, FP_MAIL_FREE, __ATOMIC_RELEASE);
	}
}

static void obey(struct helper *h, struct fp_channel *c)
{
	uint32_t count = c->run_count;

	for (uint32_t i = 0; i < count && i < FP_RUNS_MAX; i++) {
		struct fp_run *run = &c->runs[i];

		if (run->first + run->pages > FP_BATCH_PAGES ||
		    __atomic_load_n(&run->result, __ATOMIC_ACQUIRE) != FP_PENDING)
			continue;
		if (move_run(h, c, run, 0) == EBUSY_) {
			/* Shared after a fork: make the pages this process's own.
			 * Outside the exclusion, for a hole faults here. */
			sys3(SYS_madvise, run->addr, run->pages * FP_PAGE, MADV_POPULATE_WRITE_);
			move_run(h, c, run, 1);
		}
		answer_mail(h, c);
	}
}

#define HAND_OFF_TRIES 8

__attribute__((noreturn)) void fp_helper(void)
{
	struct helper h;
	struct fp_channel *c = (struct fp_channel *)(fp_area + FP_AREA_CHANNEL);
	uint32_t seen;

	become_nobody();
	/* In a child of an armed process this read waits until the agent has put the
	 * nonce there that tells which FORK event was ours. */
	h.nonce = *(volatile uint64_t *)(fp_area + FP_AREA_ANCHOR);
	/* An agent that dies in the middle of a hand-off leaves it to the next one,
	 * which closes the socket: begin again. */
	for (int tries = 1; dial(&h) || hand_off(&h) || set_up(&h); tries++) {
		struct timespec_ pause = {0, tries * 5000000L};

		sys3(SYS_close_range, 0, ~0u, 0);
		if (tries == HAND_OFF_TRIES)
			leave(0);
		sys2(SYS_nanosleep, &pause, 0);
	}
	seen = __atomic_load_n(&c->done, __ATOMIC_ACQUIRE);
	set_ready(FP_IS_READY);
	for (;;) {
		uint32_t wake = __atomic_load_n(&c->wake, __ATOMIC_SEQ_CST);
		uint32_t command = __atomic_load_n(&c->command, __ATOMIC_ACQUIRE);

		if (c->stop)
			leave(c->stop & 0xff);
		answer_mail(&h, c);
		if (command != seen) {
			seen = command;
			obey(&h, c);
			__atomic_store_n(&c->done, seen, __ATOMIC_RELEASE);
			notice(&h);
			continue;
		}
		sys4(SYS_futex, &c->wake, FUTEX_WAIT_, wake, 0);
	}
}
