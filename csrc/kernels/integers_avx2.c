/* Few rows times stored integers with AVX2: vpmaddwd over two blocks at a time. kernels/gemm.h has the contract,
 * kernels/integers.c the definition. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#include <string.h>

#include "kernels/integers.h"
#include "kernels/lanes_x86.inc"

#define INLINE static inline __attribute__((always_inline))
enum { QUAD = JPO_INTEGERS_QUAD, WORDS = JPO_INTEGERS_WORDS, LANES = JPO_INTEGERS_LANES, GROUP = 6, AHEAD = 2048 };

INLINE __m256i magnitude(__m256 x) { /* integers order like magnitudes, NaN above infinity */
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

INLINE uint32_t max_across(__m256i v) {
    __m128i top = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(top, _mm_shuffle_epi32(top, 0xb1)));
}

/* Eight even (0x88) or odd (0xdd) values of two vectors, in their order. */
#define EVERY_OTHER(a, b, which) \
    _mm256_permute4x64_epi64(    \
        _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), which)), 0xd8)

INLINE void take_block(int16_t *q, float *scale, float *total, const float *in) {
    __m256 v[4];
    __m256i top = _mm256_setzero_si256(), whole[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(in + 8 * i), top = _mm256_max_epu32(top, magnitude(v[i]));
    const uint32_t bits = max_across(top);
    float largest, inverse = 0, factor = 0;
    memcpy(&largest, &bits, sizeof largest);
    if (bits >= 0x7f800000)
        factor = __builtin_nanf("");
    else if (largest >= 0x1p-100f)
        factor = largest / 32767, inverse = 32767 / largest;
    const __m256 scaling = _mm256_set1_ps(inverse);
    for (int i = 0; i < 4; i++) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], scaling));
    if (inverse == 0)
        for (int i = 0; i < 4; i++) whole[i] = _mm256_setzero_si256();
    const __m256i even = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(EVERY_OTHER(whole[0], whole[1], 0x88), EVERY_OTHER(whole[2], whole[3], 0x88)), 0xd8);
    const __m256i odd = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(EVERY_OTHER(whole[0], whole[1], 0xdd), EVERY_OTHER(whole[2], whole[3], 0xdd)), 0xd8);
    _mm_storeu_si128((__m128i *)q, _mm256_castsi256_si128(even));
    _mm_storeu_si128((__m128i *)(q + 32), _mm256_extracti128_si256(even, 1));
    _mm_storeu_si128((__m128i *)(q + 64), _mm256_castsi256_si128(odd));
    _mm_storeu_si128((__m128i *)(q + 96), _mm256_extracti128_si256(odd, 1));
    const __m256i one = _mm256_set1_epi16(1),
                  sums = _mm256_add_epi32(_mm256_madd_epi16(even, one), _mm256_madd_epi16(odd, one));
    const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    _mm_storeu_ps(scale, _mm_set1_ps(factor));
    _mm_storeu_ps(total, _mm_mul_ps(_mm_set1_ps(factor), _mm_cvtepi32_ps(sum)));
}

void jpo_integers_quantize_avx2(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k) {
    static const float zero[JPO_GEMM_BLOCK];
    const int64_t blocks = k / JPO_GEMM_BLOCK, quads = (blocks + QUAD - 1) / QUAD;
    for (int64_t block = 0; block < QUAD * quads; block++) {
        const int64_t place = i * quads + block / QUAD, part = block % QUAD;
        take_block(x->q + place * WORDS + part * 8, x->scale + place * LANES + part * 4,
                   x->total + place * LANES + part * 4, block < blocks ? in + block * JPO_GEMM_BLOCK : zero);
    }
}

/* Two blocks of W side by side: words in the order of jpo_gemm_integers, factor d in each lane, and what is added, m.
 */
typedef struct {
    __m256i word[4];
    __m256 d, m;
} block_pair;

INLINE __m256i side_by_side(const uint8_t *a, const uint8_t *b) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a)),
                                   _mm_loadu_si128((const __m128i *)b), 1);
}

INLINE void take_nibbles(block_pair *pair, const uint8_t *a, const uint8_t *b) {
    const __m256i bytes = side_by_side(a, b), mask = _mm256_set1_epi16(15);
    pair->word[0] = _mm256_and_si256(bytes, mask);
    pair->word[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    pair->word[2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 8), mask);
    pair->word[3] = _mm256_srli_epi16(bytes, 12);
}

/* The d of both blocks, each in its four lanes. */
INLINE __m256 take_d(const uint8_t *a, const uint8_t *b) {
    uint16_t first, second;
    memcpy(&first, a, 2), memcpy(&second, b, 2);
    const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128((int)((uint32_t)first | (uint32_t)second << 16)));
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(both), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

INLINE block_pair take_pair(const jpo_dtype dtype, const uint8_t *a, const uint8_t *b) {
    block_pair pair;
    if (dtype == JPO_Q8_0) {
        for (int half = 0; half < 2; half++) {
            const __m256i bytes = side_by_side(a + 2 + 16 * half, b + 2 + 16 * half);
            pair.word[half] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
            pair.word[2 + half] = _mm256_srai_epi16(bytes, 8);
        }
        pair.d = pair.m = take_d(a, b);
        return pair;
    }
    if (dtype == JPO_Q4_0) {
        take_nibbles(&pair, a + 2, b + 2);
        pair.d = take_d(a, b);
        pair.m = _mm256_mul_ps(pair.d, _mm256_set1_ps(-8));
        return pair;
    }
    int first, second;
    memcpy(&first, a, 4), memcpy(&second, b, 4);
    const __m128 all = _mm_cvtph_ps(_mm_insert_epi32(_mm_cvtsi32_si128(first), second, 1)); /* d m d m */
    const __m256 spread = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_castps128_ps256(all)), 0x50));
    take_nibbles(&pair, a + 4, b + 4);
    pair.d = _mm256_moveldup_ps(spread), pair.m = _mm256_movehdup_ps(spread);
    return pair;
}

INLINE __m256 add_pair(const jpo_dtype dtype, __m256 sum, const block_pair *w, const int16_t *q, const float *scale,
                       const float *total) {
    __m256i part = _mm256_madd_epi16(w->word[0], _mm256_loadu_si256((const __m256i *)q));
    part = _mm256_add_epi32(part, _mm256_madd_epi16(w->word[1], _mm256_loadu_si256((const __m256i *)(q + 32))));
    part = _mm256_add_epi32(part, _mm256_madd_epi16(w->word[2], _mm256_loadu_si256((const __m256i *)(q + 64))));
    part = _mm256_add_epi32(part, _mm256_madd_epi16(w->word[3], _mm256_loadu_si256((const __m256i *)(q + 96))));
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), _mm256_mul_ps(w->d, _mm256_loadu_ps(scale)), sum);
    return dtype == JPO_Q8_0 ? sum : _mm256_fmadd_ps(w->m, _mm256_loadu_ps(total), sum);
}

/* y (m) = or += x times one row of W, so that W is read from one end to the other; what lies AHEAD is fetched. */
INLINE void tile(const jpo_dtype dtype, const int m, float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t first,
                 const uint8_t *row, int64_t blocks, bool accumulate) {
    const int64_t bytes = (int64_t)jpo_dtype_block_bytes(dtype), quads = (blocks + QUAD - 1) / QUAD, last = blocks - 1;
    __m256 sum[GROUP][2];
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (int64_t quad = 0; quad < quads; quad++) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const int64_t a = QUAD * quad + 2 * half, b = a + 1; /* the last block again: beside zeros of x */
            const uint8_t *at = row + (a < last ? a : last) * bytes;
            const block_pair w = take_pair(dtype, at, row + (b < last ? b : last) * bytes);
            _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 6
            for (int i = 0; i < m; i++) {
                const int64_t place = (first + i) * quads + quad, lanes = place * LANES + 8 * half;
                sum[i][half] = add_pair(dtype, sum[i][half], &w, x->q + place * WORDS + 16 * half, x->scale + lanes,
                                        x->total + lanes);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) {
        float total = sum_across_256(_mm256_add_ps(sum[i][0], sum[i][1])), *out = y + i * ldy;
        *out = accumulate ? *out + total : total;
    }
}

#define DOT jpo_integers_dot_avx2
#include "kernels/integers_loop.inc"
#endif
