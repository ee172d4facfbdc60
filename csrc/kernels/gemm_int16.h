/* The layout that every int16 kernel gives to converted rows of X: pairs of integers, the scale of each block of 32,
 * and (Q4_1 forward alone) its total, the scale times the sum of the block's integers. */
#ifndef JPO_KERNELS_GEMM_INT16_H
#define JPO_KERNELS_GEMM_INT16_H

#include <stddef.h>
#include <string.h>

#include "kernels/gemm.h"

/* Largest magnitudes in int16: of rows, of rows beside stored integers, of rounded weights. */
enum { JPO_GEMM_ROWS_MAX = 16383, JPO_GEMM_STORED_ROWS_MAX = 32767, JPO_GEMM_PANEL_MAX = 4095 };

/* The rule of a block's scale: of a largest magnitude, by its bits (they order like magnitudes, NaN above infinity),
 * that becomes the integer `most`; *inverse makes integers of the block's values, to nearest even. AVX2 and AVX-512
 * have it for a vector of blocks, to the same bits. */
static inline float jpo_int16_scale(uint32_t top_bits, float most, float *inverse) {
    float top;
    memcpy(&top, &top_bits, sizeof top);
    *inverse = 0;
    if (top_bits >= 0x7f800000) return __builtin_nanf("");
    if (top < 0x1p-100f) return 0;
    *inverse = most / top;
    return top / most;
}

/* Whether int16 reads a weight's stored integers, and how many lines of a panel one block then has. */
static inline bool jpo_gemm_stored(jpo_dtype dtype, bool backward) { return !backward && jpo_dtype_integers(dtype); }
static inline int jpo_gemm_int16_lines(jpo_dtype dtype, bool backward) {
    return JPO_GEMM_BLOCK / 2 + 1 + (dtype == JPO_Q4_1 && !backward);
}

static inline int64_t jpo_gemm_blocks(int64_t depth) { return (depth + JPO_GEMM_BLOCK - 1) / JPO_GEMM_BLOCK; }

typedef struct {
    uint32_t *pairs; /* (rows, blocks, 16; ldp in pairs) */
    float *scale;    /* (rows, blocks; lds) */
    float *total;    /* (rows, blocks; lds); NULL: the panel has no constants */
    int64_t ldp, lds;
} jpo_int16_rows;

/* From row `row` and block `block` on. */
static inline jpo_int16_rows jpo_int16_rows_at(const jpo_gemm_rows *rows, int64_t row, int64_t block) {
    const int64_t blocks = jpo_gemm_blocks(rows->depth), pairs = blocks * (JPO_GEMM_BLOCK / 2);
    jpo_int16_rows at = {.pairs = rows->memory, .ldp = pairs, .lds = blocks};
    at.scale = (float *)(at.pairs + rows->m * pairs);
    if (jpo_gemm_int16_lines(rows->dtype, rows->backward) > JPO_GEMM_BLOCK / 2 + 1)
        at.total = at.scale + rows->m * blocks + row * blocks + block;
    at.pairs += row * pairs + block * (JPO_GEMM_BLOCK / 2), at.scale += row * blocks + block;
    return at;
}

static inline size_t jpo_int16_rows_bytes(int64_t m, int64_t depth) {
    return (size_t)m * (size_t)jpo_gemm_blocks(depth) * (JPO_GEMM_BLOCK / 2 + 2) * 4;
}

static inline size_t jpo_int16_panel_bytes(jpo_dtype dtype, bool backward, int64_t depth) {
    return (size_t)(jpo_gemm_blocks(depth) * jpo_gemm_int16_lines(dtype, backward)) * JPO_GEMM_MAX_PANEL * 4;
}

/* The largest magnitude of a row's integers. */
static inline float jpo_int16_rows_max(const jpo_gemm_rows *rows) {
    return jpo_gemm_stored(rows->dtype, rows->backward) ? JPO_GEMM_STORED_ROWS_MAX : JPO_GEMM_ROWS_MAX;
}

#endif
