/* Few rows of x times a weight's stored integers (Q8_0, Q4_0, Q4_1): weights are exact, x is rounded to 16-bit
 * integers, |q| <= 32767, with a scale for each block of 32; what decoding in int16 uses.
 * Numerical contract. Four blocks, a quad, give sixteen integer sums, four a block, each at most 8 * 128 * 32767 <
 * 2^25, exact in an int32; rounded to float32 they are added to sixteen float32 sums, quad after quad, by one fused
 * multiply-add with the rounded product of the scales, then (Q4_0, Q4_1) one of the block's constant and `total`; at
 * the end the sixteen are added in halves. NaN, infinity and tiny blocks: as for int16 in kernels/gemm.h. The same bits
 * from every implementation. */
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
    float *total; /* (m, quads, 16): scale times the sum of the values that a lane takes */
};

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
