/*
 * What a page must hold: a function of who wrote it, which page it is and how
 * often it was written. A page from another place, another process or an
 * earlier time therefore shows. Generation 0 is a page nobody wrote: zeros.
 */
#ifndef GUEST_PATTERN_H
#define GUEST_PATTERN_H

#include <stdint.h>

#define PAGE_BYTES 4096UL
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

static inline uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebUL;
	return x ^ (x >> 31);
}

/* Odd pages compress well, even ones not at all: stores see both. */
static inline uint64_t pattern_word(uint64_t owner, uint64_t page,
				    uint64_t generation, unsigned int word)
{
	uint64_t base;

	if (!generation)
		return 0;
	base = mix(mix(owner + 1) ^ mix(page + 0x10000) ^ generation);
	return page % 2 ? base : mix(base + word);
}

static inline void pattern_fill(void *at, uint64_t owner, uint64_t page,
				uint64_t generation)
{
	uint64_t *words = at;

	for (unsigned int w = 0; w < PAGE_WORDS; w++)
		words[w] = pattern_word(owner, page, generation, w);
}

/* Returns the index of the first wrong word, -1 if all are right. */
static inline int pattern_check(const void *at, uint64_t owner, uint64_t page,
				uint64_t generation)
{
	const volatile uint64_t *words = at;

	for (unsigned int w = 0; w < PAGE_WORDS; w++)
		if (words[w] != pattern_word(owner, page, generation, w))
			return (int)w;
	return -1;
}

#endif
