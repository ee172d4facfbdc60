/* int16 products and the small batch in portable C: the definition that every other kernel is held to (integers bit for
 * bit). */
#include <math.h>
#include <string.h>

#include "kernels/gemm_int16.h"
#include "kernels/integers.h"
#include "kernels/panels.h"
#include "kernels/panels.inc"

typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
#define VEC vec4
#define LANES 4
#define VEC_ZERO() ((vec4){0})
#define VEC_LOAD(p) (*(const vec4 *)(p))
#define VEC_FMA(a, b, c) ((a) * (b) + (c))
#define VEC_SUM(v) (((v)[0] + (v)[2]) + ((v)[1] + (v)[3]))
#define VEC_ADD(a, b) ((a) + (b))
#define DOT_WIDEN widen_row
#define DOT_W 2
#define DOT_SUMS(out, v) ((out)[0] = VEC_SUM((v)[0]), (out)[1] = VEC_SUM((v)[1]))
#define DOT_KEEP(v) ((void)(v))
#include "kernels/gemm_dot.inc"

#define PANEL 32
#include "kernels/gemm_pack.inc"

enum { TILE_ROWS = 4 };

/* ---- tiles: one output at a time ---- */

static int32_t dot_block(const uint32_t *a, const uint32_t *b) {
    int32_t sum = 0; /* exact: kernels/gemm.h */
    for (int p = 0; p < PAIRS; p++) {
        uint32_t x = a[p], w = b[p * PANEL];
        sum += (int32_t)(int16_t)(x & 0xffff) * (int16_t)(w & 0xffff);
        sum += (int32_t)(int16_t)(x >> 16) * (int16_t)(w >> 16);
    }
    return sum;
}

static float float_at(const uint32_t *p) {
    float value;
    memcpy(&value, p, sizeof value);
    return value;
}

static void put(float *c, float sum, bool accumulate) { *c = accumulate ? *c + sum : sum; }

static void tile_int16(float *c, int64_t ldc, int64_t row0, const jpo_gemm_term *t, int terms, int rows, int columns,
                       bool accumulate) {
    (void)terms;
    const jpo_int16_rows at = jpo_int16_rows_at(t->rows, row0, t->d0 / BLOCK), *a = &at;
    const int64_t blocks = jpo_gemm_blocks(t->depth);
    const int lines = PAIRS + 1 + (a->total != NULL);
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) {
            const uint32_t *b = (const uint32_t *)t->panel + j, *x = a->pairs + r * a->ldp;
            float sum = 0;
            for (int64_t block = 0; block < blocks; block++, b += lines * PANEL, x += PAIRS) {
                const int64_t place = r * a->lds + block;
                sum = fmaf((float)dot_block(x, b), a->scale[place] * float_at(b + PAIRS * PANEL), sum);
                if (a->total) sum = fmaf(float_at(b + (PAIRS + 1) * PANEL), a->total[place], sum);
            }
            put(c + r * ldc + j, sum, accumulate);
        }
}

static void convert(const jpo_gemm_rows *rows, int64_t row0, int64_t count) {
    for (int64_t i = row0; i < row0 + count; i++) {
        const jpo_int16_rows to = jpo_int16_rows_at(rows, i, 0);
        quantize_row(&to, rows->x + i * rows->ldx, rows->depth, jpo_int16_rows_max(rows));
    }
}

const jpo_integer_kernel jpo_integers_generic = {24, jpo_integers_quantize, jpo_integers_dot};

const jpo_gemm_kernel jpo_gemm_portable_int16 = {
    .name = "portable_int16",
    .compute = JPO_COMPUTE_INT16,
    .panel = PANEL,
    .rows = TILE_ROWS,
    .align = 1,
    .range = 576,
    .small_rows = 32,
    .small_stored_rows = 32,
    .integers = &jpo_integers_generic,
    .panel_bytes = jpo_int16_panel_bytes,
    .rows_bytes = jpo_int16_rows_bytes,
    .convert = convert,
    .pack = {forward_int16, backward_int16},
    .tile = tile_int16,
};

static void transpose(float *out, int64_t ldo, const float *in, int64_t ldi, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) out[r * ldo + c] = in[c * ldi + r];
}

const jpo_gemv_kernel jpo_gemv_generic = {.widen = widen_row, .transpose = transpose, .rows = 8, .dot = dot};
