/* Few rows of x times a weight's stored integers (Q8_0, Q4_0, Q4_1): weights are exact, x is rounded to 16-bit
 * integers, |q| <= 32767, with a scale for each block of 32; what decoding in int16 uses.
 * Numerical contract. A pair of blocks gives eight integer sums, each at most 4 * 128 * 32767 < 2^24, exact in an int32
 * and in a float32; they are added to eight float32 sums, pair after pair, by one fused multiply-add of the integer and the
 * rounded product of the scales, then (Q4_0, Q4_1) one of the block's constant and `total`; at the end the eight sums are
 * added. NaN, infinity and tiny blocks: as for int16 in kernels/gemm.h. The same bits from every implementation. */
#ifndef JPO_KERNELS_INTEGERS_H
#define JPO_KERNELS_INTEGERS_H

#include "kernels/gemm.h"

/* Rows of x: pairs = ceil(K / 64); a missing second block is zero. */
struct jpo_gemm_integers {
    int16_t *q;   /* (m, pairs, 4, 2, 8): values 0 2 .. 14, 16 .. 30, 1 3 .. 15, 17 .. 31 of the first and second block */
    float *scale; /* (m, pairs, 8): that of the first block four times, of the second four times */
    float *total; /* (m, pairs, 8): scale times the sum of the values that a lane takes */
};

/* Row i of x = in (k), k a multiple of 32. */
void jpo_integers_take(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k);
void jpo_integers_dot(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *source,
                      bool accumulate);
#if defined(__x86_64__)
void jpo_integers_take_avx2(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k);
void jpo_integers_dot_avx2(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *source,
                           bool accumulate);
#endif

#endif
