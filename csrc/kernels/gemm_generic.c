/* Packed products in portable C: the definition that every other table is held to (integers bit for bit). */
#include <math.h>
#include <string.h>

#include "kernels/gemm.h"
#include "kernels/panels.h"
#include "kernels/panels.inc"

typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
#define VEC vec4
#define LANES 4
#define VEC_ZERO() ((vec4){0})
#define VEC_LOAD(p) (*(const vec4 *)(p))
#define VEC_STORE(p, v) (*(vec4 *)(p) = (v))
#define VEC_FMA(a, b, c) ((a) * (b) + (c))
#include "kernels/gemm_dot.inc"

enum { PANEL = 32, TILE_ROWS = 4, BLOCK = JPO_GEMM_BLOCK, PAIRS = BLOCK / 2 };

/* ---- rounding ---- */

static uint32_t round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fc0;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static float bf16_value(uint32_t half) {
    half <<= 16;
    float x;
    memcpy(&x, &half, sizeof x);
    return x;
}

/* Integers of `count` values (stride apart) and their scale; q behind count is zero. */
static float quantize_block(int32_t *q, const float *x, int64_t stride, int64_t count) {
    float top = 0;
    bool sound = true;
    memset(q, 0, BLOCK * sizeof *q);
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(x[i * stride]);
        sound = sound && magnitude < INFINITY;
        if (magnitude > top) top = magnitude;
    }
    if (!sound) return NAN;
    if (!(top >= 0x1p-100f)) return 0;
    float inverse = JPO_GEMM_INT16_MAX / top;
    for (int64_t i = 0; i < count; i++) q[i] = (int32_t)rintf(x[i * stride] * inverse);
    return top / JPO_GEMM_INT16_MAX;
}

static uint32_t pair_up(int32_t even, int32_t odd) { return ((uint32_t)even & 0xffff) | (uint32_t)odd << 16; }

static void round_bfloat16(uint32_t *out, const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i += 2)
        out[i / 2] = round_bf16(x[i]) | (i + 1 < count ? round_bf16(x[i + 1]) << 16 : 0);
}

static void quantize_int16(uint32_t *out, float *scale, const float *x, int64_t count) {
    int32_t q[BLOCK];
    for (int64_t i = 0; i < count; i += BLOCK, out += PAIRS) {
        *scale++ = quantize_block(q, x + i, 1, count - i < BLOCK ? count - i : BLOCK);
        for (int p = 0; p < PAIRS; p++) out[p] = pair_up(q[2 * p], q[2 * p + 1]);
    }
}

/* ---- packing: a block of 32 along the depth times the panel's columns at a time ---- */

/* part (BLOCK, PANEL) = B[d0.., all columns of the source], zeros around. */
static void widen_part(float part[BLOCK][PANEL], const jpo_gemm_source *s, int64_t d0, int64_t depth, bool backward) {
    float rows[32 * 32];
    memset(part, 0, BLOCK * sizeof part[0]);
    if (backward) {
        jpo_panel_widen(part[0], PANEL, s->dtype, s->data, s->k, s->row0 + d0, depth, s->column0, s->columns);
        return;
    }
    jpo_panel_widen(rows, 32, s->dtype, s->data, s->k, s->row0, s->rows, s->column0 + d0, depth);
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t d = 0; d < depth; d++) part[d][r] = rows[r * 32 + d];
}

static void pack_float32(float *panel, float part[BLOCK][PANEL], int64_t depth) {
    memcpy(panel, part, (size_t)depth * sizeof part[0]);
}

static void pack_bfloat16(uint32_t *panel, float part[BLOCK][PANEL], int64_t depth) {
    for (int64_t d = 0; d < depth; d += 2, panel += PANEL)
        for (int c = 0; c < PANEL; c++)
            panel[c] = round_bf16(part[d][c]) | (d + 1 < depth ? round_bf16(part[d + 1][c]) << 16 : 0);
}

static void pack_int16(uint32_t *panel, float part[BLOCK][PANEL]) {
    for (int c = 0; c < PANEL; c++) {
        int32_t q[BLOCK];
        float scale = quantize_block(q, &part[0][c], PANEL, BLOCK);
        for (int p = 0; p < PAIRS; p++) panel[p * PANEL + c] = pair_up(q[2 * p], q[2 * p + 1]);
        memcpy(&panel[PAIRS * PANEL + c], &scale, sizeof scale);
    }
}

static void pack(void *memory, const jpo_gemm_source *s, bool backward, int compute) {
    float part[BLOCK][PANEL];
    uint32_t *panel = memory;
    int64_t depth = backward ? s->rows : s->columns;
    for (int64_t d0 = 0; d0 < depth; d0 += BLOCK) {
        int64_t count = depth - d0 < BLOCK ? depth - d0 : BLOCK;
        widen_part(part, s, d0, count, backward);
        if (compute == 0) {
            pack_float32((float *)panel, part, count);
            panel += BLOCK * PANEL;
        } else if (compute == 1) {
            pack_int16(panel, part);
            panel += (PAIRS + 1) * PANEL;
        } else {
            pack_bfloat16(panel, part, count);
            panel += PAIRS * PANEL;
        }
    }
}

static void forward_float32(void *panel, const jpo_gemm_source *s) { pack(panel, s, false, 0); }
static void forward_int16(void *panel, const jpo_gemm_source *s) { pack(panel, s, false, 1); }
static void forward_bfloat16(void *panel, const jpo_gemm_source *s) { pack(panel, s, false, 2); }
static void backward_float32(void *panel, const jpo_gemm_source *s) { pack(panel, s, true, 0); }
static void backward_int16(void *panel, const jpo_gemm_source *s) { pack(panel, s, true, 1); }
static void backward_bfloat16(void *panel, const jpo_gemm_source *s) { pack(panel, s, true, 2); }

/* ---- tiles: one output at a time ---- */

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
    int32_t sum = 0; /* at most 32 * 8191^2 < 2^31 */
    for (int p = 0; p < PAIRS; p++) {
        uint32_t x = a[p], w = b[p * PANEL];
        sum += (int32_t)(int16_t)(x & 0xffff) * (int16_t)(w & 0xffff);
        sum += (int32_t)(int16_t)(x >> 16) * (int16_t)(w >> 16);
    }
    return sum;
}

static void tile_int16(float *c, int64_t ldc, const uint32_t *a, int64_t lda, const float *scale, int64_t lds,
                       const void *panel, int64_t blocks, int rows, int columns, bool accumulate) {
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) {
            const uint32_t *b = (const uint32_t *)panel + j;
            float sum = 0;
            for (int64_t block = 0; block < blocks; block++, b += (PAIRS + 1) * PANEL) {
                float w;
                memcpy(&w, b + PAIRS * PANEL, sizeof w);
                sum = fmaf((float)dot_block(a + r * lda + block * PAIRS, b), scale[r * lds + block] * w, sum);
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
    .widen = widen_row,
    .dot_rows = 8,
    .dot = dot,
};
