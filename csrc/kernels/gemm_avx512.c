/* Packed products with AVX-512 (F, BW, DQ, VL): float32 tiles of 12 x 32, packing for every compute type, and the dot
 * kernel for a small batch. The tiles that need VNNI or BF16 stand in files of their own. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/gemm_avx512.h"
#include "kernels/gemm_int16.h"
#include "kernels/lanes_x86.inc"

#define VEC __m512
#define LANES 16
#define TILE_ROWS 12
#define VEC_ZERO() _mm512_setzero_ps()
#define VEC_LOAD(p) _mm512_loadu_ps(p)
#define VEC_STORE(p, v) _mm512_storeu_ps(p, v)
#define VEC_SET1(x) _mm512_set1_ps(x)
#define VEC_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define VEC_ADD(a, b) _mm512_add_ps(a, b)
#include "kernels/gemm_float32.inc"

#include "kernels/decode_avx512.inc"

/* The runs of kernels/k_blocks.inc among them, from the first value on: how many values they are. */
INLINE int64_t widen_runs(const jpo_dtype dtype, float *out, const uint8_t *row, int64_t column0, int64_t count) {
    const int values = k_signs_zero(dtype) ? k_values(dtype) : 0;
    int64_t i = 0;
    if (!values || column0 % jpo_dtype_block(dtype)) return 0;
    for (; i + values <= count; i += values) {
        k_block run;
        k_read(dtype, &run, row + jpo_dtype_row_bytes(dtype, column0 + i));
        for (int part = 0; part < values / 32; part++) {
            const wide32 x = k_part(dtype, &run, part);
            _mm512_storeu_ps(out + i + 32 * part, x.low), _mm512_storeu_ps(out + i + 32 * part + 16, x.high);
        }
    }
    return i;
}

static void widen(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count) {
    int64_t i = 0;
    wide32 x;
#define CALL(dtype)                                                               \
    i = widen_runs(dtype, out, row, column0, count);                              \
    for (; i + 32 <= count; i += 32) {                                            \
        x = decode32(dtype, row, column0 + i, 32);                                \
        _mm512_storeu_ps(out + i, x.low), _mm512_storeu_ps(out + i + 16, x.high); \
    }                                                                             \
    if (i < count) x = decode32(dtype, row, column0 + i, left(count, i))
    JPO_FOR_DTYPE(dtype, CALL)
#undef CALL
    if (i == count) return;
    _mm512_mask_storeu_ps(out + i, (__mmask16)((1u << (count - i < 16 ? count - i : 16)) - 1), x.low);
    if (count - i > 16) _mm512_mask_storeu_ps(out + i + 16, (__mmask16)((1u << (count - i - 16)) - 1), x.high);
}

static void transpose(float *out, int64_t ldo, const float *in, int64_t ldi, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < columns; j += 16) {
            if (rows - i >= 16 && columns - j >= 16) {
                transpose16((uint32_t *)out + i * ldo + j, ldo, (const uint32_t *)in + j * ldi + i, ldi);
                continue;
            }
            for (int64_t r = i; r < rows && r < i + 16; r++)
                for (int64_t c = j; c < columns && c < j + 16; c++) out[r * ldo + c] = in[c * ldi + r];
        }
}

/* ---- rounding ---- */

/* To nearest even; NaN stays NaN. Integer arithmetic, so that subnormals survive as in the portable form. */
INLINE __m512i round_bf16(__m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                 _mm512_set1_epi32(0x7fc0));
}

/* 32 values as 16 pairs. */
INLINE __m512i pack_bf16(wide32 x) {
    __m512i pairs = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(round_bf16(x.low))),
                                       _mm512_cvtepi32_epi16(round_bf16(x.high)), 1);
    return pairs;
}

/* jpo_int16_scale of sixteen blocks whose largest magnitude is `top`. Where a value is not finite, top must come in as
 * infinity or NaN. */
INLINE __m512 block_scale(__m512 top, float most, __m512 *inverse) {
    __mmask16 sound = _mm512_cmp_ps_mask(top, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    __mmask16 used = _mm512_mask_cmp_ps_mask(sound, top, _mm512_set1_ps(0x1p-100f), _CMP_GE_OQ);
    __m512 limit = _mm512_set1_ps(most);
    *inverse = _mm512_maskz_div_ps(used, limit, top);
    __m512 scale = _mm512_maskz_div_ps(used, top, limit);
    return _mm512_mask_mov_ps(_mm512_set1_ps(__builtin_nanf("")), sound, scale);
}

/* Rounded to nearest even. Beside an infinity or NaN, inverse is zero: what comes out is any integer, times a scale of
 * NaN. */
INLINE __m512i quantize(__m512 x, __m512 inverse) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)); }

INLINE __m512 magnitude_max(__m512 a, __m512 b) { /* integers order like magnitudes, NaN above infinity */
    __m512i mask = _mm512_set1_epi32(0x7fffffff);
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), mask),
                                                _mm512_and_si512(_mm512_castps_si512(b), mask)));
}

/* 32 values as 16 pairs of integers; inverse is the same in every lane. */
INLINE __m512i quantize_pairs(wide32 x, __m512 inverse) {
    __m512i mixed =
        _mm512_packs_epi32(quantize(x.low, inverse), quantize(x.high, inverse)); /* low, high in each lane */
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), mixed);
}

/* The maxima across the lanes of four vectors, in their order. */
INLINE __m128i max_across(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_max_epu32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i all = _mm512_max_epu32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* Four blocks, each along a row: 16 pairs each, and their scales. One division serves four. */
INLINE void quantize_blocks(__m512i pairs[4], float scales[4], const wide32 x[4], float most) {
    __m512i top[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) top[i] = _mm512_castps_si512(magnitude_max(x[i].low, x[i].high));
    __m512 tops = _mm512_castps128_ps512(_mm_castsi128_ps(max_across(top[0], top[1], top[2], top[3]))), inverse;
    _mm_storeu_ps(scales, _mm512_castps512_ps128(block_scale(tops, most, &inverse)));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) pairs[i] = quantize_pairs(x[i], _mm512_permutexvar_ps(_mm512_set1_epi32(i), inverse));
}

/* Four blocks of x from block `first` on; those past `count` values are zero. */
INLINE void quantize_part(const jpo_int16_rows *to, const float *x, int64_t first, const int64_t count, float most) {
    wide32 wide[4];
    __m512i pairs[4];
    float scales[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        int64_t at = (first + i) * BLOCK;
        wide[i] = (wide32){_mm512_setzero_ps(), _mm512_setzero_ps()};
        if (at < count) wide[i] = decode32(JPO_F32, (const uint8_t *)x, at, left(count, at));
    }
    quantize_blocks(pairs, scales, wide, most);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        if ((first + i) * BLOCK < count) {
            _mm512_storeu_si512(to->pairs + (first + i) * (BLOCK / 2), pairs[i]);
            to->scale[first + i] = scales[i];
            if (to->total)
                to->total[first + i] =
                    scales[i] * (float)_mm512_reduce_add_epi32(_mm512_madd_epi16(pairs[i], _mm512_set1_epi16(1)));
        }
}

static void quantize_row(const jpo_int16_rows *to, const float *x, int64_t count, float most) {
    int64_t first = 0;
    for (; count - first * BLOCK >= 4 * BLOCK; first += 4)
        quantize_part(to, x, first, INT64_MAX, most); /* whole blocks */
    if (first * BLOCK < count) quantize_part(to, x, first, count, most);
}

void jpo_int16_convert_avx512(const jpo_gemm_rows *rows, int64_t row0, int64_t count) {
    for (int64_t i = row0; i < row0 + count; i++) {
        const jpo_int16_rows to = jpo_int16_rows_at(rows, i, 0);
        quantize_row(&to, rows->x + i * rows->ldx, rows->depth, jpo_int16_rows_max(rows));
    }
}

static void round_bfloat16(uint32_t *out, const float *x, int64_t count) {
    int64_t i = 0;
    for (; count - i >= 32; i += 32, out += 16)
        _mm512_storeu_si512(out, pack_bf16(decode32(JPO_F32, (const uint8_t *)x, i, 32)));
    if (i == count) return;
    int pairs = (left(count, i) + 1) / 2;
    _mm512_mask_storeu_epi32(out, (__mmask16)((1u << pairs) - 1),
                             pack_bf16(decode32(JPO_F32, (const uint8_t *)x, i, left(count, i))));
}

void jpo_bfloat16_convert_avx512(const jpo_gemm_rows *rows, int64_t row0, int64_t count) {
    const int64_t pairs = (rows->depth + 1) / 2;
    for (int64_t i = row0; i < row0 + count; i++)
        round_bfloat16((uint32_t *)rows->memory + i * pairs, rows->x + i * rows->ldx, rows->depth);
}

/* ---- packing: forward, B = W^T ---- */

/* Depth runs along the rows of W: 32 rows are decoded side by side, then transposed. */
INLINE void forward_float32_of(const jpo_dtype dtype, float *panel, const jpo_gemm_source *s) {
    float rows[PANEL][32] __attribute__((aligned(64)));
    memset(rows, 0, sizeof rows);
    for (int64_t k = 0; k < s->columns; k += 32) {
        int count = left(s->columns, k);
        for (int r = 0; r < s->rows; r++) {
            wide32 x = decode32(dtype, source_row(s, r), s->column0 + k, count);
            _mm512_store_ps(rows[r], x.low), _mm512_store_ps(rows[r] + 16, x.high);
        }
        float transposed[32][PANEL], *out = count == 32 ? panel + k * PANEL : transposed[0];
        for (int i = 0; i < 4; i++)
            transpose16((uint32_t *)out + i / 2 * 16 * PANEL + i % 2 * 16, PANEL,
                        (uint32_t *)rows[i % 2 * 16] + i / 2 * 16, 32);
        if (count < 32) memcpy(panel + k * PANEL, transposed, (size_t)count * sizeof transposed[0]);
    }
}

/* The same in pairs: after rounding, a row of 32 values is 16 pairs. */
INLINE void forward_bfloat16_of(const jpo_dtype dtype, uint32_t *panel, const jpo_gemm_source *s) {
    uint32_t rows[PANEL][16] __attribute__((aligned(64)));
    memset(rows, 0, sizeof rows);
    for (int64_t k = 0; k < s->columns; k += 32, panel += BLOCK / 2 * PANEL) {
        int count = left(s->columns, k), pairs = (count + 1) / 2;
        for (int r = 0; r < s->rows; r++)
            _mm512_store_si512(rows[r], pack_bf16(decode32(dtype, source_row(s, r), s->column0 + k, count)));
        uint32_t transposed[16][PANEL], *out = pairs == 16 ? panel : transposed[0];
        transpose16(out, PANEL, rows[0], 16);
        transpose16(out + 16, PANEL, rows[16], 16);
        if (pairs < 16) memcpy(panel, transposed, (size_t)pairs * sizeof transposed[0]);
    }
}

INLINE void forward_int16_of(const jpo_dtype dtype, uint32_t *panel, const jpo_gemm_source *s) {
    __m512i rows[PANEL];
    const wide32 zero = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t k = 0; k < s->columns; k += 32, panel += (BLOCK / 2 + 1) * PANEL) {
        int count = left(s->columns, k);
        for (int r = 0; r < PANEL; r += 4) {
            wide32 x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                x[i] = r + i < s->rows ? decode32(dtype, source_row(s, r + i), s->column0 + k, count) : zero;
            quantize_blocks(rows + r, (float *)panel + 16 * PANEL + r, x, JPO_GEMM_PANEL_MAX);
        }
        transpose16(panel, PANEL, (const uint32_t *)rows, 16);
        transpose16(panel + 16, PANEL, (const uint32_t *)(rows + 16), 16);
    }
}

/* Two rows of 16 integers as 16 pairs, the earlier row in the lower half. */
INLINE __m512i pair_up(__m512i even, __m512i odd) {
    return _mm512_or_si512(_mm512_and_si512(even, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(odd, 16));
}

/* out[i] = dword i of the 16 bytes at `offset` of each of 16 rows. */
INLINE void transpose_bytes(__m512i out[4], const uint8_t *const row[16], const int offset) {
    __m512i z[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* lane l: row 4 l + i */
        __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(row[i] + offset)));
        __m256i high = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(row[8 + i] + offset)));
        low = _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)(row[4 + i] + offset)), 1);
        high = _mm256_inserti128_si256(high, _mm_loadu_si128((const __m128i *)(row[12 + i] + offset)), 1);
        z[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    out[0] = _mm512_unpacklo_epi64(a, c), out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d), out[3] = _mm512_unpackhi_epi64(b, d);
}

/* Bytes 2 which and 2 which + 1 of each dword as a pair: unsigned; or signed, from the upper halves of words. */
INLINE __m512i pair_of(__m512i dwords, const int which, const bool is_signed) {
    const int first = 2 * which, second = first + 1, none = 0x80;
    const int order =
        is_signed ? none | first << 8 | none << 16 | second << 24 : first | none << 8 | second << 16 | none << 24;
    const __m512i step = _mm512_broadcast_i32x4(_mm_setr_epi32(0x00000000, 0x04040404, 0x08080808, 0x0c0c0c0c));
    const __m512i pair = _mm512_shuffle_epi8(dwords, _mm512_or_si512(_mm512_set1_epi32(order), step));
    return is_signed ? _mm512_srai_epi16(pair, 8) : pair;
}

/* The first halves of 16 blocks, and the second (Q4_1). */
INLINE void take_halves(const jpo_dtype dtype, __m512 *scale, __m512 *constant, const uint8_t *const row[16]) {
    uint32_t halves[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) memcpy(halves + r, row[r], 4);
    const __m512i both = _mm512_loadu_si512(halves);
    *scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
    *constant = dtype == JPO_Q4_1 ? _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16))) : *scale;
}

/* A block of each of 16 rows, transposed. */
typedef struct {
    __m512i dword[8];
    __m512 scale, constant;
} transposed_block;

INLINE transposed_block transpose_block(const jpo_dtype dtype, const uint8_t *const row[16]) {
    transposed_block block;
    take_halves(dtype, &block.scale, &block.constant, row);
    transpose_bytes(block.dword, row, dtype == JPO_Q4_1 ? 4 : 2);
    if (dtype == JPO_Q8_0) transpose_bytes(block.dword + 4, row, 18);
    return block;
}

/* Value `depth` of each row, rounded as decode32 does. */
INLINE __m512 value_at(const jpo_dtype dtype, const transposed_block *block, const int depth) {
    const unsigned byte = (unsigned)(depth % 4 * 8);
    if (dtype == JPO_Q8_0) {
        const __m512i top = _mm512_slli_epi32(block->dword[depth / 4], 24u - byte);
        return _mm512_mul_ps(block->scale, _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24)));
    }
    const __m512i dword = _mm512_srli_epi32(block->dword[depth % 16 / 4], byte + (unsigned)(depth / 16 * 4));
    const __m512 value = _mm512_cvtepi32_ps(_mm512_and_si512(dword, _mm512_set1_epi32(15)));
    return dtype == JPO_Q4_0 ? _mm512_mul_ps(block->scale, _mm512_sub_ps(value, _mm512_set1_ps(8)))
                             : _mm512_fmadd_ps(block->scale, value, block->constant);
}

/* The block's integers as 16 pairs, then scales and constants. */
INLINE void put_integers(const jpo_dtype dtype, uint32_t *panel, const transposed_block *block) {
    const __m512i mask = _mm512_set1_epi8(15), zero = _mm512_set1_epi16(dtype == JPO_Q4_0 ? 8 : 0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) { /* values 4 i .. 4 i + 3 */
        __m512i bytes = block->dword[dtype == JPO_Q8_0 ? i : i % 4];
        if (dtype != JPO_Q8_0) bytes = _mm512_and_si512(i < 4 ? bytes : _mm512_srli_epi16(bytes, 4), mask);
        for (int which = 0; which < 2; which++)
            _mm512_storeu_si512(panel + (2 * i + which) * PANEL,
                                _mm512_sub_epi16(pair_of(bytes, which, dtype == JPO_Q8_0), zero));
    }
    _mm512_storeu_ps((float *)panel + 16 * PANEL, block->scale);
    if (dtype == JPO_Q4_1) _mm512_storeu_ps((float *)panel + 17 * PANEL, block->constant);
}

/* What a panel holds. */
typedef enum { TO_FLOAT32, TO_INT16, TO_BFLOAT16 } form;

INLINE void pack_block(const jpo_dtype dtype, const form to, uint32_t *panel, const uint8_t *const row[16]) {
    const transposed_block block = transpose_block(dtype, row);
    if (to == TO_INT16) {
        put_integers(dtype, panel, &block);
    } else if (to == TO_FLOAT32) {
#pragma GCC unroll 32
        for (int d = 0; d < BLOCK; d++) _mm512_storeu_ps((float *)panel + d * PANEL, value_at(dtype, &block, d));
    } else {
#pragma GCC unroll 16
        for (int p = 0; p < BLOCK / 2; p++)
            _mm512_storeu_si512(panel + p * PANEL, pair_up(round_bf16(value_at(dtype, &block, 2 * p)),
                                                           round_bf16(value_at(dtype, &block, 2 * p + 1))));
    }
}

/* Stored blocks are transposed as bytes before they are widened. Rows past the end are zero. */
INLINE void forward_stored_of(const jpo_dtype dtype, const form to, uint32_t *panel, const jpo_gemm_source *s) {
    static const uint8_t zero[34];
    const int64_t bytes = (int64_t)jpo_dtype_block_bytes(dtype);
    const int lines = to == TO_FLOAT32 ? BLOCK : to == TO_INT16 ? jpo_gemm_int16_lines(dtype, false) : BLOCK / 2;
    const uint8_t *row[PANEL];
    for (int r = 0; r < PANEL; r++) row[r] = r < s->rows ? source_row(s, r) + s->column0 / BLOCK * bytes : zero;
    const uint8_t *ahead = row[0] + PANEL * jpo_dtype_row_bytes(dtype, s->k); /* the next panel's */
    for (int64_t k = 0; k < s->columns; k += BLOCK, panel += lines * PANEL, ahead += PANEL * bytes) {
        for (int64_t line = 0; line < PANEL * bytes; line += 64) __builtin_prefetch(ahead + line);
        for (int half = 0; half < PANEL; half += 16) pack_block(dtype, to, panel + half, row + half);
        for (int r = 0; r < s->rows; r++) row[r] += bytes;
    }
}

/* Forms whose blocks are transposed as bytes, and all others, which are widened row by row. */
#define FORWARD_OF(dtype, to, name)             \
    if (jpo_gemm_stored(dtype, false))          \
        forward_stored_of(dtype, to, panel, s); \
    else                                        \
        name(dtype, panel, s)
#define TO_FLOAT32_OF(dtype) FORWARD_OF(dtype, TO_FLOAT32, forward_float32_of)
#define TO_INT16_OF(dtype) FORWARD_OF(dtype, TO_INT16, forward_int16_of)
#define TO_BFLOAT16_OF(dtype) FORWARD_OF(dtype, TO_BFLOAT16, forward_bfloat16_of)
static void forward_float32(void *panel, const jpo_gemm_source *s) { JPO_FOR_DTYPE(s->dtype, TO_FLOAT32_OF) }
void jpo_int16_forward_avx512(void *panel, const jpo_gemm_source *s) { JPO_FOR_DTYPE(s->dtype, TO_INT16_OF) }
void jpo_bfloat16_forward_avx512(void *panel, const jpo_gemm_source *s) { JPO_FOR_DTYPE(s->dtype, TO_BFLOAT16_OF) }
#undef FORWARD_OF

/* ---- packing: backward, B = W ---- */

INLINE void backward_float32_of(const jpo_dtype dtype, float *panel, const jpo_gemm_source *s) {
    const uint8_t *row = source_row(s, 0);
    size_t stride = jpo_dtype_row_bytes(s->dtype, s->k);
    for (int64_t r = 0; r < s->rows; r++, row += stride, panel += PANEL) {
        wide32 x = decode32(dtype, row, s->column0, (int)s->columns);
        _mm512_storeu_ps(panel, x.low), _mm512_storeu_ps(panel + 16, x.high);
    }
}

INLINE void backward_bfloat16_of(const jpo_dtype dtype, uint32_t *panel, const jpo_gemm_source *s) {
    for (int64_t r = 0; r < s->rows; r += 2, panel += PANEL) {
        wide32 even = decode32(dtype, source_row(s, r), s->column0, (int)s->columns), odd = {0};
        if (r + 1 < s->rows) odd = decode32(dtype, source_row(s, r + 1), s->column0, (int)s->columns);
        _mm512_storeu_si512(panel, pair_up(round_bf16(even.low), round_bf16(odd.low)));
        _mm512_storeu_si512(panel + 16, pair_up(round_bf16(even.high), round_bf16(odd.high)));
    }
}

/* A block is 32 rows of one column: magnitudes, scales and rounding run down the columns. */
INLINE void backward_int16_of(const jpo_dtype dtype, uint32_t *panel, const jpo_gemm_source *s) {
    __m512 rows[BLOCK][2];
    for (int64_t r0 = 0; r0 < s->rows; r0 += BLOCK, panel += (BLOCK / 2 + 1) * PANEL) {
        int count = left(s->rows, r0);
        __m512 top[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, inverse[2], scale[2];
        for (int r = 0; r < BLOCK; r++) {
            wide32 x = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            if (r < count) x = decode32(dtype, source_row(s, r0 + r), s->column0, (int)s->columns);
            rows[r][0] = x.low, rows[r][1] = x.high;
            top[0] = magnitude_max(top[0], x.low), top[1] = magnitude_max(top[1], x.high);
        }
        for (int v = 0; v < 2; v++) scale[v] = block_scale(top[v], JPO_GEMM_PANEL_MAX, &inverse[v]);
        for (int r = 0; r < BLOCK; r += 2)
            for (int v = 0; v < 2; v++)
                _mm512_storeu_si512(panel + r / 2 * PANEL + v * 16,
                                    pair_up(quantize(rows[r][v], inverse[v]), quantize(rows[r + 1][v], inverse[v])));
        for (int v = 0; v < 2; v++) _mm512_storeu_ps((float *)panel + 16 * PANEL + v * 16, scale[v]);
    }
}

static void backward_float32(void *panel, const jpo_gemm_source *s) {
#define CALL(dtype) backward_float32_of(dtype, panel, s)
    JPO_FOR_DTYPE(s->dtype, CALL)
#undef CALL
}
void jpo_int16_backward_avx512(void *panel, const jpo_gemm_source *s) {
#define CALL(dtype) backward_int16_of(dtype, panel, s)
    JPO_FOR_DTYPE(s->dtype, CALL)
#undef CALL
}
void jpo_bfloat16_backward_avx512(void *panel, const jpo_gemm_source *s) {
#define CALL(dtype) backward_bfloat16_of(dtype, panel, s)
    JPO_FOR_DTYPE(s->dtype, CALL)
#undef CALL
}

/* ---- a small batch: dot products along the rows of W ---- */

INLINE float sum_across(__m512 v) { /* in the order of sum_four_512 */
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    return _mm_cvtss_f32(quarter_512(_mm512_add_ps(v, _mm512_permute_ps(v, 0xb1))));
}

#define VEC_SUM(v) sum_across(v)
#define DOT_SUMS(out, v) _mm_storeu_ps(out, sum_four_512((v)[0], (v)[1], (v)[2], (v)[3]))
#define DOT_WIDEN widen
#define DOT_KEEP(v) ((void)(v))
#define DOT_W 4
#include "kernels/gemm_dot.inc"
#define WIDE_PART(w, i) ((i) ? (w).high : (w).low)
#define DIRECT_M 4
#include "kernels/gemm_direct.inc"

static void tile(float *c, int64_t ldc, int64_t row0, const jpo_gemm_term *t, int terms, int count, int columns,
                 bool accumulate) {
    (void)terms;
    const jpo_gemm_rows *rows = t->rows;
    float32_tile(c, ldc, rows->x + row0 * rows->ldx + t->d0, rows->ldx, t->panel, t->depth, count, columns, accumulate);
}

static size_t panel_bytes(jpo_dtype dtype, bool backward, int64_t depth) {
    (void)dtype, (void)backward;
    return (size_t)depth * PANEL * 4;
}

const jpo_gemm_kernel jpo_gemm_avx512_float32 = {
    .name = "avx512_float32",
    .compute = JPO_COMPUTE_FLOAT32,
    .needs = JPO_CPU_AVX512,
    .panel = PANEL,
    .rows = TILE_ROWS,
    .align = 1,
    .range = 576,
    .panel_bytes = panel_bytes,
    .pack = {forward_float32, backward_float32},
    .tile = tile,
};

const jpo_gemv_kernel jpo_gemv_avx512 = {
    .needs = JPO_CPU_AVX512, .widen = widen, .transpose = transpose, .rows = 32, .dot = small_batch};
#endif
