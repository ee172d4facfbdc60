/* Row-wise operators without weights of their own: rotary embedding, gated activation, bias. */
#ifndef JPO_OPS_POINTWISE_H
#define JPO_OPS_POINTWISE_H

#include <stdint.h>

/* Rotates `heads` vectors of 2*half values at the head of each row (half-split layout, as Hugging Face stores Q and K).
 * sign = 1 forward, -1 backward. cosine and sine are indexed by position. */
void jpo_rope(float *x, /* (R, ld) */ int64_t ld, int64_t heads, int64_t half, const float *cosine, /* (P, half) */
              const float *sine, /* (P, half) */ const int32_t *positions, /* (R) */ int64_t rows, float sign);

/* y = silu(gate) * up over `count` values. */
void jpo_swiglu_forward(float *y, /* (count) */ const float *gate, /* (count) */ const float *up, /* (count) */
                        int64_t count);
/* gate and up are overwritten by their gradients. */
void jpo_swiglu_backward(float *gate, /* (count) */ float *up, /* (count) */ const float *dy, /* (count) */
                         int64_t count);

/* x[row, :] += bias, and its backward: dbias += column sums of dx. */
void jpo_bias_forward(float *x, /* (R, ld) */ int64_t ld, const float *bias, /* (N) */ int64_t rows, int64_t n);
void jpo_bias_backward(float *dbias, /* (N) */ const float *dx, /* (R, ld) */ int64_t ld, int64_t rows, int64_t n);

#endif
