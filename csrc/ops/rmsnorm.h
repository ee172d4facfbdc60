/* y = x / sqrt(mean(x^2) + eps) * w, row by row. R rows of H values. */
#ifndef JPO_OPS_RMSNORM_H
#define JPO_OPS_RMSNORM_H

#include <stdint.h>

/* rstd may be NULL. */
void jpo_rmsnorm_forward(float *y, /* (R, H) */ float *rstd, /* (R) */ const float *x, /* (R, H) */
                         const float *w, /* (H) */ int64_t rows, int64_t hidden, float eps);
/* d of jpo_rmsnorm_forward: dx += , dw += (NULL: frozen). dw sums its rows in a fixed order. */
void jpo_rmsnorm_backward(float *dx, /* (R, H) */ float *dw, /* (H) */ const float *dy,             /* (R, H) */
                          const float *x, /* (R, H) */ const float *w, /* (H) */ const float *rstd, /* (R) */
                          int64_t rows, int64_t hidden);

#endif
