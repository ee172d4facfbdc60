/* A mixing of 64 bits: what seeds masks and digests needs no state and no order. */
#ifndef JPO_BASE_MIX_H
#define JPO_BASE_MIX_H

#include <stdint.h>

#define JPO_GOLDEN64 0x9e3779b97f4a7c15ULL /* 2^64 over the golden ratio: neighbouring numbers fall far apart */

/* The finalizer of MurmurHash3: each bit of h reaches each bit of the result. 0 stays 0. */
static inline uint64_t jpo_mix64(uint64_t h) {
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdULL;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ULL;
    return h ^ (h >> 33);
}

#endif
