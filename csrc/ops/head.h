/* The head: log-likelihoods of targets under softmax(h W^T), logits never stored. The vocabulary is walked in tiles
 * with a running maximum; the unscaled product P W that the backward pass needs is computed in the same loop, so that
 * a frozen head costs 4 H V flop per row in all.
 * N rows that carry a loss, L entries (row, target); several entries may share a row. With a soft-cap the logits are
 * z = cap tanh(h W^T / cap), and P W is weighted by their slopes 1 - (z / cap)^2. */
#ifndef JPO_OPS_HEAD_H
#define JPO_OPS_HEAD_H

#include <stdint.h>

#include "base/status.h"
#include "ops/linear.h"

enum { JPO_HEAD_TILE = 1024 }; /* columns of the vocabulary walked at a time */

typedef struct {
    int64_t rows, entries;
    const float *h;        /* (N, H) */
    const int32_t *row;    /* (L): ascending, indices into h */
    const int32_t *target; /* (L) */
    float softcap;         /* 0: none */
    float *slope;          /* (L): of the targets' logits, saved by forward where there is a soft-cap; or NULL */
    jpo_low_rank update;   /* logits h W^T + u v^T: u (N, r), v (V, r); r 0: none. The product P W is W's alone */
} jpo_head_batch;

typedef struct {
    double max, sum;              /* of exp(z - max) */
    double sum_pz, sum_p2, sum_z; /* filled where statistics are asked for */
    int32_t best;                 /* the maximum's index */
} jpo_head_row;

/* logps (L) = z_target - logsumexp(z); state (N); pw (N, H) = sum_v exp(z_v - max) W_v, or NULL (scoring only). */
jpo_status jpo_head_forward(double *logps, jpo_head_row *state, float *pw, const jpo_head_batch *batch,
                            const jpo_weight *w, bool statistics, jpo_scratch *scratch, jpo_error *err);
/* Frozen head: dh (N, H) = sum over the row's entries of c_e W_target - (sum c_e) P W. */
jpo_status jpo_head_backward(float *dh, const double *coefficients, /* (L) */ const jpo_head_row *state,
                             const float *pw, const jpo_head_batch *batch, const jpo_weight *w, jpo_scratch *scratch,
                             jpo_error *err);
/* Where gradients of a trainable or adapted head go: added to, NULL: frozen; du is set. */
typedef struct {
    float *dw;      /* (V, H) */
    float *du, *dv; /* (N, r), (V, r) of the update */
} jpo_head_gradient;

/* Trainable or adapted head: dh (N, H) = the part through W; the logits are recomputed tile by tile in
 * z (N, JPO_HEAD_TILE). */
jpo_status jpo_head_backward_full(float *dh, const jpo_head_gradient *gradient, float *z, const double *coefficients,
                                  const jpo_head_row *state, const jpo_head_batch *batch, const jpo_weight *w,
                                  jpo_scratch *scratch, jpo_weight_scratch *weights, jpo_error *err);

#endif
