/* AVX2: dot products for few rows, and int16 by vpmaddwd, which multiplies pairs at twice the float32 rate. Larger float32
 * products are OpenBLAS's, which runs at this level's peak. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "kernels/gemm.h"
#include "kernels/panels.inc"

#define VEC __m256
#define LANES 8
#define VEC_ZERO() _mm256_setzero_ps()
#define VEC_LOAD(p) _mm256_loadu_ps(p)
#define VEC_STORE(p, v) _mm256_storeu_ps(p, v)
#define VEC_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#include "kernels/gemm_dot.inc"

#define PANEL 32
#include "kernels/gemm_pack.inc"

enum { TILE_ROWS = 4, HALF = 16 };
#define UNROLLED _Pragma("GCC unroll 4")

/* sum (rows, 2 vectors) of half a panel: 8 integer sums stay in registers, the float sums pass through memory once in a
 * block. */
static inline __attribute__((always_inline)) void half_tile(const int rows, __m256 sum[TILE_ROWS][2], const uint32_t *a,
                                                            int64_t lda, const float *scale, int64_t lds,
                                                            const uint32_t *b, int64_t blocks) {
    UNROLLED for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t block = 0; block < blocks; block++, b += PANEL) {
        __m256i part[TILE_ROWS][2];
        UNROLLED for (int r = 0; r < rows; r++) part[r][0] = part[r][1] = _mm256_setzero_si256();
        for (int p = 0; p < PAIRS; p++, b += PANEL) {
            __m256i b0 = _mm256_loadu_si256((const __m256i *)b), b1 = _mm256_loadu_si256((const __m256i *)b + 1);
            UNROLLED for (int r = 0; r < rows; r++) {
                __m256i x = _mm256_set1_epi32((int)a[r * lda + block * PAIRS + p]);
                part[r][0] = _mm256_add_epi32(part[r][0], _mm256_madd_epi16(x, b0));
                part[r][1] = _mm256_add_epi32(part[r][1], _mm256_madd_epi16(x, b1));
            }
        }
        __m256 s0 = _mm256_loadu_ps((const float *)b), s1 = _mm256_loadu_ps((const float *)b + 8);
        UNROLLED for (int r = 0; r < rows; r++) {
            __m256 x = _mm256_set1_ps(scale[r * lds + block]);
            sum[r][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r][0]), _mm256_mul_ps(x, s0), sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r][1]), _mm256_mul_ps(x, s1), sum[r][1]);
        }
    }
}

static void put_half(float *c, int64_t ldc, __m256 sum[TILE_ROWS][2], int rows, int columns, bool accumulate) {
    for (int r = 0; r < rows; r++, c += ldc) {
        float edge[HALF];
        _mm256_storeu_ps(edge, sum[r][0]), _mm256_storeu_ps(edge + 8, sum[r][1]);
        for (int j = 0; j < columns && j < HALF; j++) c[j] = accumulate ? c[j] + edge[j] : edge[j];
    }
}

static void tile_int16(float *c, int64_t ldc, const uint32_t *a, int64_t lda, const float *scale, int64_t lds,
                       const void *panel, int64_t blocks, int rows, int columns, bool accumulate) {
    __m256 sum[TILE_ROWS][2];
    for (int half = 0; half * HALF < columns; half++) {
        const uint32_t *b = (const uint32_t *)panel + half * HALF;
        switch (rows) {
        case 1: half_tile(1, sum, a, lda, scale, lds, b, blocks); break;
        case 2: half_tile(2, sum, a, lda, scale, lds, b, blocks); break;
        case 3: half_tile(3, sum, a, lda, scale, lds, b, blocks); break;
        default: half_tile(4, sum, a, lda, scale, lds, b, blocks); break;
        }
        put_half(c + half * HALF, ldc, sum, rows, columns - half * HALF, accumulate);
    }
}

const jpo_gemm_table jpo_gemm_avx2 = {
    .panel = PANEL,
    .rows_int16 = TILE_ROWS,
    .tile_int16 = tile_int16,
    .forward = {forward_float32, forward_int16, forward_bfloat16},
    .backward = {backward_float32, backward_int16, backward_bfloat16},
    .round_bfloat16 = round_bfloat16,
    .quantize_int16 = quantize_int16,
    .few_rows = 128,
    .widen = widen_row,
    .dot_rows = 12,
    .dot = dot,
};
#endif
