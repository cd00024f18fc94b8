#define _GNU_SOURCE
#include <getopt.h>
#include <pthread.h>
#include <time.h>

#include "churn.h"

struct options options = {
	.threads = 8,
	.seconds = 10,
	/* Huge pages must be asked for: they make the memory of a run vary. */
	.operations = ((1U << OPERATIONS) - 1) & ~(1U << OP_HUGE),
};

static bool stop;

static __attribute__((noreturn)) void usage(const char *program)
{
	dprintf(2,
		"usage: %s [--threads N] [--seconds N] [--seed N] [--hold] [--alone]\n"
		"       [--only OPERATION,...] [--without OPERATION,...] "
		"[--with OPERATION,...]\n"
		"operations:",
		program);
	for (int op = 0; op < OPERATIONS; op++)
		dprintf(2, " %s", operation_names[op]);
	dprintf(2, "\n");
	_exit(2);
}

static uint32_t operation_mask(const char *program, char *names)
{
	uint32_t mask = 0;

	for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
		int op = 0;

		while (op < OPERATIONS && strcmp(name, operation_names[op]))
			op++;
		if (op == OPERATIONS)
			usage(program);
		mask |= 1U << op;
	}
	return mask;
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "threads", required_argument, NULL, 't' },
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "only", required_argument, NULL, 'o' },
		{ "without", required_argument, NULL, 'x' },
		{ "with", required_argument, NULL, 'w' },
		{ "hold", no_argument, NULL, 'h' },
		{ "alone", no_argument, NULL, 'a' },
		{ 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) >= 0) {
		switch (option) {
		case 't':
			options.threads = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 's':
			options.seconds = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'r':
			options.seed = strtoul(optarg, NULL, 10);
			break;
		case 'o':
			options.operations = operation_mask(argv[0], optarg);
			break;
		case 'x':
			options.operations &= ~operation_mask(argv[0], optarg);
			break;
		case 'w':
			options.operations |= operation_mask(argv[0], optarg);
			break;
		case 'h':
			options.hold = true;
			break;
		case 'a':
			options.alone = true;
			break;
		default:
			usage(argv[0]);
		}
	}
	if (optind < argc || !options.threads || options.threads > WORKERS_MAX)
		usage(argv[0]);
}

static void *work(void *argument_worker)
{
	struct worker *worker = argument_worker;

	worker->progress->tid = gettid();
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		step(worker);
	if (worker->child)
		reap(worker, true);
	check_all(worker, "at the end");
	return NULL;
}

static void stop_now(int number)
{
	(void)number;
	stop = true;
}

/* In the only thread of the program, without a watchdog. */
static void work_alone(struct worker *worker)
{
	options.operations &= ~(1U << OP_FORK);
	signal(SIGALRM, stop_now);
	alarm(options.seconds);
	work(worker);
}

static void work_in_threads(struct worker *workers)
{
	pthread_t threads[WORKERS_MAX];

	for (uint32_t w = 0; w < options.threads; w++)
		if (pthread_create(&threads[w], NULL, work, &workers[w]))
			fail("pthread_create");
	start_watchdog(workers);
	sleep(options.seconds);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (uint32_t w = 0; w < options.threads; w++)
		pthread_join(threads[w], NULL);
}

static void prepare(struct worker *worker, uint32_t number,
		    struct progress *progress)
{
	worker->number = number;
	worker->random = mix(options.seed) ^ mix(number + 1);
	worker->progress = progress;
	if (pipe(worker->pipe))
		fail_errno("pipe");
}

/* To stderr: the counts are another each time. */
static void print_totals(const struct worker *workers)
{
	uint64_t steps = 0, checks = 0, refused = 0, abandoned = 0;

	for (uint32_t w = 0; w < options.threads; w++) {
		steps += workers[w].progress->steps;
		checks += workers[w].checks;
		refused += workers[w].refused;
		abandoned += workers[w].abandoned_pages;
	}
	dprintf(2, "churn: steps %lu checks %lu refused %lu abandoned %lu",
		steps, checks, refused, abandoned);
	for (int op = 0; op < OPERATIONS; op++) {
		uint64_t done = 0;

		for (uint32_t w = 0; w < options.threads; w++)
			done += workers[w].done[op];
		if (done)
			dprintf(2, " %s %lu", operation_names[op], done);
	}
	dprintf(2, "\n");
}

int main(int argc, char **argv)
{
	struct progress *progress;
	struct worker *workers;

	options.seed = (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
	parse(argc, argv);
	if (options.alone)
		options.threads = 1;
	dprintf(2, "churn: --threads %u --seconds %u --seed %lu\n",
		options.threads, options.seconds, options.seed);
	progress = mmap(NULL, options.threads * sizeof(*progress),
			PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
			0);
	if (progress == MAP_FAILED)
		fail_errno("mmap");
	workers = (struct worker *)(void *)map_pages(
		options.threads * sizeof(*workers) / PAGE_BYTES + 1);
	for (uint32_t w = 0; w < options.threads; w++)
		prepare(&workers[w], w, &progress[w]);
	if (options.alone)
		work_alone(workers);
	else
		work_in_threads(workers);
	print_totals(workers);
	printf("churn: %u threads right\n", options.threads);
	return 0;
}
