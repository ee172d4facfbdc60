/* Packed products with AVX2: float32 tiles of 6 x 16, dot products for a small batch, and int16 by vpmaddwd, which
 * multiplies pairs at twice the float32 rate. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/gemm_int16.h"
#include "kernels/integers.h"
#include "kernels/lanes_x86.inc"
#include "kernels/panels.inc"

#include "kernels/blocks_x86.inc"
#include "kernels/k_scales.inc"

#include "kernels/k_blocks.inc"

#define VEC __m256
#define LANES 8
#define TILE_ROWS 6
#define VEC_ZERO() _mm256_setzero_ps()
#define VEC_LOAD(p) _mm256_loadu_ps(p)
#define VEC_STORE(p, v) _mm256_storeu_ps(p, v)
#define VEC_SET1(x) _mm256_set1_ps(x)
#define VEC_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define VEC_ADD(a, b) _mm256_add_ps(a, b)
#include "kernels/gemm_float32.inc"

enum { PANEL = 32, HALF = 16, BLOCK = JPO_GEMM_BLOCK, PAIRS = BLOCK / 2 };
#define INLINE static inline __attribute__((always_inline))

/* ---- decoding ---- */

typedef struct {
    __m256 v[4]; /* 32 values in their order */
} wide32;

/* The float16 at p, behind which six bytes more can be read. */
INLINE __m256 half_scalar(const uint8_t *p) {
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p)));
}

/* Two halves side by side, each in all lanes. */
INLINE void half_pair(__m256 *first, __m256 *second, const uint8_t *p) {
    uint32_t bits;
    memcpy(&bits, p, 4);
    const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128((int)bits));
    const __m256 pair = _mm256_castpd_ps(_mm256_broadcastsd_pd(_mm_castps_pd(both)));
    *first = _mm256_moveldup_ps(pair), *second = _mm256_movehdup_ps(pair);
}

/* The integers of a 4-bit block: low nibbles are values 0..15, high ones 16..31. A shuffle puts bytes at the foot of
 * the lanes' words. */
INLINE wide32 decode_nibbles(const uint8_t *bytes) {
    const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes)),
                  mask = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(all, mask), high = _mm256_and_si256(_mm256_srli_epi16(all, 4), mask);
#define PLACES(a) (int)(0x80808000u + (a))
    const __m256i first =
        _mm256_setr_epi32(PLACES(0), PLACES(1), PLACES(2), PLACES(3), PLACES(4), PLACES(5), PLACES(6), PLACES(7));
    const __m256i second =
        _mm256_setr_epi32(PLACES(8), PLACES(9), PLACES(10), PLACES(11), PLACES(12), PLACES(13), PLACES(14), PLACES(15));
#undef PLACES
    return (wide32){
        {_mm256_cvtepi32_ps(_mm256_shuffle_epi8(low, first)), _mm256_cvtepi32_ps(_mm256_shuffle_epi8(low, second)),
         _mm256_cvtepi32_ps(_mm256_shuffle_epi8(high, first)), _mm256_cvtepi32_ps(_mm256_shuffle_epi8(high, second))}};
}

/* 32 values of a row that is stored by pieces (kernels/blocks.inc). */
INLINE wide32 decode_piece(const jpo_dtype dtype, const uint8_t *row, int64_t column) {
    wide32 x;
    int part;
    float d[2], m[2];
    const uint8_t *block = piece_block(dtype, row, column, &part);
    piece_scales(dtype, block, part, d, m);
    const __m256i q = piece_integers(dtype, block, part);
    const __m128i quarter[2] = {_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)};
    for (int i = 0; i < 4; i++) {
        const __m128i bytes = i % 2 ? _mm_unpackhi_epi64(quarter[i / 2], quarter[i / 2]) : quarter[i / 2];
        const __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        x.v[i] = _mm256_fmadd_ps(value, _mm256_set1_ps(d[i / 2]), _mm256_set1_ps(m[i / 2]));
    }
    return x;
}

/* Values 32 part.. of a run. */
INLINE wide32 k_part(const jpo_dtype dtype, const k_block *run, int part) {
    wide32 x;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const int place = k_place(dtype, 2 * part + i / 2);
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(run->q + 32 * part + 8 * i));
        x.v[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_set1_ps(run->d[place]),
                                 _mm256_set1_ps(run->m[place]));
    }
    return x;
}

__attribute__((noinline, unused)) static wide32 decode_rare(jpo_dtype dtype, const uint8_t *row, int64_t column) {
    switch (dtype) {
    case JPO_Q5_1:
        return decode_piece(JPO_Q5_1, row, column);
    case JPO_Q2_K:
        return decode_piece(JPO_Q2_K, row, column);
    case JPO_Q3_K:
        return decode_piece(JPO_Q3_K, row, column);
    case JPO_IQ4_NL:
        return decode_piece(JPO_IQ4_NL, row, column);
    default:
        return decode_piece(JPO_IQ4_XS, row, column);
    }
}

/* `count` (1..32) values of a row from `column` on, zeros behind them. Quantized forms: column a multiple of 32,
 * count 32. */
INLINE wide32 decode32(const jpo_dtype dtype, const uint8_t *row, int64_t column, int count) {
    wide32 x;
    __m256 d, m;
    const uint8_t *p = row;
    if (count < 32) {
        float values[32] = {0};
        widen_row(values, dtype, row, column, count);
        for (int i = 0; i < 4; i++) x.v[i] = _mm256_loadu_ps(values + 8 * i);
        return x;
    }
    switch (dtype) {
    case JPO_F32:
        for (int i = 0; i < 4; i++) x.v[i] = _mm256_loadu_ps((const float *)row + column + 8 * i);
        return x;
    case JPO_BF16:
        for (int i = 0; i < 4; i++) {
            __m128i bits = _mm_loadu_si128((const __m128i *)(p + 2 * column + 16 * i));
            x.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
        }
        return x;
    case JPO_F16:
        for (int i = 0; i < 4; i++)
            x.v[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 2 * column + 16 * i)));
        return x;
    case JPO_Q8_0:
        p += column / 32 * 34;
        for (int i = 0; i < 4; i++) {
            __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 2 + 8 * i)));
            x.v[i] = _mm256_mul_ps(half_scalar(p), _mm256_cvtepi32_ps(q));
        }
        return x;
    case JPO_Q4_0:
        p += column / 32 * 18;
        x = decode_nibbles(p + 2);
        for (int i = 0; i < 4; i++) x.v[i] = _mm256_mul_ps(half_scalar(p), _mm256_sub_ps(x.v[i], _mm256_set1_ps(8)));
        return x;
    case JPO_Q4_1: /* d q is exact, so that the fused form rounds once, as the sum of the definition does */
        p += column / 32 * 20;
        x = decode_nibbles(p + 4);
        half_pair(&d, &m, p);
        for (int i = 0; i < 4; i++) x.v[i] = _mm256_fmadd_ps(d, x.v[i], m);
        return x;
    default:
        return rarely_stored(dtype) ? decode_rare(dtype, row, column) : decode_piece(dtype, row, column);
    }
}

INLINE void put32(float *out, wide32 x) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(out + 8 * i, x.v[i]);
}

static const uint8_t *source_row(const jpo_gemm_source *s, size_t stride, int64_t row) {
    return (const uint8_t *)s->data + (size_t)(s->row0 + row) * stride;
}
INLINE int left(int64_t total, int64_t done) { return total - done < 32 ? (int)(total - done) : 32; }

/* The runs of kernels/k_blocks.inc among them, from the first value on: how many values they are. */
INLINE int64_t widen_runs(const jpo_dtype dtype, float *out, const uint8_t *row, int64_t column0, int64_t count) {
    const int values = k_signs_zero(dtype) ? k_values(dtype) : 0;
    int64_t i = 0;
    if (!values || column0 % jpo_dtype_block(dtype)) return 0;
    for (; i + values <= count; i += values) {
        k_block run;
        k_read(dtype, &run, row + jpo_dtype_row_bytes(dtype, column0 + i));
        for (int part = 0; part < values / 32; part++) put32(out + i + 32 * part, k_part(dtype, &run, part));
    }
    return i;
}

INLINE void widen_of(const jpo_dtype dtype, float *out, const void *row, int64_t column0, int64_t count) {
    int64_t i = widen_runs(dtype, out, row, column0, count);
    for (; i + 32 <= count; i += 32) put32(out + i, decode32(dtype, row, column0 + i, 32));
    if (i < count) widen_row(out + i, dtype, row, column0 + i, count - i);
}
static void widen(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count) {
#define CALL(dtype) widen_of(dtype, out, row, column0, count)
    JPO_FOR_DTYPE(dtype, CALL)
#undef CALL
}

/* out (8, 8; ldo) = the transpose of in (8, 8; ldi). */
INLINE void transpose8(float *out, int64_t ldo, const float *in, int64_t ldi) {
    __m256 r[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(in + i * ldi);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) { /* r[4 i + j]: column j and j + 4 of rows 4 i .. 4 i + 3 */
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        _mm256_storeu_ps(out + j * ldo, _mm256_permute2f128_ps(r[j], r[4 + j], 0x20));
        _mm256_storeu_ps(out + (j + 4) * ldo, _mm256_permute2f128_ps(r[j], r[4 + j], 0x31));
    }
}

static void transpose(float *out, int64_t ldo, const float *in, int64_t ldi, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += 8)
        for (int64_t j = 0; j < columns; j += 8) {
            if (rows - i >= 8 && columns - j >= 8) {
                transpose8(out + i * ldo + j, ldo, in + j * ldi + i, ldi);
                continue;
            }
            for (int64_t r = i; r < rows && r < i + 8; r++)
                for (int64_t c = j; c < columns && c < j + 8; c++) out[r * ldo + c] = in[c * ldi + r];
        }
}

/* ---- a small batch: dot products along the rows of W ---- */

#define VEC_SUM(v) sum_across_256(v)
#define DOT_WIDEN widen
#define DOT_W 2
#define DOT_SUMS(out, v) ((out)[0] = VEC_SUM((v)[0]), (out)[1] = VEC_SUM((v)[1]))
#define DOT_KEEP(v) __asm__("" : "+x"(v)) /* in a register: it serves several products */
#include "kernels/gemm_dot.inc"

#define WIDE_PART(w, i) ((w).v[i])
#define DIRECT_M 2
#include "kernels/gemm_direct.inc"

/* ---- float32: a panel is two halves, (2, depth, 16), each of which fits the first cache ---- */

INLINE void forward_float32_of(const jpo_dtype dtype, float *panel, const jpo_gemm_source *s) {
    const size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    float rows[PANEL][32] __attribute__((aligned(64))), transposed[32][HALF];
    memset(rows, 0, sizeof rows);
    for (int64_t k = 0; k < s->columns; k += 32) {
        int count = left(s->columns, k);
        for (int r = 0; r < s->rows; r++)
            put32(rows[r], decode32(dtype, source_row(s, stride, r), s->column0 + k, count));
        for (int half = 0; half < 2; half++) {
            float *to = panel + half * s->columns * HALF + k * HALF, *out = count == 32 ? to : transposed[0];
            for (int r = 0; r < HALF; r += 8)
                for (int d = 0; d < 32; d += 8) transpose8(out + d * HALF + r, HALF, rows[half * HALF + r] + d, 32);
            if (count < 32) memcpy(to, transposed, (size_t)count * sizeof transposed[0]);
        }
    }
}

INLINE void backward_float32_of(const jpo_dtype dtype, float *panel, const jpo_gemm_source *s) {
    const size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    float *second = panel + s->rows * HALF;
    for (int64_t r = 0; r < s->rows; r++, panel += HALF, second += HALF) {
        wide32 x = decode32(dtype, source_row(s, stride, r), s->column0, (int)s->columns);
        _mm256_storeu_ps(panel, x.v[0]), _mm256_storeu_ps(panel + 8, x.v[1]);
        _mm256_storeu_ps(second, x.v[2]), _mm256_storeu_ps(second + 8, x.v[3]);
    }
}

static void forward_float32(void *panel, const jpo_gemm_source *s) {
#define CALL(dtype) forward_float32_of(dtype, panel, s)
    JPO_FOR_DTYPE(s->dtype, CALL)
#undef CALL
}
static void backward_float32(void *panel, const jpo_gemm_source *s) {
#define CALL(dtype) backward_float32_of(dtype, panel, s)
    JPO_FOR_DTYPE(s->dtype, CALL)
#undef CALL
}

static void tile_float32(float *c, int64_t ldc, int64_t row0, const jpo_gemm_term *t, int terms, int rows, int columns,
                         bool accumulate) {
    (void)terms;
    const float *a = t->rows->x + row0 * t->rows->ldx + t->d0;
    for (int half = 0; half * HALF < columns; half++) {
        int width = columns - half * HALF < HALF ? columns - half * HALF : HALF;
        float32_tile(c + half * HALF, ldc, a, t->rows->ldx, (const float *)t->panel + half * t->depth * HALF, t->depth,
                     rows, width, accumulate);
    }
}

/* ---- int16 ---- */

/* A panel is two halves; each holds, per block of 32 along the depth, (16, 16) pairs, (16) scales and, for Q4_1
 * forward, (16) constants. */
enum { HALF_BLOCK = (PAIRS + 1) * HALF };

INLINE __m256i magnitude(__m256 x) { /* integers order like magnitudes, NaN above infinity */
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

/* jpo_int16_scale of eight blocks whose largest magnitudes are `top`. */
INLINE __m256 block_scale(__m256i top, float most, __m256 *inverse) {
    const __m256i sound = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7f800000), top);
    const __m256 used =
        _mm256_castsi256_ps(_mm256_and_si256(sound, _mm256_cmpgt_epi32(top, _mm256_set1_epi32(0x0d7fffff))));
    const __m256 limit = _mm256_set1_ps(most), value = _mm256_castsi256_ps(top); /* used: from 2^-100 on */
    *inverse = _mm256_and_ps(used, _mm256_div_ps(limit, value));
    return _mm256_blendv_ps(_mm256_set1_ps(__builtin_nanf("")), _mm256_and_ps(used, _mm256_div_ps(value, limit)),
                            _mm256_castsi256_ps(sound));
}

/* Rounded to nearest even. Beside an infinity or NaN, inverse is zero: what comes out is any integer, times a scale of
 * NaN. */
INLINE __m256i quantize(__m256 x, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)); }

/* Eight blocks, each along a row: pairs (8, 16; ldp) and scale (8) = rows (8, 32). One division serves eight. */
INLINE void quantize_blocks(uint32_t *pairs, int64_t ldp, float *scale, const float *rows /* (8, 32) */, float most) {
    float part[8][8], transposed[8][8], factor[8];
    for (int r = 0; r < 8; r++) {
        __m256i top = magnitude(_mm256_loadu_ps(rows + r * BLOCK));
        for (int i = 8; i < BLOCK; i += 8)
            top = _mm256_max_epu32(top, magnitude(_mm256_loadu_ps(rows + r * BLOCK + i)));
        _mm256_storeu_ps(part[r], _mm256_castsi256_ps(top));
    }
    transpose8(transposed[0], 8, part[0], 8);
    __m256i top = _mm256_loadu_si256((const __m256i *)transposed[0]);
    for (int i = 1; i < 8; i++) top = _mm256_max_epu32(top, _mm256_loadu_si256((const __m256i *)transposed[i]));
    __m256 inverse;
    _mm256_storeu_ps(scale, block_scale(top, most, &inverse));
    _mm256_storeu_ps(factor, inverse);
    for (int r = 0; r < 8; r++) {
        const __m256 f = _mm256_set1_ps(factor[r]);
        for (int i = 0; i < 2; i++) {
            const float *x = rows + r * BLOCK + 16 * i;
            __m256i mixed = _mm256_packs_epi32(quantize(_mm256_loadu_ps(x), f), quantize(_mm256_loadu_ps(x + 8), f));
            _mm256_storeu_si256((__m256i *)(pairs + r * ldp + 8 * i), _mm256_permute4x64_epi64(mixed, 0xd8));
        }
    }
}

/* total (blocks) = scale times the sum of a block's integers. */
INLINE void add_up(float *total, const float *scale, const uint32_t *pairs, int64_t blocks) {
    const __m256i one = _mm256_set1_epi16(1);
    for (int64_t i = 0; i < blocks; i++, pairs += PAIRS) {
        __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)pairs), one),
                                        _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)pairs + 1), one));
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
        total[i] = scale[i] * (float)_mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
    }
}

static void quantize_row(const jpo_int16_rows *to, const float *x, int64_t count, float most) {
    const int64_t blocks = (count + BLOCK - 1) / BLOCK, whole = count / (8 * BLOCK) * 8;
    for (int64_t i = 0; i < whole; i += 8)
        quantize_blocks(to->pairs + i * PAIRS, PAIRS, to->scale + i, x + i * BLOCK, most);
    if (whole < blocks) {
        float rows[8 * BLOCK] = {0}, scales[8];
        uint32_t pairs[8 * PAIRS];
        memcpy(rows, x + whole * BLOCK, (size_t)(count - whole * BLOCK) * sizeof(float));
        quantize_blocks(pairs, PAIRS, scales, rows, most);
        memcpy(to->pairs + whole * PAIRS, pairs, (size_t)(blocks - whole) * PAIRS * sizeof pairs[0]);
        memcpy(to->scale + whole, scales, (size_t)(blocks - whole) * sizeof scales[0]);
    }
    if (to->total) add_up(to->total, to->scale, to->pairs, blocks);
}

static void convert_int16(const jpo_gemm_rows *rows, int64_t row0, int64_t count) {
    for (int64_t i = row0; i < row0 + count; i++) {
        const jpo_int16_rows to = jpo_int16_rows_at(rows, i, 0);
        quantize_row(&to, rows->x + i * rows->ldx, rows->depth, jpo_int16_rows_max(rows));
    }
}

/* A stored block as 16 pairs, scale and constant. */
INLINE void read_stored(const jpo_dtype dtype, uint32_t *pairs, float *scale, float *constant, const uint8_t *block) {
    __m256i low, high;
    *scale = half_at(block), *constant = dtype == JPO_Q4_1 ? half_at(block + 2) : 0;
    if (dtype == JPO_Q8_0) {
        low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(block + 2)));
        high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(block + 18)));
    } else {
        const __m128i all = _mm_loadu_si128((const __m128i *)(block + (dtype == JPO_Q4_1 ? 4 : 2))),
                      mask = _mm_set1_epi8(15);
        low = _mm256_cvtepu8_epi16(_mm_and_si128(all, mask));
        high = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(all, 4), mask));
        if (dtype == JPO_Q4_0) {
            low = _mm256_sub_epi16(low, _mm256_set1_epi16(8));
            high = _mm256_sub_epi16(high, _mm256_set1_epi16(8));
        }
    }
    _mm256_storeu_si256((__m256i *)pairs, low), _mm256_storeu_si256((__m256i *)pairs + 1, high);
}

INLINE void forward_int16_of(const jpo_dtype dtype, uint32_t *panel, const jpo_gemm_source *s) {
    const size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    const int64_t block_bytes = (int64_t)jpo_dtype_block_bytes(dtype); /* of stored integers */
    const int lines = jpo_gemm_int16_lines(dtype, false);
    const int64_t half_size = (s->columns + BLOCK - 1) / BLOCK * lines * HALF;
    float rows[8][BLOCK], constants[8];
    uint32_t pairs[8][PAIRS];
    for (int64_t k = 0; k < s->columns; k += BLOCK, panel += lines * HALF)
        for (int first = 0; first < PANEL; first += 8) {
            uint32_t *out = panel + first / HALF * half_size + first % HALF;
            float *scales = (float *)out + PAIRS * HALF;
            if (jpo_gemm_stored(dtype, false)) {
                memset(pairs, 0, sizeof pairs), memset(constants, 0, sizeof constants),
                    memset(scales, 0, sizeof constants);
                for (int r = 0; r < 8 && first + r < s->rows; r++)
                    read_stored(dtype, pairs[r], scales + r, constants + r,
                                source_row(s, stride, first + r) + (s->column0 + k) / BLOCK * block_bytes);
                if (lines > PAIRS + 1) memcpy(scales + HALF, constants, sizeof constants);
            } else {
                for (int r = 0; r < 8; r++)
                    if (first + r < s->rows)
                        put32(rows[r],
                              decode32(dtype, source_row(s, stride, first + r), s->column0 + k, left(s->columns, k)));
                    else
                        memset(rows[r], 0, sizeof rows[r]);
                quantize_blocks(pairs[0], PAIRS, scales, rows[0], JPO_GEMM_PANEL_MAX);
            }
            for (int p = 0; p < PAIRS; p += 8)
                transpose8((float *)out + p * HALF, HALF, (const float *)pairs[0] + p, PAIRS);
        }
}

/* A block is 32 rows of one column: magnitudes, scales and rounding run down the columns. */
INLINE void backward_int16_of(const jpo_dtype dtype, uint32_t *panel, const jpo_gemm_source *s) {
    const size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    const int64_t half_size = (s->rows + BLOCK - 1) / BLOCK * HALF_BLOCK;
    float rows[BLOCK][PANEL];
    for (int64_t r0 = 0; r0 < s->rows; r0 += BLOCK, panel += HALF_BLOCK) {
        int count = left(s->rows, r0);
        for (int r = 0; r < count; r++)
            put32(rows[r], decode32(dtype, source_row(s, stride, r0 + r), s->column0, (int)s->columns));
        if (count < BLOCK) memset(rows[count], 0, (size_t)(BLOCK - count) * sizeof rows[0]);
        for (int c = 0; c < PANEL; c += 8) {
            uint32_t *out = panel + c / HALF * half_size + c % HALF;
            __m256i top = magnitude(_mm256_loadu_ps(rows[0] + c));
            for (int r = 1; r < BLOCK; r++) top = _mm256_max_epu32(top, magnitude(_mm256_loadu_ps(rows[r] + c)));
            __m256 inverse;
            _mm256_storeu_ps((float *)out + PAIRS * HALF, block_scale(top, JPO_GEMM_PANEL_MAX, &inverse));
            for (int r = 0; r < BLOCK; r += 2) {
                __m256i even = quantize(_mm256_loadu_ps(rows[r] + c), inverse);
                __m256i odd = quantize(_mm256_loadu_ps(rows[r + 1] + c), inverse);
                _mm256_storeu_si256((__m256i *)(out + r / 2 * HALF),
                                    _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa));
            }
        }
    }
}

static void forward_int16(void *panel, const jpo_gemm_source *s) {
#define CALL(dtype) forward_int16_of(dtype, panel, s)
    JPO_FOR_DTYPE(s->dtype, CALL)
#undef CALL
}
static void backward_int16(void *panel, const jpo_gemm_source *s) {
#define CALL(dtype) backward_int16_of(dtype, panel, s)
    JPO_FOR_DTYPE(s->dtype, CALL)
#undef CALL
}

enum { INT16_ROWS = 4 };

/* sum += the products of pairs. In assembly, as compilers gather the products first and then spill or copy the sums:
 * that costs a quarter of the speed. */
INLINE void multiply_add(__m256i *sum, __m256i x, __m256i b) {
    __m256i product;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(product) : "x"(x), "x"(b));
}

/* sum (rows, 2 vectors) of half a panel: 8 integer sums stay in registers, the float sums pass through memory once in a
 * block. */
static inline __attribute__((always_inline)) void half_tile(const int rows, const bool constants,
                                                            __m256 sum[INT16_ROWS][2], const jpo_int16_rows *a,
                                                            const uint32_t *b, int64_t blocks) {
    UNROLLED for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t block = 0; block < blocks; block++, b += HALF) {
        __m256i part[INT16_ROWS][2];
        UNROLLED for (int r = 0; r < rows; r++) part[r][0] = part[r][1] = _mm256_setzero_si256();
        for (int p = 0; p < PAIRS; p++, b += HALF) {
            __m256i b0 = _mm256_loadu_si256((const __m256i *)b), b1 = _mm256_loadu_si256((const __m256i *)b + 1);
            UNROLLED for (int r = 0; r < rows; r++) {
                __m256i x = _mm256_set1_epi32((int)a->pairs[r * a->ldp + block * PAIRS + p]);
                multiply_add(&part[r][0], x, b0);
                multiply_add(&part[r][1], x, b1);
            }
        }
        __m256 s0 = _mm256_loadu_ps((const float *)b), s1 = _mm256_loadu_ps((const float *)b + 8);
        UNROLLED for (int r = 0; r < rows; r++) {
            __m256 x = _mm256_set1_ps(a->scale[r * a->lds + block]);
            sum[r][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r][0]), _mm256_mul_ps(x, s0), sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r][1]), _mm256_mul_ps(x, s1), sum[r][1]);
        }
        if (!constants) continue;
        b += HALF;
        s0 = _mm256_loadu_ps((const float *)b), s1 = _mm256_loadu_ps((const float *)b + 8);
        UNROLLED for (int r = 0; r < rows; r++) {
            __m256 x = _mm256_set1_ps(a->total[r * a->lds + block]);
            sum[r][0] = _mm256_fmadd_ps(s0, x, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(s1, x, sum[r][1]);
        }
    }
}

static void put_half(float *c, int64_t ldc, __m256 sum[INT16_ROWS][2], int rows, int columns, bool accumulate) {
    for (int r = 0; r < rows; r++, c += ldc) {
        float edge[HALF];
        _mm256_storeu_ps(edge, sum[r][0]), _mm256_storeu_ps(edge + 8, sum[r][1]);
        for (int j = 0; j < columns && j < HALF; j++) c[j] = accumulate ? c[j] + edge[j] : edge[j];
    }
}

#define HALF_TILE(R, totals)                     \
    case R + (totals ? INT16_ROWS : 0):          \
        half_tile(R, totals, sum, a, b, blocks); \
        break;
#define HALF_TILES(totals) HALF_TILE(1, totals) HALF_TILE(2, totals) HALF_TILE(3, totals) HALF_TILE(4, totals)

static void tile_int16(float *c, int64_t ldc, int64_t row0, const jpo_gemm_term *t, int terms, int rows, int columns,
                       bool accumulate) {
    (void)terms;
    const jpo_int16_rows at = jpo_int16_rows_at(t->rows, row0, t->d0 / BLOCK), *a = &at;
    const int64_t blocks = jpo_gemm_blocks(t->depth);
    __m256 sum[INT16_ROWS][2];
    for (int half = 0; half * HALF < columns; half++) {
        const uint32_t *b = (const uint32_t *)t->panel + half * blocks * (PAIRS + 1 + (a->total != NULL)) * HALF;
        switch (rows + (a->total ? INT16_ROWS : 0)) { HALF_TILES(false) HALF_TILES(true) }
        put_half(c + half * HALF, ldc, sum, rows, columns - half * HALF, accumulate);
    }
}

static size_t float32_panel_bytes(jpo_dtype dtype, bool backward, int64_t depth) {
    (void)dtype, (void)backward;
    return (size_t)depth * PANEL * 4;
}

const jpo_gemm_kernel jpo_gemm_avx2_float32 = {
    .name = "avx2_float32",
    .compute = JPO_COMPUTE_FLOAT32,
    .needs = JPO_CPU_AVX2,
    .panel = PANEL,
    .rows = TILE_ROWS,
    .align = 1,
    .range = 576,
    .panel_bytes = float32_panel_bytes,
    .pack = {forward_float32, backward_float32},
    .tile = tile_float32,
};

const jpo_integer_kernel jpo_integers_avx2 = {24, jpo_integers_quantize_avx2, jpo_integers_dot_avx2};

const jpo_gemm_kernel jpo_gemm_avx2_int16 = {
    .name = "avx2_int16",
    .compute = JPO_COMPUTE_INT16,
    .needs = JPO_CPU_AVX2,
    .panel = PANEL,
    .rows = INT16_ROWS,
    .align = 1,
    .range = 576,
    .small_rows = 128,
    .small_stored_rows = 128,
    .integers = &jpo_integers_avx2,
    .panel_bytes = jpo_int16_panel_bytes,
    .rows_bytes = jpo_int16_rows_bytes,
    .convert = convert_int16,
    .pack = {forward_int16, backward_int16},
    .tile = tile_int16,
};

const jpo_gemv_kernel jpo_gemv_avx2 = {
    .needs = JPO_CPU_AVX2, .widen = widen, .transpose = transpose, .rows = 16, .dot = small_batch};
#endif
