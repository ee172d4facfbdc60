/* Matrix products over packed panels: one list of kernels, fastest first.
 *
 * Y (M, C) = X (M, D) B (D, C), D the depth over which sums run. B comes from a stored weight W (N, K): forward
 * products read B = W^T (D = K), input gradients B = W (D = N). A panel holds `panel` columns of B for a range of the
 * depth, the columns past the end zero. What a panel and the converted rows of X look like is the kernel's own affair.
 *
 * Numerical contract, by compute type. The sum of one range of the depth is added to the output once; tiles go on from
 * the output, block by block.
 * - float32: products summed in float32 along the depth in ascending order.
 * - int16: both sides in blocks of 32 along the depth, integers and a float scale. A block's sum is exact in an int32,
 * as 32 times the product of the largest magnitudes stays below 2^31: 32 * 16383 * 4095 = 2146828320 where weights are
 *   rounded; forward products of Q8_0, Q4_0 and Q4_1 read the stored integers, so that weights are exact and rows keep
 * 16 bits: 32 * 32767 * 128. Blocks are then summed in float32, ascending, each by one fused multiply-add of float(sum)
 * and the rounded product of the scales, then one of the constant and the row's total. A block that holds NaN or
 * infinity gets the scale NaN: every output that it touches is NaN. A block whose magnitudes all lie below 2^-100 is
 * read as zero (stored integers: as they are).
 * - bfloat16, bfloat16x2, bfloat16x3 by tiles (kernels/gemm_tiles.inc): relative to the sum of absolute products, at
 * most 2^-8 + 2^-8, 2^-16 + 2^-8 and 3 * 2^-16, beside float32's own sums.
 * - bfloat16 by AVX512_BF16: in pairs along the depth, ascending. */
#ifndef JPO_KERNELS_GEMM_H
#define JPO_KERNELS_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

enum { JPO_GEMM_BLOCK = 32, JPO_GEMM_MAX_PANEL = 32, JPO_GEMM_DOT_SCRATCH = 10 * 640 };

/* A rectangle of a stored weight. */
typedef struct {
    const void *data; /* first byte of row 0 */
    jpo_dtype dtype;
    int64_t k;                            /* values in a row */
    int64_t row0, rows, column0, columns; /* column0 a multiple of 32 where values stand in blocks */
} jpo_gemm_source;

/* Rows of X, and their form for one kernel: opaque to everybody else. */
typedef struct {
    const float *x; /* (m, depth; ldx) */
    int64_t ldx, m, depth;
    void *memory;    /* rows_bytes(m, depth) of the caller's, 64-byte aligned; NULL where x is multiplied as it is */
    jpo_dtype dtype; /* of the weight that the rows will meet */
    bool backward;   /* and the direction */
} jpo_gemm_rows;

/* One term of a tile's sums: rows of X, from depth d0 (a multiple of 32) on, times a panel of `depth`. */
typedef struct {
    const jpo_gemm_rows *rows;
    int64_t d0;
    const void *panel;
    int64_t depth;
    int parts; /* `parts` of the kernel that packed the panel */
} jpo_gemm_term;

/* One panel of B. forward: `rows` (<= panel) columns of B with depth `columns`; backward: `columns` (<= panel, or any
 * number where the kernel is `wide`) columns of B with depth `rows`. */
typedef void (*jpo_gemm_pack)(void *panel, const jpo_gemm_source *source);

/* A small batch of rows in 16-bit integers times a weight stored as integers (kernels/integers.h): closer than
 * bfloat16x2 and faster than float32. */
typedef struct jpo_gemm_integers jpo_gemm_integers;
typedef struct {
    int rows; /* up to so many */
    void (*quantize)(const jpo_gemm_integers *x, int64_t i, const float *in /* (k) */, int64_t k);
    void (*dot)(float *y, int64_t ldy, const jpo_gemm_integers *x, int64_t m, const jpo_gemm_source *source,
                bool accumulate);
} jpo_integer_kernel;

typedef struct {
    const char *name;
    jpo_compute compute;
    uint32_t needs; /* processor features (base/cpu.h) */
    uint32_t wants; /* features without which float32 is faster: lacking them, the kernel is not chosen by itself */
    int panel;      /* columns of a panel */
    int rows;       /* rows of a full tile; a tile's first row is a multiple of `align` */
    int align;
    int64_t range; /* the most depth that one panel holds */
    /* Products of up to so many rows are faster in float32, and run there; the second number: int16's forward products
     * with stored integers, beyond those that `integers` serves. */
    int small_rows, small_stored_rows;
    const jpo_integer_kernel *integers; /* NULL: not offered */
    /* The compute type whose panels meet the same converted rows and serve an adapter's matrices; float32 (0): none. */
    jpo_compute low_rank;
    size_t (*panel_bytes)(jpo_dtype dtype, bool backward, int64_t depth);
    size_t (*rows_bytes)(int64_t m, int64_t depth); /* NULL: x is multiplied as it is */
    /* Rows row0..row0+count-1 of rows->x into rows->memory; row0 a multiple of `rows`, count too unless it reaches m.
     */
    void (*convert)(const jpo_gemm_rows *rows, int64_t row0, int64_t count);
    jpo_gemm_pack pack[2]; /* forward, backward */
    /* pack[1] fills several panels, each panel_bytes behind the one before: it reads rows of W from end to end. */
    bool wide;
    bool large_cache; /* processors with what it needs have a second cache of 2 MB or more */
    int parts;        /* that each value of a panel is stored in, where the kernel rounds to bfloat16 */
    /* c (count, columns; ldc) = or += the sum of the terms, for rows row0.. ; count <= the kernel's rows, columns <=
     * panel. More than one term only where the kernel has `low_rank`. */
    void (*tile)(float *c, int64_t ldc, int64_t row0, const jpo_gemm_term *term, int terms, int count, int columns,
                 bool accumulate);
    /* Around a thread's run of tiles; NULL: nothing to do. */
    void (*thread_begin)(void);
    void (*thread_end)(void);
} jpo_gemm_kernel;

/* float32 along the rows of W, for a small batch (GEMV): one for each level of the processor. */
typedef struct {
    uint32_t needs;
    /* out (count) = values column0.. of a stored row; both multiples of 32 where values stand in blocks. */
    void (*widen)(float *out, jpo_dtype dtype, const void *row, int64_t column0, int64_t count);
    /* out (rows, columns; ldo) = the transpose of in (columns, rows; ldi). */
    void (*transpose)(float *out, int64_t ldo, const float *in, int64_t ldi, int64_t rows, int64_t columns);
    int rows; /* up to so many rows of x */
    /* y[j] (j < rows of W, stride 1; row stride ldy per x row) = or += x (m, K; ldx) times rows of W; m <= rows;
     * scratch holds JPO_GEMM_DOT_SCRATCH floats. */
    void (*dot)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const jpo_gemm_source *source,
                bool accumulate, float *scratch);
} jpo_gemv_kernel;

/* The list, fastest first within a compute type: a row here, its values at its definition. Portable kernels, those
 * without needs, are definitions that the tests compare with; plain float32 is faster, so that they serve only where
 * jpo_gemm_allow_portable says so. */
#define JPO_GEMM_PORTABLE_LIST(X) X(portable_int16) X(portable_bfloat16) X(portable_bfloat16x2) X(portable_bfloat16x3)
#if defined(__x86_64__)
#define JPO_GEMM_NATIVE_LIST(X) \
    X(amx_bfloat16)             \
    X(amx_bfloat16x2)           \
    X(amx_bfloat16x3) X(avx512_vnni_int16) X(avx512_bfloat16) X(avx512_float32) X(avx2_int16) X(avx2_float32)
#else
#define JPO_GEMM_NATIVE_LIST(X)
#endif
#define JPO_GEMM_LIST(X) JPO_GEMM_NATIVE_LIST(X) JPO_GEMM_PORTABLE_LIST(X)

#define JPO_GEMM_DECLARE(symbol) extern const jpo_gemm_kernel jpo_gemm_##symbol;
JPO_GEMM_LIST(JPO_GEMM_DECLARE)
#undef JPO_GEMM_DECLARE

extern const jpo_gemv_kernel jpo_gemv_generic;
extern const jpo_integer_kernel jpo_integers_generic;
#if defined(__x86_64__)
extern const jpo_gemv_kernel jpo_gemv_avx2, jpo_gemv_avx512;
extern const jpo_integer_kernel jpo_integers_avx2, jpo_integers_avx512;
#endif

/* The kernel at a place of the list; NULL behind its end. */
const jpo_gemm_kernel *jpo_gemm_at(int place);
/* The first of the list that serves `compute` here; NULL: none (float32: OpenBLAS has to). */
const jpo_gemm_kernel *jpo_gemm_find(jpo_compute compute);
/* What jpo_gemm_find lacks where it finds none: a sentence for the user, such as "bfloat16x2 needs ... (amx)". */
const char *jpo_gemm_lacking(jpo_compute compute);
/* What compute="auto" means here, a fixed rule of features: the fastest compute type that is served and whose error
 * class is at most bfloat16x2's or int16's. */
jpo_compute jpo_gemm_auto(void);
const jpo_gemv_kernel *jpo_gemv_find(void);
/* For the tests. allow_portable: as above. force: this kernel for its compute type, NULL: none; false where the machine
 * cannot run it. */
void jpo_gemm_allow_portable(bool allow);
bool jpo_gemm_force(const jpo_gemm_kernel *kernel);

#endif
