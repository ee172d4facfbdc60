/* Products with a weight W (N, K). Every product with a frozen weight goes through these functions: they know how W is
 * stored (dtype) and how it is multiplied (compute), choose a kernel (kernels/gemm.h, where the numerical contract
 * stands) and cut the output into fixed tiles, so that results do not depend on the number of threads. Small batches of
 * rows are faster in float32 and run there, up to the kernel's small_rows; but int16's forward products with Q8_0, Q4_0
 * and Q4_1 of as many rows as decoding has run on the stored integers (kernels/integers.h), at up to twice float32's
 * speed. ops/packed.h has the products that a task can call. */
#ifndef JPO_OPS_LINEAR_H
#define JPO_OPS_LINEAR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/memory.h"
#include "base/status.h"

typedef struct {
    int64_t n, k;     /* rows (outputs), columns (inputs) */
    const void *data; /* (N, K) row-major as `dtype` stores it; not owned, outlives the weight */
    jpo_dtype dtype;
    jpo_compute compute;
    void *packed; /* what jpo_weight_prepare made for `compute`; NULL where nothing is needed; owned */
} jpo_weight;

/* Scratch of one product: grown on demand before the parallel region, reused by the next product. */
typedef struct {
    jpo_block shared, thread; /* `thread` holds jpo_threads_count() equal parts */
} jpo_scratch;
void jpo_scratch_free(jpo_scratch *scratch);

/* Checks that W can be multiplied in w->compute; panels are packed on the way, so that nothing is stored.
 * JPO_ERR_UNSUPPORTED names the missing instructions. */
jpo_status jpo_weight_prepare(jpo_weight *w, jpo_error *err);
/* The same for the instruction set that is chosen now, which the tests change; every product asks. */
jpo_status jpo_weight_check(const jpo_weight *w, jpo_error *err);
void jpo_weight_release(jpo_weight *w);

/* A product of low rank that is added to an output while its tile is in the cache: scale u (M, R; ldu) times v. */
typedef struct {
    const float *u, *v; /* v: (N, R; ldv) where transposed, else (R, K; ldv) */
    int64_t ldu, ldv, r;
    bool transposed;
    float scale;
} jpo_addition;

/* y (M, N; row stride ldy) = x (M, K; row stride ldx) W^T, or y += where accumulate; then y += plus (NULL: none). */
jpo_status jpo_linear_forward(float *y, int64_t ldy, const float *x, int64_t ldx, const jpo_weight *w, int64_t m,
                              bool accumulate, const jpo_addition *plus, jpo_scratch *scratch, jpo_error *err);
/* d/dx of jpo_linear_forward: dx (M, K; lddx) = dy (M, N; lddy) W, or dx += where accumulate; plus likewise. */
jpo_status jpo_linear_backward_input(float *dx, int64_t lddx, const float *dy, int64_t lddy, const jpo_weight *w,
                                     int64_t m, bool accumulate, const jpo_addition *plus, jpo_scratch *scratch,
                                     jpo_error *err);
/* d/dW of jpo_linear_forward, W float32: dw (N, K) += dy (M, N; lddy)^T x (M, K; ldx). */
jpo_status jpo_linear_backward_weight(float *dw, const float *dy, int64_t lddy, const float *x, int64_t ldx, int64_t n,
                                      int64_t k, int64_t m, jpo_scratch *scratch, jpo_error *err);

/* out (count, K) float32 = rows row0..row0+count-1 of W, widened exactly. */
void jpo_weight_rows(float *out, const jpo_weight *w, int64_t row0, int64_t count);

#endif
