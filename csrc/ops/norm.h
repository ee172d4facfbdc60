/* Norms over vectors of `width` values: `groups` of them side by side in each row share one weight, as the heads of q
 * do (groups 1: the whole row). y = x r (offset + w) + b; LayerNorm subtracts the mean first. R rows. */
#ifndef JPO_OPS_NORM_H
#define JPO_OPS_NORM_H

#include <stdint.h>

/* X(code, name in a configuration, kernel, offset added to the weight, statistics kept per vector) */
#define JPO_NORM_LIST(X)                                                             \
    X(JPO_NORM_RMS, "rms", rmsnorm, 0, 1)              /* arXiv 1910.07467 */        \
    X(JPO_NORM_RMS_ONE, "rms_plus_one", rmsnorm, 1, 1) /* Gemma: weights around 0 */ \
    X(JPO_NORM_LAYER, "layer", layernorm, 0, 2)        /* arXiv 1607.06450; statistics: factor, mean */

typedef enum {
#define JPO_NORM_CODE(code, name, kernel, offset, statistics) code,
    JPO_NORM_LIST(JPO_NORM_CODE)
#undef JPO_NORM_CODE
        JPO_NORMS
} jpo_norm_kind;

enum { JPO_NORM_STATISTICS = 2 }; /* the most that one keeps */

/* Weights of one norm and their gradients (NULL: frozen); borrowed. */
typedef struct {
    const float *w, *b; /* (width); b NULL: none; w NULL: no such norm */
    float *dw, *db;
} jpo_norm;

typedef struct {
    jpo_norm_kind kind;
    int64_t rows, groups, width;
    float eps;
} jpo_norm_shape;

const char *jpo_norm_name(jpo_norm_kind kind);

/* stat (R, groups, JPO_NORM_STATISTICS) may be NULL; y may be x. */
void jpo_norm_forward(float *y, /* (R, groups * width; ldy) */ int64_t ldy, float *stat, const float *x, /* (.. ldx) */
                      int64_t ldx, const jpo_norm *norm, const jpo_norm_shape *shape);
/* d of jpo_norm_forward: dx += ; norm->dw, norm->db += , their rows summed in a fixed order. */
void jpo_norm_backward(float *dx, /* (R, groups * width; lddx) */ int64_t lddx, const float *dy, /* (.. lddy) */
                       int64_t lddy, const float *x, /* (.. ldx) */ int64_t ldx, const float *stat,
                       const jpo_norm *norm, const jpo_norm_shape *shape);

#endif
