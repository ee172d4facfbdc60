/* Few rows times stored integers with AVX512-VNNI: vpdpwssd over a quad of blocks at a time. kernels/integers.h has the
 * contract, kernels/integers.c the definition; rows of x are taken by the AVX2 form. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
#include <immintrin.h>

#include "kernels/integers.h"
#include "kernels/lanes_x86.inc"

#define INLINE static inline __attribute__((always_inline))
enum { QUAD = JPO_INTEGERS_QUAD, WORDS = JPO_INTEGERS_WORDS, LANES = JPO_INTEGERS_LANES, GROUP = 6, AHEAD = 2048 };

/* A quad of W: words in the order of jpo_gemm_integers, factor d in each lane, and what is added, m. */
typedef struct {
    __m512i word[4];
    __m512 d, m;
} block_quad;

INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

/* 16 bytes of each block. */
INLINE __m512i side_by_side(const uint8_t *const at[4], int offset) {
    const __m256i lower =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load16(at[0] + offset)), load16(at[1] + offset), 1);
    const __m256i upper =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load16(at[2] + offset)), load16(at[3] + offset), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}

/* The first two halves of each block, widened: d, then m where there is one. */
INLINE __m512 take_halves(const uint8_t *const at[4]) {
    const __m128i lower = _mm_unpacklo_epi32(load16(at[0]), load16(at[1]));
    const __m128i upper = _mm_unpacklo_epi32(load16(at[2]), load16(at[3]));
    return _mm512_castps256_ps512(_mm256_cvtph_ps(_mm_unpacklo_epi64(lower, upper)));
}

INLINE __m512 spread(__m512 halves, int which) { /* value 2 i + which to the four lanes of block i */
    const __m512i even = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
    return _mm512_permutexvar_ps(_mm512_add_epi32(even, _mm512_set1_epi32(which)), halves);
}

INLINE block_quad take_quad(const jpo_dtype dtype, const uint8_t *const at[4]) {
    block_quad w;
    const __m512 halves = take_halves(at);
    w.d = spread(halves, 0);
    if (dtype == JPO_Q8_0) {
        for (int half = 0; half < 2; half++) {
            const __m512i bytes = side_by_side(at, 2 + 16 * half);
            w.word[half] = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
            w.word[2 + half] = _mm512_srai_epi16(bytes, 8);
        }
        w.m = w.d;
        return w;
    }
    const __m512i bytes = side_by_side(at, dtype == JPO_Q4_0 ? 2 : 4), mask = _mm512_set1_epi16(15);
    w.word[0] = _mm512_and_si512(bytes, mask);
    w.word[1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
    w.word[2] = _mm512_and_si512(_mm512_srli_epi16(bytes, 8), mask);
    w.word[3] = _mm512_srli_epi16(bytes, 12);
    w.m = dtype == JPO_Q4_0 ? _mm512_mul_ps(w.d, _mm512_set1_ps(-8)) : spread(halves, 1);
    return w;
}

INLINE __m512 add_quad(const jpo_dtype dtype, __m512 sum, const block_quad *w, const int16_t *q, const float *scale,
                       const float *total) {
    __m512i part = _mm512_dpwssd_epi32(_mm512_setzero_si512(), w->word[0], _mm512_loadu_si512(q));
    part = _mm512_dpwssd_epi32(part, w->word[1], _mm512_loadu_si512(q + 32));
    part = _mm512_dpwssd_epi32(part, w->word[2], _mm512_loadu_si512(q + 64));
    part = _mm512_dpwssd_epi32(part, w->word[3], _mm512_loadu_si512(q + 96));
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_mul_ps(w->d, _mm512_loadu_ps(scale)), sum);
    return dtype == JPO_Q8_0 ? sum : _mm512_fmadd_ps(w->m, _mm512_loadu_ps(total), sum);
}

/* y (m) = or += x times one row of W, so that W is read from one end to the other; what lies AHEAD is fetched. */
INLINE void tile(const jpo_dtype dtype, const int m, float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t first,
                 const uint8_t *row, int64_t blocks, bool accumulate) {
    const int64_t bytes = (int64_t)jpo_dtype_block_bytes(dtype), quads = (blocks + QUAD - 1) / QUAD;
    __m512 sum[GROUP];
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t quad = 0; quad < quads; quad++, row += QUAD * bytes) {
        const int64_t left = blocks - QUAD * quad - 1; /* past the end the last block again: beside zeros of x */
        const uint8_t *const at[4] = {row, row + (left > 0 ? 1 : left) * bytes, row + (left > 1 ? 2 : left) * bytes,
                                      row + (left > 2 ? 3 : left) * bytes};
        const block_quad w = take_quad(dtype, at);
        for (int line = 0; line < QUAD * bytes; line += 64) _mm_prefetch((const char *)row + AHEAD + line, _MM_HINT_T0);
#pragma GCC unroll 6
        for (int i = 0; i < m; i++) {
            const int64_t place = (first + i) * quads + quad;
            sum[i] =
                add_quad(dtype, sum[i], &w, x->q + place * WORDS, x->scale + place * LANES, x->total + place * LANES);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) {
        float total = sum_across_256(half_512(sum[i])), *out = y + i * ldy;
        *out = accumulate ? *out + total : total;
    }
}

#define DOT jpo_integers_dot_avx512
#include "kernels/integers_loop.inc"
#endif
