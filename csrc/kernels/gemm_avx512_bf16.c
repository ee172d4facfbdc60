/* The bfloat16 tile by AVX512-BF16: vdpbf16ps adds the two products of a pair to a float32. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#include <immintrin.h>

#include "kernels/gemm.h"

enum { PANEL = 32, TILE_ROWS = 12 };
#define UNROLLED _Pragma("GCC unroll 12")

static inline __attribute__((always_inline)) void tile_rows(const int rows, float *c, int64_t ldc, const uint32_t *a,
                                                            int64_t lda, const uint32_t *b, int64_t pairs, int columns,
                                                            bool accumulate) {
    __m512 sum[TILE_ROWS][2];
    const uint32_t *group[4] = {a, a + 3 * lda, a + 6 * lda, a + 9 * lda};
    UNROLLED for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++, b += PANEL) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 16);
        UNROLLED for (int r = 0; r < rows; r++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)group[r / 3][r % 3 * lda]);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
        }
        UNROLLED for (int g = 0; g < 4; g++) group[g]++;
    }
    const uint32_t mask = columns < 32 ? (1u << columns) - 1 : 0xffffffffu;
    UNROLLED for (int r = 0; r < rows; r++) {
        for (int v = 0; v < 2; v++) {
            __mmask16 lanes = (__mmask16)(mask >> (16 * v));
            float *out = c + r * ldc + 16 * v;
            __m512 y = sum[r][v];
            if (accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, out), y);
            _mm512_mask_storeu_ps(out, lanes, y);
        }
    }
}

#define ROWS(R)                                                          \
    case R:                                                              \
        tile_rows(R, c, ldc, a, lda, panel, pairs, columns, accumulate); \
        return;

void jpo_gemm_bfloat16_avx512(float *c, int64_t ldc, const uint32_t *a, int64_t lda, const void *panel, int64_t pairs,
                              int rows, int columns, bool accumulate) {
    switch (rows) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) }
}
#endif
