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
} jpo_weight;

/* Scratch of one product: grown on demand before the parallel region, reused by the next product. */
typedef struct {
    jpo_block shared, thread; /* `thread` holds jpo_threads_count() equal parts */
} jpo_scratch;
void jpo_scratch_free(jpo_scratch *scratch);

/* Checks that W can be multiplied in w->compute by the instruction set that is chosen now, which the tests change;
 * every product asks. Panels are packed on the way, which costs less than reading stored ones back would.
 * JPO_ERR_UNSUPPORTED names the missing instructions. */
jpo_status jpo_weight_check(const jpo_weight *w, jpo_error *err);

/* A low-rank update of a product. Forward: u (M, R) = scale x project^T with project (R, K), then y += u v^T with v
 * (N, R). Backward: u (M, R) = scale dy project with project (N, R), then dx += u v with v (R, K). */
typedef struct {
    float *u;             /* (M, R), saved */
    const float *project; /* NULL: u is there already */
    const float *v;       /* NULL: u is computed, nothing is added */
    int64_t r;
    float scale;
} jpo_low_rank;

enum { JPO_LINEAR_GROUP = 3 }; /* the most products of one call: q, k and v */

/* Rows that products read. prepare (NULL: they are there) writes rows row0 .. row0 + count - 1, or what else belongs to
 * them, on the way: directly before these rows are read for the first time, each row once, in tasks of their own. */
typedef struct {
    const float *x; /* (M, K; ldx); unused in a backward product, whose rows are the inputs' dy */
    int64_t ldx;
    void (*prepare)(const void *context, int64_t row0, int64_t count);
    const void *context;
} jpo_linear_rows;

/* Prepares all rows, for somebody else than a product. */
void jpo_linear_prepare(const jpo_linear_rows *rows, int64_t m);

/* y (M, N; ldy) = x W^T, or y += where accumulate; then the update (NULL: none). */
typedef struct {
    float *y;
    int64_t ldy;
    const jpo_weight *w;
    bool accumulate;
    const jpo_low_rank *update;
} jpo_linear_output;

/* Products of the same rows, which are converted once for weights that are stored alike. */
jpo_status jpo_linear_forward_group(const jpo_linear_output *outputs, int count, const jpo_linear_rows *x, int64_t m,
                                    jpo_scratch *scratch, jpo_error *err);

/* A term of an input's gradient: dy (M, N; lddy) W and its update. */
typedef struct {
    const float *dy;
    int64_t lddy;
    const jpo_weight *w;
    const jpo_low_rank *update;
} jpo_linear_input;

/* Called when every update's u and what `prepare` writes are there and dx is not yet touched: dx may be what it reads.
 * The call's scratch is in use meanwhile. */
typedef struct {
    jpo_status (*run)(const void *context, jpo_error *err);
    const void *context;
} jpo_linear_hook;

/* d/dx of jpo_linear_forward_group: dx (M, K; lddx) = or += the sum of the inputs' terms, of one K. dx NULL: only the
 * updates' u are computed. hook: NULL for none. */
jpo_status jpo_linear_backward_group(float *dx, int64_t lddx, bool accumulate, const jpo_linear_input *inputs,
                                     int count, const jpo_linear_rows *rows, const jpo_linear_hook *hook, int64_t m,
                                     jpo_scratch *scratch, jpo_error *err);

/* One product without an update: y (M, N; ldy) = or += x (M, K; ldx) W^T; dx (M, K; lddx) = or += dy (M, N; lddy) W. */
jpo_status jpo_linear_forward(float *y, int64_t ldy, const float *x, int64_t ldx, const jpo_weight *w, int64_t m,
                              bool accumulate, jpo_scratch *scratch, jpo_error *err);
jpo_status jpo_linear_backward_input(float *dx, int64_t lddx, const float *dy, int64_t lddy, const jpo_weight *w,
                                     int64_t m, bool accumulate, jpo_scratch *scratch, jpo_error *err);
/* What the gradient of a weight needs beside the scratch of other products, which it may meet while that is in use. */
typedef struct {
    jpo_block transposed; /* dy^T (N, M) */
    jpo_scratch product;
} jpo_weight_scratch;
void jpo_weight_scratch_free(jpo_weight_scratch *scratch);

/* d/dW of jpo_linear_forward: dw (N, K) += dy (M, N; lddy)^T x (M, K; ldx). In float32, or where x's rows follow one
 * another (ldx = K) in `compute`, as the product of dy^T with a weight x: bfloat16x2 then runs as its low_rank type,
 * so that both sides, which are activations, keep two parts. */
jpo_status jpo_linear_backward_weight(float *dw, const float *dy, int64_t lddy, const float *x, int64_t ldx, int64_t n,
                                      int64_t k, int64_t m, jpo_compute compute, jpo_weight_scratch *scratch,
                                      jpo_error *err);

/* out (count, K) float32 = rows row0..row0+count-1 of W, widened exactly. */
void jpo_weight_rows(float *out, const jpo_weight *w, int64_t row0, int64_t count);

#endif
