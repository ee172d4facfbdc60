/* The int16 tile by AVX512-VNNI: vpdpwssd adds the two products of a pair to an int32. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#include <immintrin.h>

#include "base/cpu.h"
#include "kernels/gemm_avx512.h"
#include "kernels/gemm_int16.h"
#include "kernels/integers.h"

enum { PANEL = 32, PAIRS = JPO_GEMM_BLOCK / 2, TILE_ROWS = 6 };
#define UNROLLED _Pragma("GCC unroll 6")

/* sum += the two products of each pair. Written as an instruction, because compilers copy the sum around the intrinsic,
 * which costs a third of the speed. */
static inline __attribute__((always_inline)) __m512i dot_pairs(__m512i sum, __m512i x, __m512i w) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}

/* 12 integer sums and 12 float sums stay in registers: a block's integers are widened once in 16 steps. */
static inline __attribute__((always_inline)) void tile_rows(const int rows, float *c, int64_t ldc,
                                                            const jpo_int16_rows *a, const uint32_t *b, int64_t blocks,
                                                            int columns, bool accumulate) {
    __m512 sum[TILE_ROWS][2];
    const int64_t lda = a->ldp, lds = a->lds;
    const uint32_t *group[2] = {a->pairs, a->pairs + 3 * lda};
    const float *scales[2] = {a->scale, a->scale + 3 * lds}, *totals = a->total;
    UNROLLED for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; block++) {
        __m512i part[TILE_ROWS][2], b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
        UNROLLED for (int r = 0; r < rows; r++) {
            __m512i x = _mm512_set1_epi32((int)group[r / 3][r % 3 * lda]);
            part[r][0] = _mm512_madd_epi16(x, b0), part[r][1] = _mm512_madd_epi16(x, b1);
        }
        b += PANEL, group[0]++, group[1]++;
        for (int p = 1; p < PAIRS; p++, b += PANEL) {
            b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
            UNROLLED for (int r = 0; r < rows; r++) {
                __m512i x = _mm512_set1_epi32((int)group[r / 3][r % 3 * lda]);
                part[r][0] = dot_pairs(part[r][0], x, b0), part[r][1] = dot_pairs(part[r][1], x, b1);
            }
            group[0]++, group[1]++;
        }
        __m512 s0 = _mm512_loadu_ps((const float *)b), s1 = _mm512_loadu_ps((const float *)b + 16);
        UNROLLED for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(scales[r / 3][r % 3 * lds]);
            sum[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][0]), _mm512_mul_ps(x, s0), sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][1]), _mm512_mul_ps(x, s1), sum[r][1]);
        }
        scales[0]++, scales[1]++;
        b += PANEL;
        if (!totals) continue;
        s0 = _mm512_loadu_ps((const float *)b), s1 = _mm512_loadu_ps((const float *)b + 16);
        UNROLLED for (int r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(totals[r * lds]);
            sum[r][0] = _mm512_fmadd_ps(s0, x, sum[r][0]), sum[r][1] = _mm512_fmadd_ps(s1, x, sum[r][1]);
        }
        totals++;
        b += PANEL;
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

#define ROWS(R)                                                                             \
    case R:                                                                                 \
        tile_rows(R, c, ldc, &a, t->panel, jpo_gemm_blocks(t->depth), columns, accumulate); \
        return;

static void tile(float *c, int64_t ldc, int64_t row0, const jpo_gemm_term *t, int terms, int count, int columns,
                 bool accumulate) {
    (void)terms;
    const jpo_int16_rows a = jpo_int16_rows_at(t->rows, row0, t->d0 / JPO_GEMM_BLOCK);
    switch (count) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) }
}

const jpo_integer_kernel jpo_integers_avx512 = {8, jpo_integers_quantize_avx2, jpo_integers_dot_avx512};

const jpo_gemm_kernel jpo_gemm_avx512_vnni_int16 = {.name = "avx512_vnni_int16",
                                                    .compute = JPO_COMPUTE_INT16,
                                                    .needs = JPO_CPU_AVX512 | JPO_CPU_VNNI,
                                                    .panel = PANEL,
                                                    .rows = TILE_ROWS,
                                                    .align = 1,
                                                    .range = 576,
                                                    .small_rows = 32,
                                                    .small_stored_rows = 8,
                                                    .integers = &jpo_integers_avx512,
                                                    .panel_bytes = jpo_int16_panel_bytes,
                                                    .rows_bytes = jpo_int16_rows_bytes,
                                                    .convert = jpo_int16_convert_avx512,
                                                    .pack = {jpo_int16_forward_avx512, jpo_int16_backward_avx512},
                                                    .tile = tile};
#endif
