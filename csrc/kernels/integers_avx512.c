/* Few rows times stored integers with AVX512-VNNI: vpdpwssd over a quad of blocks at a time. kernels/integers.h has the
 * contract, kernels/integers.c the definition; rows of x are quantized by the AVX2 form. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
#include <immintrin.h>
#include <stdbool.h>

#include "kernels/integers.h"
#include "kernels/lanes_x86.inc"

#include "kernels/blocks.inc"

#include "kernels/k_scales.inc"

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

/* Four words a block that hold nibbles, the low ones first: values 0..15 are those of the lower bytes. */
INLINE void put_nibbles(__m512i word[4], __m512i bytes) {
    const __m512i mask = _mm512_set1_epi16(15);
    word[0] = _mm512_and_si512(bytes, mask);
    word[1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
    word[2] = _mm512_and_si512(_mm512_srli_epi16(bytes, 8), mask);
    word[3] = _mm512_srli_epi16(bytes, 12);
}

/* The fifth bits of Q5_0: bit j of 32 is that of value j. */
INLINE void put_fifth_bits(__m512i word[4], const uint8_t *const at[4]) {
    const __m512i head = side_by_side(at, 0), sixteen = _mm512_set1_epi16(16);
    const __m512i even = _mm512_broadcast_i32x4(_mm_setr_epi16(1, 4, 16, 64, 256, 1024, 4096, 16384));
    const __m512i odd = _mm512_slli_epi16(even, 1);
    const __m512i lower = _mm512_shuffle_epi8(head, _mm512_set1_epi16(0x0302));
    const __m512i upper = _mm512_shuffle_epi8(head, _mm512_set1_epi16(0x0504));
    word[0] = _mm512_or_si512(word[0], _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(lower, even), sixteen));
    word[1] = _mm512_or_si512(word[1], _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(upper, even), sixteen));
    word[2] = _mm512_or_si512(word[2], _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(lower, odd), sixteen));
    word[3] = _mm512_or_si512(word[3], _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(upper, odd), sixteen));
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
    put_nibbles(w.word, side_by_side(at, dtype == JPO_Q4_0 ? 2 : dtype == JPO_Q4_1 ? 4 : 6));
    if (dtype == JPO_Q5_0) put_fifth_bits(w.word, at);
    w.m = dtype == JPO_Q4_1 ? spread(halves, 1) : _mm512_mul_ps(w.d, _mm512_set1_ps(dtype == JPO_Q4_0 ? -8 : -16));
    return w;
}

/* ---- K blocks: two quads each ---- */

/* Values 0..15 (which = 0) or 16..31 of each of four pieces that share 64 bytes of nibbles: Q4_K and Q5_K: pieces 0 and
 * 1 in the first 32 bytes, 2 and 3 in the others; Q6_K: pieces 0 and 2 in the first, 1 and 3 in the others. */
INLINE __m512i share_nibbles(const jpo_dtype dtype, __m512i bytes, const int which) {
    if (dtype == JPO_Q6_K) {
        const __m512i both =
            which ? _mm512_shuffle_i64x2(bytes, bytes, 0xdd) : _mm512_shuffle_i64x2(bytes, bytes, 0x88);
        return _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
    }
    const __m512i both = which ? _mm512_shuffle_i64x2(bytes, bytes, 0xf5) : _mm512_shuffle_i64x2(bytes, bytes, 0xa0);
    return _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
}

/* 16 bytes four times, shifted to the right by `first`, first + step, ... */
INLINE __m512i share_bits(const uint8_t *bytes, int first, int step) {
    const __m512i shift = _mm512_setr_epi64(0, 0, step, step, 2 * step, 2 * step, 3 * step, 3 * step);
    return _mm512_srlv_epi64(_mm512_broadcast_i32x4(load16(bytes)), _mm512_add_epi64(shift, _mm512_set1_epi64(first)));
}

/* Words of Q6_K, times their scales. */
INLINE void take_q6(__m512i word[4], const uint8_t *block, int half) {
    const __m512i low = _mm512_loadu_si512(block + 64 * half), nibble = _mm512_set1_epi8(15);
    const __m512i two = _mm512_set1_epi8(48), zero = _mm512_set1_epi8(32);
    const __m128i scales = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(block + 192 + 8 * half)));
    const __m512i all = _mm512_broadcast_i32x4(scales);
    const __m512i pair =
        _mm512_setr_epi64(0x0100010001000100, 0x0100010001000100, 0x0504050405040504, 0x0504050405040504,
                          0x0908090809080908, 0x0908090809080908, 0x0d0c0d0c0d0c0d0c, 0x0d0c0d0c0d0c0d0c);
    for (int which = 0; which < 2; which++) {
        const __m512i upper = _mm512_slli_epi16(share_bits(block + 128 + 32 * half + 16 * which, 0, 2), 4);
        const __m512i q = _mm512_sub_epi8(_mm512_or_si512(_mm512_and_si512(share_nibbles(JPO_Q6_K, low, which), nibble),
                                                          _mm512_and_si512(upper, two)),
                                          zero);
        const __m512i scale = _mm512_shuffle_epi8(all, _mm512_add_epi8(pair, _mm512_set1_epi8((char)(2 * which))));
        word[which] = _mm512_mullo_epi16(_mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8), scale);
        word[2 + which] = _mm512_mullo_epi16(_mm512_srai_epi16(q, 8), scale);
    }
}

/* Half a K block; scales (2, 8): factors and constants of its eight pieces. */
INLINE block_quad take_k_quad(const jpo_dtype dtype, const uint8_t *block, int half, const float scales[2][8]) {
    block_quad w;
    if (dtype == JPO_Q6_K) {
        take_q6(w.word, block, half);
        w.d = w.m = _mm512_set1_ps(scales[0][0]);
        return w;
    }
    const __m512i mask = _mm512_set1_epi16(15), bit = _mm512_set1_epi16(16);
    const __m512i bytes = _mm512_loadu_si512(block + (dtype == JPO_Q4_K ? 16 : 48) + 64 * half);
    for (int which = 0; which < 2; which++) {
        const __m512i nibbles = share_nibbles(dtype, bytes, which);
        w.word[which] = _mm512_and_si512(nibbles, mask);
        w.word[2 + which] = _mm512_and_si512(_mm512_srli_epi16(nibbles, 8), mask);
        if (dtype == JPO_Q4_K) continue;
        const __m512i fifth = share_bits(block + 16 + 16 * which, 4 * half, 1);
        w.word[which] = _mm512_or_si512(w.word[which], _mm512_and_si512(_mm512_slli_epi16(fifth, 4), bit));
        w.word[2 + which] = _mm512_or_si512(w.word[2 + which], _mm512_and_si512(_mm512_srli_epi16(fifth, 4), bit));
    }
    const __m512i four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    w.d = _mm512_permutexvar_ps(four, _mm512_castps128_ps512(_mm_loadu_ps(scales[0] + 4 * half)));
    w.m = _mm512_permutexvar_ps(four, _mm512_castps128_ps512(_mm_loadu_ps(scales[1] + 4 * half)));
    return w;
}

INLINE __m512 add_quad(const jpo_dtype dtype, __m512 sum, const block_quad *w, const int16_t *q, const float *scale,
                       const float *total) {
    __m512i part = _mm512_dpwssd_epi32(_mm512_setzero_si512(), w->word[0], _mm512_loadu_si512(q));
    part = _mm512_dpwssd_epi32(part, w->word[1], _mm512_loadu_si512(q + 32));
    part = _mm512_dpwssd_epi32(part, w->word[2], _mm512_loadu_si512(q + 64));
    part = _mm512_dpwssd_epi32(part, w->word[3], _mm512_loadu_si512(q + 96));
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_mul_ps(w->d, _mm512_loadu_ps(scale)), sum);
    return dtype == JPO_Q8_0 || dtype == JPO_Q6_K ? sum : _mm512_fmadd_ps(w->m, _mm512_loadu_ps(total), sum);
}

/* A quad of a row. */
INLINE block_quad quad_at(const jpo_dtype dtype, const uint8_t *row, int64_t quad, int64_t blocks, float scales[2][8]) {
    const int64_t bytes = (int64_t)jpo_dtype_block_bytes(dtype);
    if (jpo_dtype_block(dtype) > JPO_GEMM_BLOCK) {
        const uint8_t *block = row + quad / 2 * bytes;
        if (quad % 2 == 0) k_scales(dtype, scales[0], scales[1], block);
        return take_k_quad(dtype, block, (int)(quad % 2), (const float(*)[8])scales);
    }
    const int64_t left = blocks - QUAD * quad - 1; /* past the end the last block again: beside zeros of x */
    row += QUAD * quad * bytes;
    const uint8_t *const at[4] = {row, row + (left > 0 ? 1 : left) * bytes, row + (left > 1 ? 2 : left) * bytes,
                                  row + (left > 2 ? 3 : left) * bytes};
    return take_quad(dtype, at);
}

/* y (m) = or += x times one row of W, so that W is read from one end to the other; what lies AHEAD is fetched. */
INLINE void tile(const jpo_dtype dtype, const int m, float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t first,
                 const uint8_t *row, int64_t blocks, bool accumulate) {
    const int64_t quads = (blocks + QUAD - 1) / QUAD;
    const int64_t bytes = WORDS * (int64_t)jpo_dtype_block_bytes(dtype) / jpo_dtype_block(dtype); /* of a quad */
    __m512 sum[GROUP];
    float scales[2][8] = {{0}};
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t quad = 0; quad < quads; quad++) {
        const block_quad w = quad_at(dtype, row, quad, blocks, scales);
        for (int line = 0; line < bytes; line += 64)
            _mm_prefetch((const char *)row + quad * bytes + AHEAD + line, _MM_HINT_T0);
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
