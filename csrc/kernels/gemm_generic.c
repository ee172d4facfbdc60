/* Packed products in portable C: the definition that every other table is held to (integers bit for bit). */
#include <math.h>
#include <string.h>

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

static float bf16_value(uint32_t half) {
    half <<= 16;
    float x;
    memcpy(&x, &half, sizeof x);
    return x;
}

static void put(float *c, float sum, bool accumulate) { *c = accumulate ? *c + sum : sum; }

static void tile_float32(float *c, int64_t ldc, const float *a, int64_t lda, const void *panel, int64_t depth, int rows,
                         int columns, bool accumulate) {
    const float *b = panel;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) {
            float sum = 0;
            for (int64_t d = 0; d < depth; d++) sum = fmaf(a[r * lda + d], b[d * PANEL + j], sum);
            put(c + r * ldc + j, sum, accumulate);
        }
}

static void tile_bfloat16(float *c, int64_t ldc, const uint32_t *a, int64_t lda, const void *panel, int64_t pairs,
                          int rows, int columns, bool accumulate) {
    const uint32_t *b = panel;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) {
            float sum = 0;
            for (int64_t p = 0; p < pairs; p++) { /* products are exact in float32; the sum rounds twice */
                uint32_t x = a[r * lda + p], w = b[p * PANEL + j];
                sum += bf16_value(x & 0xffff) * bf16_value(w & 0xffff);
                sum += bf16_value(x >> 16) * bf16_value(w >> 16);
            }
            put(c + r * ldc + j, sum, accumulate);
        }
}

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

static void tile_int16(float *c, int64_t ldc, const jpo_gemm_rows *a, const void *panel, int64_t blocks, int rows,
                       int columns, bool accumulate) {
    const int lines = PAIRS + 1 + (a->total != NULL);
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) {
            const uint32_t *b = (const uint32_t *)panel + j, *x = a->pairs + r * a->ldp;
            float sum = 0;
            for (int64_t block = 0; block < blocks; block++, b += lines * PANEL, x += PAIRS) {
                const int64_t place = r * a->lds + block;
                sum = fmaf((float)dot_block(x, b), a->scale[place] * float_at(b + PAIRS * PANEL), sum);
                if (a->total) sum = fmaf(float_at(b + (PAIRS + 1) * PANEL), a->total[place], sum);
            }
            put(c + r * ldc + j, sum, accumulate);
        }
}

const jpo_gemm_table jpo_gemm_generic = {
    .panel = PANEL,
    .rows_float32 = TILE_ROWS,
    .rows_bfloat16 = TILE_ROWS,
    .rows_int16 = TILE_ROWS,
    .tile_float32 = tile_float32,
    .tile_bfloat16 = tile_bfloat16,
    .tile_int16 = tile_int16,
    .forward = {forward_float32, forward_int16, forward_bfloat16},
    .backward = {backward_float32, backward_int16, backward_bfloat16},
    .round_bfloat16 = round_bfloat16,
    .quantize_int16 = quantize_int16,
    .few_rows = 32,
    .few_stored_rows = 32,
    .widen = widen_row,
    .dot_rows = 8,
    .dot = dot,
    .integer_rows = 24,
    .integers_take = jpo_integers_take,
    .integers_dot = jpo_integers_dot,
};
