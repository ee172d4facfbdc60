/* Packed products, callable inside a task: no threads, no allocation. ops/linear cuts whole products into these; the
 * fused head packs a tile of the vocabulary once and runs many chunks of rows over it:
 *
 *     jpo_packed_tile up, down;                                   // logits = H W_t^T; dH += P W_t
 *     jpo_packed_pack(&up, memory, w, v0, count, 0, w->k, false); // memory: jpo_packed_tile_bytes(w, w->k, count)
 *     jpo_packed_pack(&down, other, w, v0, count, 0, w->k, true); // memory: jpo_packed_tile_bytes(w, count, w->k)
 *     for each chunk of m rows:
 *         jpo_packed_multiply(logits, ldl, h, ldh, m, &up, false, scratch);   // scratch: jpo_packed_scratch_bytes(...)
 *         ...
 *         jpo_packed_multiply(dh, ldd, p, ldp, m, &down, true, scratch);
 *
 * The weight's compute type decides what a tile holds (kernels/gemm.h has the numerical contract). Where no kernel
 * offers the product (generic, NEON), a tile is a widened float32 rectangle (or W itself where it is stored so) and
 * OpenBLAS multiplies. An output's sums run in an order that depends on the depth alone: not on m, on the cut of rows
 * or columns, or on threads. (OpenBLAS: on the shape of the call.) */
#ifndef JPO_OPS_PACKED_H
#define JPO_OPS_PACKED_H

#include "kernels/gemm.h"
#include "ops/linear.h"

typedef struct {
    const jpo_gemm_kernel *kernel; /* NULL: OpenBLAS */
    int64_t depth, columns;        /* of B: sums run over `depth`, outputs are (m, columns) */
    const jpo_weight *w;           /* not owned, as `memory` */
    int64_t row0, column0;         /* of W */
    bool backward;
    void *memory;
} jpo_packed_tile;

/* Rows of activations and, in memory of the caller, their form for a kernel. */
typedef struct {
    const jpo_gemm_kernel *kernel; /* NULL: OpenBLAS */
    jpo_gemm_rows x;
} jpo_packed_rows;

/* The kernel that serves w's compute type here; NULL where OpenBLAS has to (float32 only; elsewhere jpo_weight_check
 * has refused). */
const jpo_gemm_kernel *jpo_packed_kernel(const jpo_weight *w);
/* out (columns) = a part of one row of W in float32. */
void jpo_packed_widen(float *out, const jpo_weight *w, int64_t row, int64_t column0, int64_t columns);
/* For the benchmarks: float32 products of more than a a small batch by OpenBLAS, to stand beside ours. */
void jpo_packed_prefer_openblas(bool prefer);

size_t jpo_packed_tile_bytes(const jpo_weight *w, int64_t depth, int64_t columns); /* a multiple of 64 */
/* The tile of W's rows row0.. and columns column0.. (a multiple of 32, as `columns` unless it reaches the end): forward
 * (depth = columns, outputs = rows) or backward (depth = rows, outputs = columns). memory: 64-byte aligned. */
void jpo_packed_pack(jpo_packed_tile *tile, void *memory, const jpo_weight *w, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns, bool backward);

/* The same in parts, which several tasks may share: open prepares the tile, each of its jpo_packed_parts is then packed
 * once, in any order. */
void jpo_packed_open(jpo_packed_tile *tile, void *memory, const jpo_weight *w, int64_t row0, int64_t rows,
                     int64_t column0, int64_t columns, bool backward);
int64_t jpo_packed_parts(const jpo_packed_tile *tile);
void jpo_packed_pack_part(const jpo_packed_tile *tile, int64_t part);

size_t jpo_packed_scratch_bytes(const jpo_weight *w, int64_t m, int64_t depth); /* 0 for float32 */
/* y (m, columns; ldy) = or += x (m, depth; ldx) times the tile. */
void jpo_packed_multiply(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const jpo_packed_tile *tile,
                         bool accumulate, void *scratch);

/* The same in two steps, so that several tiles share the rounded rows. open: prepares `rows` over memory of
 * jpo_packed_scratch_bytes; convert: rounds rows row0..row0+count-1 (nothing for float32). */
void jpo_packed_rows_open(jpo_packed_rows *rows, const jpo_weight *w, bool backward, const float *x, int64_t ldx,
                          int64_t m, int64_t depth, void *memory);
void jpo_packed_rows_convert(const jpo_packed_rows *rows, int64_t row0, int64_t count);
/* Rows, from depth0 (a multiple of 32) on, times a tile. */
typedef struct {
    const jpo_packed_rows *rows;
    int64_t depth0;
    jpo_packed_tile tile;
} jpo_packed_term;
enum { JPO_PACKED_TERMS = 1 + JPO_LINEAR_GROUP };
/* y (count, columns; ldy) = or += the sum of the terms for rows row0.. ; more than one where the first one's kernel has
 * `low_rank`: the others' tiles hold as many columns and one range of the depth. */
void jpo_packed_multiply_rows(float *y, int64_t ldy, const jpo_packed_term *term, int terms, int64_t row0,
                              int64_t count, bool accumulate);

/* The depth is cut into equal ranges, each packed and summed for itself: the length of all but the last. */
int64_t jpo_packed_range(const jpo_gemm_kernel *kernel, int64_t depth);

#endif
