/* A small batch of rows of x times a weight's stored integers (Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q5_K, Q6_K): weights are
 * exact, x is rounded to 16-bit integers, |q| <= 32767, with a scale for each block of 32; what decoding in int16 uses.
 * Numerical contract. Four blocks, a quad, give sixteen integer sums, four a block, each of 8 products, exact in an
 * int32: weights are at most 128, those of Q6_K, whose 8-bit scales are multiplied into them, 32 * 128, so that
 * 8 * 4096 * 32767 < 2^30. Rounded to float32 the sums are added to sixteen float32 sums, quad after quad, by one fused
 * multiply-add with the rounded product of the scales, then (all but Q8_0 and Q6_K) one of the block's constant and
 * `total`; at the end the sixteen are added in halves. NaN, infinity and tiny blocks: as for int16 in kernels/gemm.h.
 * The same bits from every implementation. */
#ifndef JPO_KERNELS_INTEGERS_H
#define JPO_KERNELS_INTEGERS_H

#include "kernels/gemm_int16.h"

enum {
    JPO_INTEGERS_QUAD = 4,                                   /* blocks of a quad */
    JPO_INTEGERS_WORDS = JPO_INTEGERS_QUAD * JPO_GEMM_BLOCK, /* its integers */
    JPO_INTEGERS_LANES = 16                                  /* its sums */
};

/* Rows of x: quads = ceil(K / 128); missing blocks of the last are zero. */
struct jpo_gemm_integers {
    int16_t *q;   /* (m, quads, 4, 4, 8): values 0 2 .. 14, 16 .. 30, 1 3 .. 15, 17 .. 31 of each of the four blocks */
    float *scale; /* (m, quads, 16): that of each block four times */
    float *total; /* (m, quads, 16): scale times the sum of a lane's values */
};

static inline bool jpo_integers_serve(jpo_dtype dtype) {
    return dtype == JPO_Q8_0 || dtype == JPO_Q4_0 || dtype == JPO_Q4_1 || dtype == JPO_Q5_0 || dtype == JPO_Q4_K ||
           dtype == JPO_Q5_K || dtype == JPO_Q6_K;
}

/* Row i of x = in (k), k a multiple of 32. */
void jpo_integers_quantize(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k);
void jpo_integers_dot(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *source,
                      bool accumulate);
#if defined(__x86_64__)
void jpo_integers_quantize_avx2(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k);
void jpo_integers_dot_avx2(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *source,
                           bool accumulate);
void jpo_integers_dot_avx512(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m,
                             const jpo_gemm_source *source, bool accumulate); /* VNNI */
#endif

#endif
