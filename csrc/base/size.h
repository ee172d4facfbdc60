/* Checked size arithmetic: every product that sizes an allocation or an offset goes through here. */
#ifndef JPO_BASE_SIZE_H
#define JPO_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Each returns false, leaving *out alone, where the true result does not fit. */
static inline bool jpo_size_mul(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool jpo_size_add(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }

/* a*b*c; false on overflow. */
static inline bool jpo_size_mul3(size_t a, size_t b, size_t c, size_t *out) {
    size_t ab;
    return jpo_size_mul(a, b, &ab) && jpo_size_mul(ab, c, out);
}

/* a*b, or SIZE_MAX where that does not fit: more bytes than any array or buffer has. */
static inline size_t jpo_size_product(size_t a, size_t b) {
    size_t product;
    return jpo_size_mul(a, b, &product) ? product : SIZE_MAX;
}

static inline int64_t jpo_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t jpo_round_up(int64_t a, int64_t b) { return jpo_ceil_div(a, b) * b; }
static inline int64_t jpo_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t jpo_max64(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
