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
    float scale;              /* alpha / r, or alpha / sqrt(r) */
    float dropout;            /* share of x's values that the path does not see */
    uint64_t seed;            /* the mask is a pure function of (seed, mask_key of the row, column) */
    const uint64_t *mask_key; /* (M): who the rows are, wherever they stand; needed where dropout > 0 */
} jpo_lora;

/* xa (M, r) = dropout(x) A^T, saved for backward; what the adapted product then adds. dropped: scratch (M, K), needed
 * where dropout > 0. */
jpo_addition jpo_lora_forward(float *xa, /* (M, r) */ const float *x, /* (M, K) */ float *dropped, /* (M, K) */
                              const jpo_lora *lora, int64_t m, int64_t k);
/* da, db += ; dxa (M, r) = scale dy B is left for jpo_lora_backward_input. */
void jpo_lora_backward_weights(float *dxa, /* (M, r) */ const float *dy, int64_t lddy, const float *xa, /* (M, r) */
                               const float *x, /* (M, K) */ float *dropped, /* (M, K) */ const jpo_lora *lora,
                               int64_t m, int64_t n, int64_t k);
/* Without dropout: dxa A, which the product's input gradient adds. */
jpo_addition jpo_lora_backward_addition(const float *dxa, /* (M, r) */ const jpo_lora *lora, int64_t k);
/* With dropout: dx (M, K) += dxa A through the same mask. */
void jpo_lora_backward_input(float *dx, /* (M, K) */ const float *dxa, /* (M, r) */ float *dropped, /* (M, K) */
                             const jpo_lora *lora, int64_t m, int64_t k);

#endif
