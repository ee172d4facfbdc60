/* General float32 products of operands that no weight owns: by our packed kernels where they are faster, otherwise by
 * OpenBLAS (sgemm.c has the rule). One thread; callers cut the work. */
#ifndef JPO_OPS_SGEMM_H
#define JPO_OPS_SGEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "ops/linear.h"

/* Floats of scratch that a call may overwrite: the caller's, 64-byte aligned, one for each thread. */
enum { JPO_SGEMM_RANGE = 576, JPO_SGEMM_ROWS = 192, JPO_SGEMM_SCRATCH = JPO_SGEMM_RANGE * (32 + JPO_SGEMM_ROWS) };
/* That of all threads, in scratch->thread: *first (threads, JPO_SGEMM_SCRATCH). */
jpo_status jpo_sgemm_reserve(jpo_scratch *scratch, float **first, jpo_error *err);

/* c (M, N; ldc) = alpha op(a) op(b) + beta c, row-major; ta: a is stored (K, M); tb: b is stored (N, K). */
void jpo_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc, float *scratch);

/* c (M, N; ldc) += alpha a (M, K; lda) op(b), K small; always by panels, so that a row's result does not depend on the
 * rows beside it. */
void jpo_sgemm_add_low_rank(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, bool tb,
                            int64_t m, int64_t n, int64_t k, float alpha, float *scratch);

#endif
