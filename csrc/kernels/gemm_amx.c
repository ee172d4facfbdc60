/* The tile kernels by Intel's AMX (AMX_TILE, AMX_BF16); rows are converted and panels packed by AVX-512. The logic
 * stands in gemm_tiles.inc, its portable twin in gemm_tiles.c. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c,amx-tile,amx-bf16")
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/gemm.h"

#include "kernels/decode_avx512.inc"

/* Palette 1: eight tiles of 16 rows of 64 bytes. */
static void tiles_begin(void) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
}
/* Tiles in use would be saved at every switch of the thread. */
static void tiles_end(void) { _tile_release(); }

#define TILE_INLINE INLINE
#define TILE_STATE
#define TILE_PARAMETER
#define TILE_ARGUMENT
#define TILE_LOAD(t, p, stride) _tile_loadd(t, p, stride)
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_STORE(t, p, stride) _tile_stored(t, p, stride)
#define TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_FENCE() __asm__ volatile("" ::: "memory")
#define TILE_BEGIN tiles_begin
#define TILE_END tiles_end
#define TILE_RANGE 2048
#define TILE_SMALL_ROWS 8

/* 32 values in their bfloat16 parts. */
typedef struct {
    __m512i part[2];
} split32;

INLINE __m512 widen_bf16(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE split32 split(const int parts, wide32 x) {
    split32 out;
    out.part[0] = (__m512i)_mm512_cvtne2ps_pbh(x.high, x.low);
    if (parts > 1) {
        x.low = _mm512_sub_ps(x.low, widen_bf16(_mm512_castsi512_si256(out.part[0])));
        x.high = _mm512_sub_ps(x.high, widen_bf16(_mm512_extracti64x4_epi64(out.part[0], 1)));
        out.part[1] = (__m512i)_mm512_cvtne2ps_pbh(x.high, x.low);
    }
    return out;
}

/* One tile of each part: 16 rows of 32 values, zeros where there are none; the parts are two tiles apart. */
INLINE void split_rows(char *out, const int parts, const float *x, int64_t ldx, int rows, int count) {
    for (int r = 0; r < rows; r++, x += ldx, out += 64) {
        const split32 value = split(parts, decode32(JPO_F32, (const uint8_t *)x, 0, count));
        for (int p = 0; p < parts; p++) _mm512_store_si512(out + p * 2048, value.part[p]);
    }
    for (int r = rows; r < 16; r++, out += 64)
        for (int p = 0; p < parts; p++) _mm512_store_si512(out + p * 2048, _mm512_setzero_si512());
}

/* 32 values of a row of W in their parts. */
INLINE split32 split_stored(const jpo_dtype dtype, const int parts, const uint8_t *row, int64_t column, int count) {
    if (dtype != JPO_BF16) return split(parts, decode32(dtype, row, column, count));
    const __mmask32 mask = count >= 32 ? 0xffffffffu : (1u << count) - 1;
    return (split32){{_mm512_maskz_loadu_epi16(mask, row + 2 * column)}};
}

/* Rows of W by which packing fetches ahead: into the second cache, as the first one's few places for lines under way
 * are the tiles'. */
enum { AHEAD = 16 };

INLINE void fetch(const uint8_t *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* Depth runs along the rows of W: 16 rows of 16 pairs become 16 pairs of 16 columns. */
INLINE void forward_of(const jpo_dtype dtype, const int parts, char *panel, const jpo_gemm_source *s) {
    uint32_t rows[2][16 * 16] __attribute__((aligned(64)));
    const size_t stride = jpo_dtype_row_bytes(dtype, s->k);
    const int64_t values = jpo_dtype_block(dtype), bytes = (int64_t)jpo_dtype_block_bytes(dtype);
    memset(rows, 0, sizeof rows);
    for (int half = 0; half < PANEL; half += 16, panel += 1024) {
        const int count = s->rows - half < 16 ? (int)(s->rows - half) : 16;
        const uint8_t *first = (const uint8_t *)s->data + (size_t)(s->row0 + half) * stride;
        char *out = panel;
        if (count <= 0) memset(rows, 0, sizeof rows);
        for (int r = count > 0 ? count : 0; r < 16; r++)
            for (int p = 0; p < parts; p++) memset(rows[p] + 16 * r, 0, 64);
        for (int64_t k = 0; k < s->columns; k += BLOCK, out += parts * 2048) {
            const uint8_t *row = first;
            for (int r = 0; r < count; r++, row += stride) {
                const split32 value = split_stored(dtype, parts, row, s->column0 + k, left(s->columns, k));
                fetch(row + AHEAD * stride + (s->column0 + k) * bytes / values, BLOCK * bytes / values);
                for (int p = 0; p < parts; p++) _mm512_store_si512(rows[p] + 16 * r, value.part[p]);
            }
            for (int p = 0; p < parts; p++) transpose16((uint32_t *)(out + p * 2048), 16, rows[p], 16);
        }
    }
}

/* Two rows of 32 values become 32 pairs, 16 for each half of a panel. */
INLINE void pair_rows(const int parts, char *panel, split32 even, split32 odd) {
    const __m512i places = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                            37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i later = _mm512_add_epi16(places, _mm512_set1_epi16(16));
    for (int p = 0; p < parts; p++, panel += 2048) {
        _mm512_store_si512(panel, _mm512_permutex2var_epi16(even.part[p], places, odd.part[p]));
        _mm512_store_si512(panel + 1024, _mm512_permutex2var_epi16(even.part[p], later, odd.part[p]));
    }
}

/* Depth runs down the rows of W, two of which are read through all panels. */
INLINE void backward_of(const jpo_dtype dtype, const int parts, char *panel, const jpo_gemm_source *s) {
    const size_t stride = jpo_dtype_row_bytes(dtype, s->k);
    const uint8_t *row = (const uint8_t *)s->data + (size_t)s->row0 * stride;
    const int64_t values = jpo_dtype_block(dtype), bytes = (int64_t)jpo_dtype_block_bytes(dtype);
    const int64_t blocks = (s->rows + BLOCK - 1) / BLOCK, panel_bytes = blocks * parts * 2048;
    for (int64_t r = 0; r < blocks * BLOCK; r += 2, row += 2 * stride) {
        char *out = panel + r / BLOCK * parts * 2048 + r % BLOCK / 2 * 64;
        for (int64_t c = 0; c < s->columns; c += PANEL, out += panel_bytes) {
            const int64_t column = s->column0 + c;
            const uint8_t *ahead = row + AHEAD * stride + column * bytes / values;
            fetch(ahead, PANEL * bytes / values);
            fetch(ahead + stride, PANEL * bytes / values);
            split32 even = {{_mm512_setzero_si512(), _mm512_setzero_si512()}}, odd = even;
            if (r < s->rows) even = split_stored(dtype, parts, row, column, left(s->columns, c));
            if (r + 1 < s->rows) odd = split_stored(dtype, parts, row + stride, column, left(s->columns, c));
            pair_rows(parts, out, even, odd);
        }
    }
}

/* One and two parts; a bfloat16 weight has no second. */
#define forward_1_of_type(dtype) forward_of(dtype, 1, panel, s)
#define forward_2_of_type(dtype) forward_of(dtype, dtype == JPO_BF16 ? 1 : 2, panel, s)
#define backward_1_of_type(dtype) backward_of(dtype, 1, panel, s)
#define backward_2_of_type(dtype) backward_of(dtype, dtype == JPO_BF16 ? 1 : 2, panel, s)
static void forward_1(void *panel, const jpo_gemm_source *s) { JPO_FOR_DTYPE(s->dtype, forward_1_of_type) }
static void forward_2(void *panel, const jpo_gemm_source *s) { JPO_FOR_DTYPE(s->dtype, forward_2_of_type) }
static void backward_1(void *panel, const jpo_gemm_source *s) { JPO_FOR_DTYPE(s->dtype, backward_1_of_type) }
static void backward_2(void *panel, const jpo_gemm_source *s) { JPO_FOR_DTYPE(s->dtype, backward_2_of_type) }

#include "kernels/gemm_tiles.inc"

TILE_KERNEL(amx_bfloat16, JPO_COMPUTE_BFLOAT16, JPO_CPU_AMX | JPO_CPU_VNNI, 1, 1, &jpo_integers_avx512,
            JPO_COMPUTE_BFLOAT16)
TILE_KERNEL(amx_bfloat16x2, JPO_COMPUTE_BFLOAT16X2, JPO_CPU_AMX | JPO_CPU_VNNI, 2, 1, &jpo_integers_avx512,
            JPO_COMPUTE_BFLOAT16X3)
TILE_KERNEL(amx_bfloat16x3, JPO_COMPUTE_BFLOAT16X3, JPO_CPU_AMX | JPO_CPU_VNNI, 2, 2, NULL, JPO_COMPUTE_BFLOAT16X3)
#endif
