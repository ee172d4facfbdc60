/* The low-rank path of an adapted product: y += scale * dropout(x) A^T B^T (LoRA, arXiv 2106.09685, equation 3). */
#ifndef JPO_OPS_LORA_H
#define JPO_OPS_LORA_H

#include <stdint.h>

#include "base/status.h"
#include "ops/linear.h"

typedef struct {
    int64_t r;                /* rank; 0: not adapted */
    const float *a, *b;       /* (r, K), (N, r) */
    float *da, *db;           /* gradients of the same shapes, added to */
    const float *magnitude;   /* (N): lengths that the rows of W + scale B A are given (ops/dora.h); NULL: their own */
    float *dmagnitude;        /* (N) */
    float scale;              /* alpha / r, or alpha / sqrt(r) */
    float dropout;            /* share of x's values that the path does not see */
    uint64_t seed;            /* the mask is a pure function of (seed, mask_key of the row, column) */
    const uint64_t *mask_key; /* (M): who the rows are, wherever they stand; needed where dropout > 0 */
} jpo_lora;

/* The update of an adapted product: xa (M, r) = scale dropout(x) A^T, saved for backward, times B^T. Where dropout is
 * active, xa is computed here, with `dropped` (M, K) as scratch; elsewhere the product does it on its way. */
jpo_status jpo_lora_forward(jpo_low_rank *update, float *xa, /* (M, r) */ const float *x, /* (M, K) */
                            float *dropped, /* (M, K) */ const jpo_lora *lora, int64_t m, int64_t k,
                            jpo_scratch *scratch, jpo_error *err);
/* The update of the input's gradient: dxa (M, r) = scale dy B, times A; with dropout dxa alone. */
jpo_low_rank jpo_lora_backward(float *dxa, /* (M, r) */ const jpo_lora *lora);

/* What an adapter's gradients are made of: da += dxa^T dropout(x), db += dy^T xa. */
typedef struct {
    const jpo_lora *lora;
    const float *dxa, *xa; /* (M, r) */
    const float *dy;       /* (M, N; lddy) */
    int64_t lddy, n;
} jpo_lora_gradient;

/* da, db += for up to JPO_LINEAR_GROUP adapters of one input x (M, K). dropped: scratch (M, K), needed where dropout is
 * active. */
void jpo_lora_backward_weights(const jpo_lora_gradient *gradients, int count, const float *x, /* (M, K) */
                               float *dropped, /* (M, K) */ int64_t m, int64_t k);
/* With dropout: dx (M, K) += dxa A through the same mask; where `accumulate`, of dropped + dxa A: what else came
 * through it. */
jpo_status jpo_lora_backward_input(float *dx, /* (M, K) */ const float *dxa, /* (M, r) */
                                   float *dropped, /* (M, K) */ const jpo_lora *lora, int64_t m, int64_t k,
                                   bool accumulate, jpo_scratch *scratch, jpo_error *err);

#endif
