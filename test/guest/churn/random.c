/* Each worker has a sequence of its own, so that --seed brings it back. */
#include "churn.h"

uint64_t next_random(struct worker *worker)
{
	worker->random += 0x9e3779b97f4a7c15UL;
	return mix(worker->random);
}

uint32_t pick(struct worker *worker, uint32_t below)
{
	return (uint32_t)((next_random(worker) >> 32) % below);
}
