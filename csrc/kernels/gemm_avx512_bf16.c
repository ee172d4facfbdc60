/* The bfloat16 tile by AVX512-BF16: vdpbf16ps adds the two products of a pair to a float32. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#include <immintrin.h>

#include "base/cpu.h"
#include "kernels/gemm_avx512.h"

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

#define ROWS(R)                                                                            \
    case R:                                                                                \
        tile_rows(R, c, ldc, a, pairs, t->panel, pairs_of(t->depth), columns, accumulate); \
        return;

static int64_t pairs_of(int64_t depth) { return (depth + 1) / 2; }

/* a (rows, pairs; lda in pairs): pairs of bfloat16, the last one padded with zero. */
static void tile(float *c, int64_t ldc, int64_t row0, const jpo_gemm_term *t, int terms, int count, int columns,
                 bool accumulate) {
    (void)terms;
    const int64_t pairs = pairs_of(t->rows->depth);
    const uint32_t *a = (const uint32_t *)t->rows->memory + row0 * pairs + t->d0 / 2;
    switch (count) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
}

static size_t panel_bytes(jpo_dtype dtype, bool backward, int64_t depth) {
    (void)dtype, (void)backward;
    return (size_t)pairs_of(depth) * PANEL * 4;
}

static size_t rows_bytes(int64_t m, int64_t depth) { return (size_t)(m * pairs_of(depth)) * 4; }

const jpo_gemm_kernel jpo_gemm_avx512_bfloat16 = {
    .name = "avx512_bfloat16",
    .compute = JPO_COMPUTE_BFLOAT16,
    .needs = JPO_CPU_AVX512 | JPO_CPU_BF16,
    .wants = JPO_CPU_BF16_FAST,
    .panel = PANEL,
    .rows = TILE_ROWS,
    .align = 1,
    .range = 576,
    .small_rows = 32,
    .small_stored_rows = 32,
    .panel_bytes = panel_bytes,
    .rows_bytes = rows_bytes,
    .convert = jpo_bfloat16_convert_avx512,
    .pack = {jpo_bfloat16_forward_avx512, jpo_bfloat16_backward_avx512},
    .tile = tile,
};
#endif
