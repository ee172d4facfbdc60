/* Kernels over rows of float32: one source (kernels.inc) compiled once per instruction set, a table of each chosen by
 * jpo_cpu_get()->chosen. Numerical contract: elementwise float32; sums run in float32 lanes over at most 1024 values,
 * then in float64; exp to 2 units in the last place, zero below exp(-87.3), NaN stays NaN; z - max <= 88. Any length,
 * any alignment. */
#ifndef JPO_KERNELS_KERNELS_H
#define JPO_KERNELS_KERNELS_H

#include <stdint.h>

typedef struct {
    float beta1, beta2, eps, scale; /* scale multiplies the gradient (clipping) */
    float step_size;                /* lr / (1 - beta1^t) */
    float root_correction;          /* sqrt(1 - beta2^t) */
    float decay;                    /* 1 - lr * weight_decay */
} jpo_adamw;

/* X(return type, name, parameters): one line adds a kernel. n: number of values. */
#define JPO_KERNEL_LIST(X)                                                                                             \
    /* Largest value, NaN where one is; *index (may be NULL): its first place. */                                      \
    X(float, max_tile, (const float *z, int64_t n, int64_t *index))                                                    \
    /* out = exp(z - max); returns the sum. out may be z. */                                                           \
    X(double, softmax_tile, (float *out, const float *z, int64_t n, float max))                                        \
    /* dz = p (dz - delta): through a softmax, dz holding dp. */                                                       \
    X(void, softmax_backward, (float *dz, const float *p, float delta, int64_t n))                                     \
    /* Sum of exp(z - max), z left alone. */                                                                           \
    X(double, expsum_tile, (const float *z, int64_t n, float max))                                                     \
    /* sums[3]: of p z (0 where p = 0), p^2, z. */                                                                     \
    X(void, softmax_stats_tile, (double *sums, const float *p, const float *z, int64_t n))                             \
    X(void, scale, (float *x, float factor, int64_t n))                                                                \
    X(void, axpy, (float *y, float a, const float *x, int64_t n)) /* y += a x */                                       \
    X(float, dot, (const float *a, const float *b, int64_t n))                                                         \
    /* out[j] = a . b_j for the rows b_j (rows, n; ldb); out += sum of p_j b_j. Float32 sums. */                       \
    X(void, dot_rows, (float *out, const float *a, const float *b, int64_t ldb, int64_t rows, int64_t n))              \
    X(void, add_rows, (float *out, const float *p, const float *b, int64_t ldb, int64_t rows, int64_t n))              \
    /* out (r, n; ldo) += the transpose of u (m, r; ldu) times x (m, n; ldx), r small. Float32 sums, ascending, over   \
     * 512 rows, each added to out. */                                                                                 \
    X(void, outer_sum,                                                                                                 \
      (float *out, int64_t ldo, const float *u, int64_t ldu, const float *x, int64_t ldx, int64_t m, int64_t r,        \
       int64_t n))                                                                                                     \
    X(double, sum_squares, (const float *x, int64_t n))                                                                \
    /* y = x r (offset + w) + b, r = 1 / sqrt(mean(x^2) + eps); stat[0] = r. b may be NULL; y may be x. */             \
    X(void, rmsnorm,                                                                                                   \
      (float *y, float *stat, const float *x, const float *w, const float *b, int64_t n, float eps, float offset))     \
    /* dx += the gradient of rmsnorm's input. */                                                                       \
    X(void, rmsnorm_backward,                                                                                          \
      (float *dx, const float *dy, const float *x, const float *w, const float *stat, int64_t n, float offset))        \
    /* y = (x - m) r (offset + w) + b, m = mean(x), r = 1 / sqrt(mean((x - m)^2) + eps); stat = (r, m). */             \
    X(void, layernorm,                                                                                                 \
      (float *y, float *stat, const float *x, const float *w, const float *b, int64_t n, float eps, float offset))     \
    X(void, layernorm_backward,                                                                                        \
      (float *dx, const float *dy, const float *x, const float *w, const float *stat, int64_t n, float offset))        \
    /* y = f(gate) * up (up NULL: f(gate)); backward: gate and up become their gradients. f: silu, or GELU by tanh. */ \
    X(void, silu, (float *y, const float *gate, const float *up, int64_t n))                                           \
    X(void, silu_backward, (float *gate, float *up, const float *dy, int64_t n))                                       \
    X(void, gelu_tanh, (float *y, const float *gate, const float *up, int64_t n))                                      \
    X(void, gelu_tanh_backward, (float *gate, float *up, const float *dy, int64_t n))                                  \
    /* z = cap tanh(z / cap); slope (may be NULL) = d of it, 1 - (z / cap)^2. Absolute error: 2e-7 cap. */             \
    X(void, softcap, (float *z, float *slope, int64_t n, float cap))                                                   \
    X(void, multiply, (float *y, const float *x, int64_t n)) /* y *= x */                                              \
    /* Rotates the pairs (x[j], x[half + j]); sign -1 rotates back. */                                                 \
    X(void, rope, (float *x, const float *cosine, const float *sine, int64_t half, float sign))                        \
    X(void, rope_pairs, (float *x, const float *cosine, const float *sine, int64_t half, float sign))                  \
    X(void, adamw, (float *p, float *m, float *v, const float *g, int64_t n, const jpo_adamw *c))

typedef struct {
#define JPO_KERNEL_FIELD(result, name, parameters) result(*name) parameters;
    JPO_KERNEL_LIST(JPO_KERNEL_FIELD)
#undef JPO_KERNEL_FIELD
} jpo_kernels;

extern const jpo_kernels jpo_kernels_generic;
#if defined(__x86_64__)
extern const jpo_kernels jpo_kernels_avx2, jpo_kernels_avx512;
#elif defined(__aarch64__)
extern const jpo_kernels jpo_kernels_neon;
#endif

const jpo_kernels *jpo_kernels_get(void); /* the table of the chosen instruction set */

#endif
