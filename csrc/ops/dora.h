/* Adapted weights whose rows have lengths of their own (DoRA, arXiv 2402.09353, equation 5): with V = W + scale B A,
 *   y = m / ||V|| * u,  u = V x,   row by row, ||V_n|| the length of row n and m (N) its trained magnitude.
 * As there (section 4.3) and in PEFT the norm takes part in no gradient: dm = sum over rows of dy u / ||V||, and
 * du = m / ||V|| dy is the gradient of a plain adapted product. A row of zeros stays one: its factor is 0. */
#ifndef JPO_OPS_DORA_H
#define JPO_OPS_DORA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "ops/lora.h"

/* The norms of one weight's rows and the adapter that they were computed for; memory is the caller's. */
typedef struct {
    float *norm, *factor; /* (N): ||V||, and m / ||V|| of the last jpo_row_norms_update */
    float *seen;          /* (R * K + N * R): A and B of `norm` */
    bool known;           /* norm holds something */
} jpo_row_norms;

/* Norms of the rows of W + scale B A, each summed in float64, where A or B changed since; then the factors. W is read
 * as it is stored, row by row. `trust`: A and B are known to be those seen, and are not compared. */
jpo_status jpo_row_norms_update(jpo_row_norms *norms, const jpo_weight *w, const jpo_lora *lora, bool trust,
                                jpo_scratch *scratch, jpo_error *err);

/* y = or += factor u by columns. */
void jpo_dora_forward(float *y, /* (M, N; ldy) */ int64_t ldy, const float *u, /* (M, N) */
                      const float *factor, /* (N) */ int64_t m, int64_t n, bool accumulate);
/* du = factor dy; dmagnitude (N) += column sums of dy u / norm, in the order of the rows. */
void jpo_dora_backward(float *dmagnitude, float *du, /* (M, N) */ const float *dy, /* (M, N; lddy) */ int64_t lddy,
                       const float *u, /* (M, N) */ const jpo_row_norms *norms, int64_t m, int64_t n);
/* du -= dy: the part of the product's gradient that goes through dropout alone. */
void jpo_dora_difference(float *du, /* (M, N) */ const float *dy, /* (M, N; lddy) */ int64_t lddy, int64_t m,
                         int64_t n);

#endif
