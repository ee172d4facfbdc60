/* Matrix products over packed panels: one table per instruction set.
 *
 * Y (M, C) = X (M, D) B (D, C), D the depth over which sums run. B comes from a stored weight W (N, K): forward
 * products take B = W^T (D = K), input gradients B = W (D = N). A panel holds `panel` columns of B for a range of the
 * depth, the columns past the end zero: float32   (D, panel) float bfloat16  (ceil(D / 2), panel) pairs of bfloat16,
 * the earlier depth in the lower half int16     per block of 32 along the depth: (16, panel) pairs of int16, (panel)
 * float scales, and for Q4_1 forward (panel) float constants; value = scale * q + constant (AVX2: the same as two
 * halves of 16 columns, one after the other). Numerical contract. float32 and bfloat16: products summed in float32
 * along the depth in ascending order (bfloat16: in pairs), the sum of one range added to the output once. int16: a
 * block's sum is exact in an int32, as 32 times the product of the largest magnitudes stays below 2^31: 32 * 16383 *
 * 4095 = 2146828320 where weights are rounded; forward products of Q8_0, Q4_0 and Q4_1 take the stored integers, so
 * that weights are exact and rows keep 16 bits: 32 * 32767 * 128. Blocks are then summed in float32, ascending, each by
 * one fused multiply-add of float(sum) and the rounded product of the scales, then one of the constant and the row's
 * total. A block that holds NaN or infinity gets the scale NaN: every output that it touches is NaN. A block whose
 * magnitudes all lie below 2^-100 is taken as zero (stored integers: as they are). */
#ifndef JPO_KERNELS_GEMM_H
#define JPO_KERNELS_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

enum { JPO_GEMM_BLOCK = 32, JPO_GEMM_MAX_PANEL = 32, JPO_GEMM_DOT_SCRATCH = 10 * 640 };

/* Largest magnitudes in int16: of rows, of rows beside stored integers, of rounded weights. */
enum { JPO_GEMM_ROWS_MAX = 16383, JPO_GEMM_STORED_ROWS_MAX = 32767, JPO_GEMM_PANEL_MAX = 4095 };

/* Whether int16 takes a weight's stored integers, and how many lines of a panel one block then has. */
static inline bool jpo_gemm_stored(jpo_dtype dtype, bool backward) {
    return !backward && (dtype == JPO_Q8_0 || dtype == JPO_Q4_0 || dtype == JPO_Q4_1);
}
static inline int jpo_gemm_int16_lines(jpo_dtype dtype, bool backward) {
    return JPO_GEMM_BLOCK / 2 + 1 + (dtype == JPO_Q4_1 && !backward);
}

/* Rows of x in int16. */
typedef struct {
    uint32_t *pairs; /* (rows, blocks, 16; ldp in pairs) */
    float *scale;    /* (rows, blocks; lds) */
    float
        *total; /* (rows, blocks; lds): scale times the sum of the block's integers; NULL: the panel has no constants */
    int64_t ldp, lds;
} jpo_gemm_rows;

/* A rectangle of a stored weight. */
typedef struct {
    const void *data; /* first byte of row 0 */
    jpo_dtype dtype;
    int64_t k;                            /* values in a row */
    int64_t row0, rows, column0, columns; /* column0 a multiple of 32 where values stand in blocks */
} jpo_gemm_source;

/* One panel of B: forward: `rows` (<= panel) columns of B with depth `columns`; backward: `columns` (<= panel) columns
 * of B with depth `rows`. */
typedef void (*jpo_gemm_pack)(void *panel, const jpo_gemm_source *source);

/* c (rows, columns; ldc) = or += a (rows, depth; lda) times a panel; rows <= the kernel's, columns <= panel. */
typedef void (*jpo_gemm_tile_float32)(float *c, int64_t ldc, const float *a, int64_t lda, const void *panel,
                                      int64_t depth, int rows, int columns, bool accumulate);
/* a (rows, pairs; lda in pairs): pairs of bfloat16, the last one padded with zero. */
typedef void (*jpo_gemm_tile_bfloat16)(float *c, int64_t ldc, const uint32_t *a, int64_t lda, const void *panel,
                                       int64_t pairs, int rows, int columns, bool accumulate);
typedef void (*jpo_gemm_tile_int16)(float *c, int64_t ldc, const jpo_gemm_rows *a, const void *panel, int64_t blocks,
                                    int rows, int columns, bool accumulate);

typedef struct jpo_gemm_integers jpo_gemm_integers; /* kernels/integers.h */

typedef struct {
    int panel;                                   /* columns of a panel */
    int rows_float32, rows_bfloat16, rows_int16; /* rows of a tile */
    jpo_gemm_tile_float32 tile_float32;
    jpo_gemm_tile_bfloat16
        tile_bfloat16;              /* NULL: not offered; on x86-64 to be called only where cpu.h has the feature */
    jpo_gemm_tile_int16 tile_int16; /* the same */
    jpo_gemm_pack forward[3], backward[3]; /* by compute: float32, int16, bfloat16 */
    /* out (ceil(count / 2)) pairs = x (count) rounded to nearest even. */
    void (*round_bfloat16)(uint32_t *out, const float *x, int64_t count);
    /* Row 0 of out = x (count), its magnitudes at most `most`, zero behind the end. */
    void (*quantize_int16)(const jpo_gemm_rows *out, const float *x, int64_t count, float most);
    int few_rows; /* up to so many rows int16 and bfloat16 do not pay: whole products of a weight are taken in float32
                   */
    int few_stored_rows; /* the same of int16's forward products with stored integers, beyond integer_rows */
    /* out (count) = values column0.. of a stored row; both multiples of 32 where values stand in blocks. */
    void (*widen)(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count);
    /* out (rows, columns; ldo) = the transpose of in (columns, rows; ldi). NULL: not offered. */
    void (*turn)(float *out, int64_t ldo, const float *in, int64_t ldi, int64_t rows, int64_t columns);
    /* y[j] (j < rows of W, stride 1; row stride ldy per x row) = or += x (m, K; ldx) times rows of W; m <= dot_rows;
     * scratch holds JPO_GEMM_DOT_SCRATCH floats. NULL: not offered. */
    int dot_rows;
    void (*dot)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const jpo_gemm_source *source,
                bool accumulate, float *scratch);
    /* int16 for up to integer_rows rows of a weight stored as integers (kernels/integers.h). NULL: not offered. */
    int integer_rows;
    void (*integers_take)(const jpo_gemm_integers *x, int64_t i, const float *in, int64_t k);
    void (*integers_dot)(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *source,
                         bool accumulate);
} jpo_gemm_table;

extern const jpo_gemm_table jpo_gemm_generic; /* portable C; its integers equal every other table's, bit for bit */
#if defined(__x86_64__)
extern const jpo_gemm_table jpo_gemm_avx2, jpo_gemm_avx512;
/* tile_int16 and tile_bfloat16 of the AVX-512 table, from files of their own */
void jpo_gemm_int16_avx512(float *c, int64_t ldc, const jpo_gemm_rows *a, const void *panel, int64_t blocks, int rows,
                           int columns, bool accumulate);
void jpo_gemm_bfloat16_avx512(float *c, int64_t ldc, const uint32_t *a, int64_t lda, const void *panel, int64_t pairs,
                              int rows, int columns, bool accumulate);
#endif

#endif
