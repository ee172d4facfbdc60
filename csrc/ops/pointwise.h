/* Row-wise operators without weights of their own: rotary embedding, gated activation, bias. */
#ifndef JPO_OPS_POINTWISE_H
#define JPO_OPS_POINTWISE_H

#include <stdbool.h>
#include <stdint.h>

/* Rotary embedding (arXiv 2104.09864): rotates the first 2 * half of each head's `head_dim` values, for `heads` heads
 * at the start of each row. sign = 1 forward, -1 backward. cosine and sine are indexed by position. */
typedef struct {
    int64_t heads, head_dim, half;
    bool pairs;                 /* the layout: (x[2 j], x[2 j + 1]) belong together; otherwise (x[j], x[half + j]) */
    const float *cosine, *sine; /* (P, half) */
} jpo_rotary_table;
void jpo_rope(float *x, /* (R, ld) */ int64_t ld, const jpo_rotary_table *table, const int32_t *positions, /* (R) */
              int64_t rows, float sign);

/* X(code, name in a configuration, kernel): y = f(gate) * up; one line adds an activation. */
#define JPO_ACTIVATION_LIST(X) \
    X(JPO_SILU, "silu", silu)  \
    X(JPO_GELU_TANH, "gelu_tanh", gelu_tanh)

typedef enum {
#define JPO_ACTIVATION_CODE(code, name, kernel) code,
    JPO_ACTIVATION_LIST(JPO_ACTIVATION_CODE)
#undef JPO_ACTIVATION_CODE
        JPO_ACTIVATIONS
} jpo_activation;

const char *jpo_activation_name(jpo_activation kind);

/* y = f(gate) * up over `count` values; up NULL: y = f(gate). */
void jpo_activation_forward(float *y, /* (count) */ const float *gate, /* (count) */ const float *up, /* (count) */
                            jpo_activation kind, int64_t count);
/* gate and up are overwritten by their gradients. */
void jpo_activation_backward(float *gate, /* (count) */ float *up, /* (count) */ const float *dy, /* (count) */
                             jpo_activation kind, int64_t count);

/* y = x + factor * branch over `count` values; y may be x. */
void jpo_residual(float *y, /* (count) */ const float *x, /* (count) */ const float *branch, /* (count) */
                  float factor, int64_t count);
/* x *= factor over `count` values. */
void jpo_scale(float *x, /* (count) */ float factor, int64_t count);
/* z = cap tanh(z / cap) over `count` values. */
void jpo_softcap(float *z, /* (count) */ float cap, int64_t count);

/* x[row, :] += bias, and its backward: dbias += column sums of dx. */
void jpo_bias_forward(float *x, /* (R, ld) */ int64_t ld, const float *bias, /* (N) */ int64_t rows, int64_t n);
void jpo_bias_backward(float *dbias, /* (N) */ const float *dx, /* (R, ld) */ int64_t ld, int64_t rows, int64_t n);

#endif
