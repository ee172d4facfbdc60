/* Few rows times stored integers with AVX2: vpmaddwd over two blocks at a time. kernels/gemm.h has the contract,
 * kernels/integers.c the definition. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/gemm_int16.h"
#include "kernels/integers.h"
#include "kernels/lanes_x86.inc"

#include "kernels/blocks.inc"

#include "kernels/k_scales.inc"

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

INLINE void quantize_block(int16_t *q, float *scale, float *total, const float *in) {
    __m256 v[4];
    __m256i top = _mm256_setzero_si256(), whole[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(in + 8 * i), top = _mm256_max_epu32(top, magnitude(v[i]));
    float inverse;
    const float factor = jpo_int16_scale(max_across(top), JPO_GEMM_STORED_ROWS_MAX, &inverse);
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
        quantize_block(x->q + place * WORDS + part * 8, x->scale + place * LANES + part * 4,
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

/* The fifth bits of Q5_0: bit j of 32 is that of value j. */
INLINE void put_fifth_bits(block_pair *pair, const uint8_t *a, const uint8_t *b) {
    const __m256i head = side_by_side(a, b), sixteen = _mm256_set1_epi16(16);
    const __m256i even = _mm256_broadcastsi128_si256(_mm_setr_epi16(1, 4, 16, 64, 256, 1024, 4096, 16384));
    const __m256i odd = _mm256_slli_epi16(even, 1);
    for (int which = 0; which < 2; which++) {
        const __m256i bits = _mm256_shuffle_epi8(head, _mm256_set1_epi16(which ? 0x0504 : 0x0302));
        const __m256i first = _mm256_cmpeq_epi16(_mm256_and_si256(bits, even), even);
        const __m256i second = _mm256_cmpeq_epi16(_mm256_and_si256(bits, odd), odd);
        pair->word[which] = _mm256_or_si256(pair->word[which], _mm256_and_si256(first, sixteen));
        pair->word[2 + which] = _mm256_or_si256(pair->word[2 + which], _mm256_and_si256(second, sixteen));
    }
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
    if (dtype == JPO_Q5_0) {
        take_nibbles(&pair, a + 6, b + 6);
        put_fifth_bits(&pair, a, b);
        pair.d = take_d(a, b);
        pair.m = _mm256_mul_ps(pair.d, _mm256_set1_ps(-16));
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

/* ---- K blocks: four pairs each ---- */

INLINE __m256i twice(const uint8_t *bytes) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes));
}

/* 16 bytes in both lanes, shifted to the right by `first` and `second`. */
INLINE __m256i shift_lanes(__m256i bytes, int first, int second) {
    return _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(first, first, second, second));
}

/* Words of two pieces of Q6_K, 2 pair and 2 pair + 1, times their scales. */
INLINE void take_q6(__m256i word[4], const uint8_t *block, int pair) {
    const int half = pair / 2, upper = pair % 2;
    const __m256i nibble = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48), zero = _mm256_set1_epi8(32);
    const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
    for (int which = 0; which < 2; which++) {
        const __m256i bytes =
            _mm256_srl_epi16(side_by_side(low + 16 * which, low + 32 + 16 * which), _mm_cvtsi32_si128(4 * upper));
        const __m256i bits = _mm256_slli_epi16(shift_lanes(twice(high + 16 * which), 4 * upper, 4 * upper + 2), 4);
        const __m256i q =
            _mm256_sub_epi8(_mm256_or_si256(_mm256_and_si256(bytes, nibble), _mm256_and_si256(bits, two)), zero);
        const int8_t *scales = (const int8_t *)block + 192 + 4 * pair + which;
        const __m256i scale = _mm256_inserti128_si256(_mm256_set1_epi16(scales[0]), _mm_set1_epi16(scales[2]), 1);
        word[which] = _mm256_mullo_epi16(_mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8), scale);
        word[2 + which] = _mm256_mullo_epi16(_mm256_srai_epi16(q, 8), scale);
    }
}

/* Two pieces of a K block; scales (2, 8): factors and constants of its eight. */
INLINE block_pair take_k_pair(const jpo_dtype dtype, const uint8_t *block, int pair, const float scales[2][8]) {
    block_pair w;
    if (dtype == JPO_Q6_K) {
        take_q6(w.word, block, pair);
        w.d = w.m = _mm256_set1_ps(scales[0][0]);
        return w;
    }
    const __m256i mask = _mm256_set1_epi16(15), bit = _mm256_set1_epi16(16);
    const uint8_t *bytes = block + (dtype == JPO_Q4_K ? 16 : 48) + 32 * pair;
    for (int which = 0; which < 2; which++) {
        const __m256i nibbles = shift_lanes(twice(bytes + 16 * which), 0, 4);
        w.word[which] = _mm256_and_si256(nibbles, mask);
        w.word[2 + which] = _mm256_and_si256(_mm256_srli_epi16(nibbles, 8), mask);
        if (dtype == JPO_Q4_K) continue;
        const __m256i fifth = shift_lanes(twice(block + 16 + 16 * which), 2 * pair, 2 * pair + 1);
        w.word[which] = _mm256_or_si256(w.word[which], _mm256_and_si256(_mm256_slli_epi16(fifth, 4), bit));
        w.word[2 + which] = _mm256_or_si256(w.word[2 + which], _mm256_and_si256(_mm256_srli_epi16(fifth, 4), bit));
    }
    const float *d = scales[0] + 2 * pair, *m = scales[1] + 2 * pair;
    w.d = _mm256_setr_m128(_mm_set1_ps(d[0]), _mm_set1_ps(d[1]));
    w.m = _mm256_setr_m128(_mm_set1_ps(m[0]), _mm_set1_ps(m[1]));
    return w;
}

INLINE __m256 add_pair(const jpo_dtype dtype, __m256 sum, const block_pair *w, const int16_t *q, const float *scale,
                       const float *total) {
    __m256i part = _mm256_madd_epi16(w->word[0], _mm256_loadu_si256((const __m256i *)q));
    part = _mm256_add_epi32(part, _mm256_madd_epi16(w->word[1], _mm256_loadu_si256((const __m256i *)(q + 32))));
    part = _mm256_add_epi32(part, _mm256_madd_epi16(w->word[2], _mm256_loadu_si256((const __m256i *)(q + 64))));
    part = _mm256_add_epi32(part, _mm256_madd_epi16(w->word[3], _mm256_loadu_si256((const __m256i *)(q + 96))));
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), _mm256_mul_ps(w->d, _mm256_loadu_ps(scale)), sum);
    return dtype == JPO_Q8_0 || dtype == JPO_Q6_K ? sum : _mm256_fmadd_ps(w->m, _mm256_loadu_ps(total), sum);
}

/* Two blocks of a row: half of a quad. */
INLINE block_pair pair_at(const jpo_dtype dtype, const uint8_t *row, int64_t quad, int half, int64_t blocks,
                          float scales[2][8]) {
    const int64_t bytes = (int64_t)jpo_dtype_block_bytes(dtype), last = blocks - 1;
    if (jpo_dtype_block(dtype) > JPO_GEMM_BLOCK) {
        const uint8_t *block = row + quad / 2 * bytes;
        if (quad % 2 == 0 && half == 0) k_scales(dtype, scales[0], scales[1], block);
        return take_k_pair(dtype, block, (int)(quad % 2) * 2 + half, (const float(*)[8])scales);
    }
    const int64_t a = QUAD * quad + 2 * half, b = a + 1; /* past the end the last block again: beside zeros of x */
    return take_pair(dtype, row + (a < last ? a : last) * bytes, row + (b < last ? b : last) * bytes);
}

/* y (m) = or += x times one row of W, so that W is read from one end to the other; what lies AHEAD is fetched. */
INLINE void tile(const jpo_dtype dtype, const int m, float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t first,
                 const uint8_t *row, int64_t blocks, bool accumulate) {
    const int64_t quads = (blocks + QUAD - 1) / QUAD;
    const int64_t bytes = WORDS / 2 * (int64_t)jpo_dtype_block_bytes(dtype) / jpo_dtype_block(dtype); /* of a pair */
    __m256 sum[GROUP][2];
    float scales[2][8] = {{0}};
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (int64_t quad = 0; quad < quads; quad++) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const block_pair w = pair_at(dtype, row, quad, half, blocks, scales);
            for (int line = 0; line < bytes; line += 64)
                _mm_prefetch((const char *)row + (2 * quad + half) * bytes + AHEAD + line, _MM_HINT_T0);
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
