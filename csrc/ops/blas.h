/* The only caller of OpenBLAS. Our copy runs single-threaded: the pool in base/threads
 * cuts the work. */
#ifndef JPO_OPS_BLAS_H
#define JPO_OPS_BLAS_H

#include <stdbool.h>
#include <stdint.h>

void jpo_blas_init(void);          /* one thread inside OpenBLAS; called once at import */
const char *jpo_blas_config(void); /* version and build, e.g. "OpenBLAS 0.3.34 DYNAMIC_ARCH ..." */
const char *jpo_blas_kernel(void); /* the processor kernel that OpenBLAS chose, e.g. "SkylakeX" */

/* c (M, N; ldc) = alpha op(a) op(b) + beta c, row-major; ta: a is stored (K, M); tb: b is stored (N, K). */
void jpo_blas_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                    const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

#endif
