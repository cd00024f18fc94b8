/* What target and loop agree on: where the measured memory is, and what is in it. */
#ifndef BENCH_CONTENT_H
#define BENCH_CONTENT_H

#include <stdint.h>
#include <string.h>

#define PAGE_BYTES 4096UL
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

/* Pages are far in the one and untouched in the other. The places are fixed, so
 * that the loop knows from an address which page it is. */
#define FAR_AT 0x100000000000UL
#define ZERO_AT 0x200000000000UL

static inline uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebUL;
	return x ^ (x >> 31);
}

/* Blocks of 256 bytes, each of them twice: half of a page is news to a store that
 * compresses, and to a zram. No two pages are alike. */
#define BLOCK_WORDS 32UL

static inline uint64_t content_word(uint64_t page, uint64_t word)
{
	return mix((page + 1) << 20 | word / (2 * BLOCK_WORDS) << 10 | word % BLOCK_WORDS);
}

static inline void content_fill(void *at, uint64_t page)
{
	uint64_t *words = at;

	for (uint64_t w = 0; w < PAGE_WORDS; w++)
		words[w] = content_word(page, w);
}

/* Index of the first wrong word, -1: all are right. */
static inline int content_check(const void *at, uint64_t page)
{
	const volatile uint64_t *words = at;

	for (uint64_t w = 0; w < PAGE_WORDS; w++)
		if (words[w] != content_word(page, w))
			return (int)w;
	return -1;
}

static inline int zero_check(const void *at)
{
	const volatile uint64_t *words = at;

	for (uint64_t w = 0; w < PAGE_WORDS; w++)
		if (words[w])
			return (int)w;
	return -1;
}

#endif
